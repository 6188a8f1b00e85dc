"""Images to analyse: a split of a run's dataset, or image files in a folder."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gaternet_jax.config import Config
from gaternet_jax.data.batches import Batch, Share
from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.data.images import center_box, read_box
from gaternet_jax.data.sources import EXTENSIONS
from gaternet_jax.data.splits import open_split
from gaternet_jax.errors import UserError


class Source(NamedTuple):
    """Images to look at.

    Attributes:
        name: for people: "cifar10/test".
        num_images: at most so many; those that cannot be read are left out.
        batches: starts a pass over them, in batches as of `Split.eval_batches`; label -1: class not known.
    """

    name: str
    num_images: int
    batches: Callable[[], Iterator[Batch]]


def split_source(config: Config, split: str | None = None, data_dir: str = "") -> Source:
    """A split of the run's own dataset.

    Args:
        config: the whole config of the run.
        split: a split's name or a part of one; None: the split that the run evaluates on.
        data_dir: folder of the prepared datasets; "": as in the config.

    Raises:
        UserError: the dataset is not there, or has no such images.
    """
    config = config.copy_and_resolve_references()
    config.data.data_dir = data_dir or config.data.data_dir
    try:
        builder = find_dataset(config.data.name, config.data.data_dir)
    except UserError as error:
        raise UserError(
            f"{error}\nWithout the dataset, image files can be analysed: --images=FOLDER (classes are the names of its "
            "sub-folders)"
        ) from None
    opened = open_split(builder, split or config.data.eval_split or "test", config, Share(0, 1))
    return Source(opened.name, opened.num_images, lambda: opened.eval_batches(config.train.eval_batch_size))


def folder_source(folder: Path, config: Config, class_names: Sequence[str]) -> Source:
    """Image files below a folder; the class of one is the name of its sub-folder, if the model knows such a class.

    Raises:
        UserError: no such folder, or no images in it; while it is read: a file that is not a whole image.
    """
    if not folder.is_dir():
        raise UserError(f"--images={folder} is not a folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not paths:
        raise UserError(f"--images={folder} has no image files; looked for names that end in {', '.join(EXTENSIONS)}")
    data, shape = config.data, (config.data.image_size, config.data.image_size, config.model.channels)
    choose = functools.partial(center_box, fraction=data.eval_crop)
    label_of = {name: label for label, name in enumerate(class_names)}

    def batches() -> Iterator[Batch]:
        size = config.train.eval_batch_size
        for start in range(0, len(paths), size):
            part = paths[start : start + size]
            batch = {"image": np.zeros((size, *shape), np.uint8), "label": np.zeros(size, np.int32)}
            for place, path in enumerate(part):
                encoded = _read(path)
                read_box(
                    encoded,
                    choose,
                    data.image_size,
                    channels=config.model.channels,
                    resize=data.resize,
                    source=str(path),
                    out=batch["image"][place],
                )
                batch["label"][place] = label_of.get(path.parent.name if path.parent != folder else "", -1)
            yield batch | {"mask": np.arange(size) < len(part)}

    return Source(folder.resolve().name, len(paths), batches)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
