"""Images to analyse: a split of a run's dataset, or image files in a folder."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gaternet_jax.config import RunConfig
from gaternet_jax.data.batches import Batch, BatchShard, pad_rows
from gaternet_jax.data.images import read_files
from gaternet_jax.data.splits import open_run_split
from gaternet_jax.data.walk import IMAGES, find_images
from gaternet_jax.errors import UserError
from gaternet_jax.workdir import load_dataset


class Source(NamedTuple):
    """Gives images to look at, in batches.

    Attributes:
        name: for people: "cifar10/test".
        num_images: at most so many; those that cannot be read are left out.
        batches: starts a pass over them, in batches as of `Split.eval_batches`; label -1: class not known.
    """

    name: str
    num_images: int
    batches: Callable[[], Iterator[Batch]]


def split_source(workdir: str | Path, config: RunConfig, split: str | None = None, data_dir: str = "") -> Source:
    """Opens a split of the run's own dataset.

    Args:
        workdir: of the run.
        config: its whole config.
        split: a split's name or a part of one; None: the split that the run evaluates on.
        data_dir: folder of the prepared datasets; "": as in the config.

    Raises:
        UserError: the dataset is not there, is not the run's, or has no such images.
    """
    config = config.copy_and_resolve_references()
    config.data.data_dir = data_dir or config.data.data_dir
    try:
        opened = open_run_split(
            load_dataset(workdir), config, split or config.data.eval_split or "test", BatchShard(0, 1)
        )
    except UserError as error:
        raise UserError(
            f"{error}\nImage files can be analysed in place of a split: --images=FOLDER (classes are the names of its "
            "sub-folders)"
        ) from None
    return Source(opened.name, opened.num_images, lambda: opened.eval_batches(config.train.eval_batch_size))


def folder_source(folder: Path, config: RunConfig, class_names: Sequence[str]) -> Source:
    """Opens image files below a folder; one's class is the name of its sub-folder, if the model knows such a class.

    Raises:
        UserError: no such folder, or no images in it; while it is read: a file that is not a whole image.
    """
    if not folder.is_dir():
        raise UserError(f"--images={folder} is not a folder")
    paths = [Path(entry.path) for entry in find_images(folder).images]
    if not paths:
        raise UserError(f"--images={folder} has no image files; looked for {IMAGES}")
    label_of = {unicodedata.normalize("NFC", name): label for label, name in enumerate(class_names)}
    classes = [unicodedata.normalize("NFC", path.parent.name if path.parent != folder else "") for path in paths]
    labels = [label_of.get(name, -1) for name in classes]
    size, channels = config.train.eval_batch_size, config.model.channels

    def batches() -> Iterator[Batch]:
        for start in range(0, len(paths), size):
            images = read_files(paths[start : start + size], config.data, channels)
            yield {
                "image": pad_rows(images, size),
                "label": pad_rows(np.array(labels[start : start + size], np.int32), size),
                "mask": np.arange(size) < len(images),
            }

    return Source(folder.resolve().name, len(paths), batches)
