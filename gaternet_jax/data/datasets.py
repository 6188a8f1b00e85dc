"""Finds prepared TFDS datasets by name; prepares the embedded one on first use."""

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from gaternet_jax.config import Config
from gaternet_jax.errors import UserError


def resolve_data_dir(data_dir: str) -> Path:
    """The folder of prepared datasets: as given, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_dataset(name: str, data_dir: str = "") -> tfds.core.DatasetBuilder:
    """Finds a prepared dataset; "digits" is prepared if it is not there yet.

    Args:
        name: "digits", or the name of any TFDS image classification dataset, e.g. "cifar10".
        data_dir: see `resolve_data_dir`.

    Returns:
        A builder whose data sources read ArrayRecord files, without TensorFlow.

    Raises:
        UserError: the dataset is not prepared there, or not in a format that can be read at random.
    """
    root = resolve_data_dir(data_dir)
    version = _newest_version(root / name)
    if version is None and name == "digits":
        version = _prepare_digits(root)
    if version is None:
        raise UserError(_how_to_prepare(name, root))
    builder = tfds.builder_from_directory(str(version))
    file_format = builder.info.file_format
    if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{version} is stored as {file_format and file_format.value}, which cannot be read at random; prepare it "
            f"with --file_format=array_record"
        )
    return builder


def find_classes(config: Config) -> tuple[tfds.core.DatasetBuilder, list[str]]:
    """The dataset of a run and the names of its classes.

    Raises:
        UserError: it is not there, or has another number of classes than the model.
    """
    builder = find_dataset(config.data.name, config.data.data_dir)
    labels = class_names(builder)
    if len(labels) != config.model.num_classes:
        raise UserError(
            f"dataset '{config.data.name}' has {len(labels)} classes, "
            f"but config.model.num_classes={config.model.num_classes}"
        )
    return builder, labels


def class_names(builder: tfds.core.DatasetBuilder) -> list[str]:
    """The names of the classes, by label.

    Raises:
        UserError: the dataset is not one of labelled images.
    """
    features: Any = builder.info.features
    features = dict(features.items())
    label = features.get("label")
    if "image" not in features or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"dataset '{builder.name}' has no features 'image' and 'label' (a class label)")
    return list(label.names)


def _newest_version(folder: Path) -> Path | None:
    # TFDS leaves folders with other names when a preparation is interrupted.
    folders = [path.parent for path in folder.glob("*/features.json")]
    versions = [path for path in folders if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return max(versions, key=lambda path: tfds.core.Version(path.name), default=None)


def _prepare_digits(root: Path) -> Path:
    from gaternet_jax.data.digits import Digits

    try:
        builder = Digits(data_dir=str(root), file_format="array_record")
        talk = io.StringIO()  # TFDS announces a download of unknown size; there is none
        with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
            builder.download_and_prepare()
    except OSError as error:
        raise UserError(
            f"cannot prepare 'digits' in {root}: {error}; give a folder you may write to with --data_dir"
        ) from None
    return Path(builder.data_dir)


def _how_to_prepare(name: str, root: Path) -> str:
    if name not in tfds.list_builders(with_community_datasets=False):
        prepared = sorted({path.parent.parent.name for path in root.glob("*/*/features.json")} | {"digits"})
        return (
            f"unknown dataset '{name}': it is not in {root} (which has {', '.join(prepared)}) "
            "and TFDS has none of that name"
        )
    return (
        f"dataset '{name}' is not prepared in {root}; prepare it with `pip install -e '.[prepare]'` and "
        f"`tfds build {name} --data_dir={root} --file_format=array_record`, or say where it is with --data_dir"
    )
