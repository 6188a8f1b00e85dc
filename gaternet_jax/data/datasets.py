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
        UserError: the dataset is not prepared there, not in a format that can be read at random, or damaged.
    """
    root = resolve_data_dir(data_dir)
    version = _newest_version(root / name)
    if version is None and name == "digits":
        version = _prepare_digits(root)
    if version is None:
        raise UserError(_how_to_prepare(name, root))
    try:
        builder = tfds.builder_from_directory(str(version))
    except Exception as error:  # TFDS raises whatever its parsers meet in damaged metadata
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{version} is no dataset that can be read ({reason}); prepare it again") from None
    file_format = builder.info.file_format
    if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{version} is stored as {file_format and file_format.value}, which cannot be read at random; convert it "
            f"with `python -m gaternet_jax.tools.prepare convert --source={version} --data_dir=DIR`"
        )
    return builder


def find_run_dataset(config: Config) -> tuple[Config, tfds.core.DatasetBuilder, list[str]]:
    """The dataset of a run; that of config.data.root is prepared if it is not there yet.

    Returns:
        The config, with what it left to the dataset filled in (data.name, data.eval_split, model.num_classes); the
        dataset; and the names of its classes.

    Raises:
        UserError: it is not there, or has another number of classes than the model.
    """
    data = config.data
    if data.root:
        from gaternet_jax.data.prepare import prepare_folder

        version = prepare_folder(Path(data.root), resolve_data_dir(data.data_dir), data.name)
        builder = find_dataset(version.parent.name, str(version.parent.parent))
    elif not data.name:
        raise UserError("say which images: --config.data.root=FOLDER, or --config.data.name of a prepared dataset")
    else:
        builder = find_dataset(data.name, data.data_dir)
    labels = class_names(builder)
    num_classes = config.model.num_classes or len(labels)
    if len(labels) != num_classes:
        raise UserError(
            f"dataset '{builder.name}' has {len(labels)} classes, but config.model.num_classes={num_classes}"
        )
    resolved = config.copy_and_resolve_references()
    with resolved.unlocked():
        resolved.data.name, resolved.model.num_classes = builder.name, num_classes
        if not data.eval_split:
            held_out = [split for split in ("test", "validation") if split in builder.info.splits]
            if not held_out:
                raise UserError(f"dataset '{builder.name}' has neither a split 'test' nor 'validation' to evaluate on")
            resolved.data.eval_split = held_out[0]
    return resolved, builder, labels


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
    command = f"python -m gaternet_jax.tools.prepare stock --name={name} --data_dir={root}"
    if name == "imagenet2012":
        command = f"python -m gaternet_jax.tools.prepare imagenet --data_dir={root} (see its --help)"
    return (
        f"dataset '{name}' is not prepared in {root}; prepare it with `{command}`, or say where it is with --data_dir"
    )
