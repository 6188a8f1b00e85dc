"""Prepares datasets as ArrayRecord files that TFDS reads: folders of images, and ImageNet. Needs no TensorFlow."""

import collections
import hashlib
import itertools
import math
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from gaternet_jax.data.datasets import open_dataset
from gaternet_jax.data.prepare.building import Plan, build
from gaternet_jax.data.prepare.image_files import ImageExamples, ImageFile
from gaternet_jax.data.prepare.shards import Written
from gaternet_jax.data.prepare.sources import Listing, list_folder, list_train_tar, list_validation_tar
from gaternet_jax.errors import UserError

KINDS = 8  # of files that are no images, that a note counts
VERSION = "1.0.0"  # of datasets made of folders
SHARD_IMAGES = 1000
SHARD_BYTES = 128 * 2**20
IMAGENET = "imagenet2012:5.1.0"
IMAGENET_SIZES = {"train": 1_281_167, "validation": 50_000}


def prepare_folder(
    root: Path, data_dir: Path, name: str, *, skip_corrupt: bool = False, workers: int | None = None
) -> Path:
    """Prepares root/{train, validation, test}/CLASS/**/IMAGE as the dataset data_dir/NAME/1.0.0 (see `list_folder`).

    Its records have the image (see `to_store` for the bytes), the label (classes in alphabetical order) and the
    file_name (below the split's folder), in an order that depends on the names only. A second call goes on where the
    first was interrupted, and returns at once if nothing is to do.

    Args:
        root: the folder of splits; train, and validation or test, or both.
        data_dir: see `resolve_data_dir`.
        name: of the dataset; "" makes one of the name of `root`.
        skip_corrupt: leave out images that cannot be read, and list them in corrupt.txt.
        workers: processes; None for one per core, 1 for none but this. Processes are spawned: a script that calls
            this needs its `if __name__ == "__main__"`.

    Returns:
        The dataset's folder, data_dir/NAME/1.0.0.

    Raises:
        UserError: images that cannot be read, another layout of folders, a dataset of that name made of something
            else, a name that TFDS does not take, or a folder that cannot be written to.
        KeyboardInterrupt: SIGINT or SIGTERM came; nothing that was finished is lost.
    """
    name = dataset_name(name or root.resolve().name, derive=not name)
    listing = list_folder(root)
    if listing.ignored:
        kinds = collections.Counter(Path(path).suffix.lower() or Path(path).name for path in listing.ignored)
        most = ", ".join(f"{count:,} {kind!a}" for kind, count in kinds.most_common(KINDS))
        print(
            f"Ignored {len(listing.ignored):,} files that are no images by their names, e.g. {listing.ignored[0]!a} "
            f"({most}{', and others' if len(kinds) > KINDS else ''})"
        )
    for note in listing.notes:
        print(note)

    def finish(folder: Path, written: dict[str, list[Written]]) -> None:
        _check_classes_left(listing, written)
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=listing.classes),
            "file_name": tfds.features.Text(),
        }
        description = f"Images of {len(listing.classes)} classes, prepared by gaternet_jax from a folder."
        _write_metadata(folder, written, VERSION, features=features, description=description)

    plan = Plan(
        source=str(root.resolve()),
        digest=listing.digest,
        shards=lambda: {split: _divide(images, name, split) for split, images in listing.splits.items()},
        finish=finish,
        choices="--name (data.name of a run) or --data_dir",
    )
    return build(data_dir / name / VERSION, plan, skip_corrupt=skip_corrupt, workers=workers)


def prepare_imagenet(
    train_tar: Path,
    validation_tar: Path,
    data_dir: Path,
    *,
    skip_corrupt: bool = False,
    workers: int | None = None,
) -> Path:
    """Prepares ImageNet-1k as data_dir/imagenet2012/5.1.0, with the features, names and labels of TFDS's own.

    The archives are read in place. Other than TFDS's, the few CMYK images are stored as PNG without loss.

    Args:
        train_tar: ILSVRC2012_img_train.tar.
        validation_tar: ILSVRC2012_img_val.tar.
        data_dir, skip_corrupt, workers: as for `prepare_folder`.

    Returns:
        The dataset's folder.

    Raises:
        UserError, KeyboardInterrupt: as `prepare_folder`.
    """
    if (there := data_dir / IMAGENET.replace(":", "/")).exists():
        open_dataset(there)  # one that TFDS made needs to be converted
    builder = tfds.builder(IMAGENET, data_dir=str(data_dir), file_format="array_record")
    info: Any = builder.info
    synsets = info.features["label"].names
    digest = hashlib.sha256()
    for path in (train_tar, validation_tar):
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        digest.update(f"{status.st_size}\0{status.st_mtime_ns}\n".encode())

    def shards() -> Mapping[str, Mapping[str, ImageExamples]]:
        splits = {
            "train": list_train_tar(train_tar, synsets),
            "validation": list_validation_tar(validation_tar, _validation_labels(synsets)),
        }
        for split, images in splits.items():
            if not images:
                raise UserError(f"{train_tar if split == 'train' else validation_tar} holds no images")
            if len(images) != IMAGENET_SIZES[split]:
                print(f"Note: {len(images):,} {split} images; the whole ImageNet has {IMAGENET_SIZES[split]:,}")
        return {split: _divide(images, builder.name, split) for split, images in splits.items()}

    def finish(folder: Path, written: dict[str, list[Written]]) -> None:
        common = dict(description=info.description, homepage=info.homepage, citation=info.citation)
        _write_metadata(folder, written, str(builder.version), features=info.features, **common)

    plan = Plan(f"{train_tar.resolve()} and {validation_tar.name}", digest.hexdigest(), shards, finish)
    return build(data_dir / builder.name / str(builder.version), plan, skip_corrupt=skip_corrupt, workers=workers)


def _validation_labels(synsets: list[str]) -> list[int]:
    # As TFDS's own builder finds them; the synset of each validation image, in the order of their names.
    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    try:
        lines = path.read_text().split()
    except OSError:
        raise UserError(
            f"{path}, which TensorFlow Datasets 4.9.10 comes with, is missing; install that version"
        ) from None
    labels = {synset: label for label, synset in enumerate(synsets)}
    return [labels[synset] for synset in lines]


def dataset_name(text: str, *, derive: bool = False) -> str:
    """Gives a name that TFDS takes: lower-case ASCII letters, digits and underscores, with a letter first.

    Args:
        text: such a name, or with `derive` any text to make one of.

    Raises:
        UserError: it is not one, or that of the embedded dataset.
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9]+", "_", ascii_text.lower()).strip("_")
    if not name:
        name = "images_" + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    if not name[0].isalpha():
        name = f"images_{name}"
    if not derive and not re.fullmatch(r"[a-z][a-z0-9_]*", text):
        raise UserError(
            f"'{text}' cannot name a dataset: expected lower-case ASCII letters, digits and underscores, a letter "
            f"first, e.g. '{name}'"
        )
    name = name if derive else text
    if name == "digits":
        raise UserError("'digits' is the name of the embedded dataset; give yours another: --name (data.name of a run)")
    return name


def _divide(images: list[ImageFile], name: str, split: str) -> dict[str, ImageExamples]:
    """Cuts images into shards of about the same number each, in an order that looks random but is always the same."""
    images = sorted(images, key=lambda image: hashlib.sha256(image.name.encode("utf-8", "surrogateescape")).digest())
    size = sum(image.size for image in images)
    count = min(len(images), max(math.ceil(len(images) / SHARD_IMAGES), math.ceil(size / SHARD_BYTES)))
    bounds = [len(images) * index // count for index in range(count + 1)]
    parts = [images[begin:end] for begin, end in itertools.pairwise(bounds)]
    return {
        f"{name}-{split}.array_record-{index:05}-of-{count:05}": ImageExamples(part) for index, part in enumerate(parts)
    }


def _check_classes_left(listing: Listing, written: dict[str, list[Written]]) -> None:
    corrupt = {entry.path for split in written.values() for there in split for entry in there.corrupt}
    left = {image.label for image in listing.splits["train"] if image.path not in corrupt}
    for label, name in enumerate(listing.classes):
        if label not in left:
            raise UserError(
                f"no training image of class '{name}' can be read, so that it cannot be learnt; repair them, or "
                "remove that folder from every split"
            )


def _write_metadata(folder: Path, written: dict[str, list[Written]], version: str, **info: Any) -> None:
    for split, shards in written.items():
        if not any(shard.records for shard in shards):
            raise UserError(f"no image of split '{split}' can be read")
    split_infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in shards],
            num_bytes=sum(shard.num_bytes for shard in shards),
        )
        for split, shards in written.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        split_infos=split_infos,
        version=version,
        supervised_keys=("image", "label"),
        check_data=False,  # its check needs TensorFlow
        **info,
    )
