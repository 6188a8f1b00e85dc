"""Finds prepared TFDS datasets by name; prepares the embedded one on first use."""

import contextlib
import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from gaternet_jax.config import RunConfig
from gaternet_jax.data.reader import has_labels
from gaternet_jax.data.record import DatasetRecord
from gaternet_jax.errors import UserError
from gaternet_jax.files import locked
from gaternet_jax.paths import expand_home, quote


def resolve_data_dir(data_dir: str) -> Path:
    """Finds the folder of prepared datasets: as given, else $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
        UserError: no home folder is known.
    """
    if given := data_dir or os.environ.get("TFDS_DATA_DIR"):
        return expand_home(given)
    try:
        return expand_home("~/tensorflow_datasets")
    except UserError:
        raise UserError("no home folder is known for the datasets; say where they are with --data_dir") from None


def find_dataset(name: str, data_dir: str = "", run: DatasetRecord | None = None) -> tfds.core.DatasetBuilder:
    """Finds a prepared dataset; "digits" is prepared if it is not there yet.

    Args:
        name: "digits", or the name of any TFDS image classification dataset, e.g. "cifar10"; "imagenette/160px-v2"
            if it has configs; "cifar10:3.0.2" for that version, else the newest.
        data_dir: see `resolve_data_dir`.
        run: what a run remembers of its dataset; of that dataset its version is taken in place of the newest, if it
            is there.

    Returns:
        A builder whose data sources read ArrayRecord files, without TensorFlow.

    Raises:
        UserError: the dataset is not prepared there, not in a format that can be read at random, or damaged.
    """
    root = resolve_data_dir(data_dir)
    base, _, asked = name.partition(":")
    there = {path.name: path for path in prepared_versions(root / base)}
    if not there and base == "digits":
        prepared = _prepare_digits(root)
        there = {prepared.name: prepared}
    if not there or (asked and asked not in there):
        raise UserError(_how_to_prepare(name, root))
    newest = max(there, key=tfds.core.Version)
    known = run.version if run and run.name == name else ""
    return open_dataset(there[asked or (known if known in there else newest)])


def open_dataset(folder: Path) -> tfds.core.DatasetBuilder:
    """Opens a prepared dataset, DIR/NAME/VERSION or DIR/NAME/CONFIG/VERSION.

    Raises:
        UserError: it is not in a format that can be read at random, or its metadata are damaged.
    """
    try:
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # TFDS raises whatever its parsers meet in damaged metadata
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{folder} is no dataset that can be read ({reason}); prepare it again") from None
    file_format = builder.info.file_format
    if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{folder} is stored as {file_format and file_format.value}, which cannot be read at random; convert it "
            f"with `python -m gaternet_jax.tools.prepare convert --source={quote(folder)} --data_dir=OTHER_DIR`"
        )
    return builder


def find_run_dataset(
    config: RunConfig, run: DatasetRecord | None = None
) -> tuple[RunConfig, tfds.core.DatasetBuilder, DatasetRecord]:
    """Finds the dataset of a run; that of config.data.root is prepared if it is not there yet.

    Args:
        config: the config as it is given.
        run: what the run, if it goes on, remembers of it, see `find_dataset`.

    Returns:
        The config, with what it left to the dataset filled in (data.name, data.eval_split, model.num_classes) and whole
        paths; the dataset; and what identifies it.

    Raises:
        UserError: it is not there, or has another number of classes than the model.
    """
    data = config.data
    if data.root:
        from gaternet_jax.data.prepare.folders import prepare_folder

        builder = open_dataset(prepare_folder(expand_home(data.root), resolve_data_dir(data.data_dir), data.name))
    elif not data.name:
        raise UserError("say which images: --config.data.root=FOLDER, or --config.data.name of a prepared dataset")
    else:
        builder = find_dataset(data.name, data.data_dir, run)
    record = record_dataset(builder)
    num_classes = config.model.num_classes or len(record.classes)
    if len(record.classes) != num_classes:
        raise UserError(
            f"dataset '{record.name}' has {len(record.classes)} classes, but config.model.num_classes={num_classes}"
        )
    resolved = config.copy_and_resolve_references()
    with resolved.unlocked():
        resolved.data.name, resolved.model.num_classes = record.name, num_classes
        resolved.data.eval_split = data.eval_split or _held_out_split(builder)
        resolved.data.root, resolved.data.data_dir = (  # whole: a run is looked at from other folders, too
            str(expand_home(path).absolute()) if path else "" for path in (data.root, data.data_dir)
        )
    return resolved, builder, record


def class_names(builder: tfds.core.DatasetBuilder) -> list[str]:
    """Gives the names of the classes, by label.

    Raises:
        UserError: the dataset is not one of labelled images.
    """
    features: Any = builder.info.features
    features = dict(features.items())
    label = features.get("label")
    if "image" not in features or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"dataset '{builder.name}' has no features 'image' and 'label' (a class label)")
    return list(label.names)


def record_dataset(builder: tfds.core.DatasetBuilder) -> DatasetRecord:
    """Records what identifies a prepared dataset; reads its metadata only.

    Raises:
        UserError: the dataset is not one of labelled images.
    """
    info: Any = builder.info
    classes = tuple(unicodedata.normalize("NFC", name) for name in class_names(builder))
    splits = {name: [split.shard_lengths, int(split.num_bytes)] for name, split in sorted(info.splits.items())}
    return DatasetRecord(
        name=f"{builder.name}/{info.config_name}" if info.config_name else builder.name,
        version=str(builder.version),
        classes=classes,
        images={name: split.num_examples for name, split in info.splits.items()},
        digest=hashlib.sha256(json.dumps([classes, splits]).encode()).hexdigest(),
    )


def _held_out_split(builder: tfds.core.DatasetBuilder) -> str:
    held_out = [split for split in ("test", "validation") if split in builder.info.splits]
    if not held_out:
        raise UserError(f"dataset '{builder.name}' has neither a split 'test' nor 'validation' to evaluate on")
    labelled = [split for split in held_out if has_labels(builder, split)]
    if labelled and labelled[0] != held_out[0]:
        print(f"Split '{held_out[0]}' has no labels; evaluating on '{labelled[0]}'")
    return (labelled or held_out)[0]


def prepared_versions(folder: Path) -> list[Path]:
    """Finds the folders of the versions of a dataset, DIR/NAME or DIR/NAME/CONFIG, that are there."""
    # TFDS leaves folders with other names when a preparation is interrupted.
    folders = [path.parent for path in folder.glob("*/features.json")]
    return [path for path in folders if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]


def _prepare_digits(root: Path) -> Path:
    from gaternet_jax.data.prepare.digit_images import Digits

    try:
        with locked(root / "digits", "--data_dir", wait=True):
            if there := prepared_versions(root / "digits"):  # another run has prepared it meanwhile
                return there[-1]
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
    base, _, asked = name.partition(":")
    if asked and (there := prepared_versions(root / base)):
        return f"dataset '{base}' has no version {asked} in {root}; it has {_join(path.name for path in there)}"
    if configs := {path.parents[1].name for path in root.glob(f"{base}/*/*/features.json")}:
        return f"dataset '{base}' is in {root} with the configs {_join(configs)}; give one: '{base}/{min(configs)}'"
    if base.partition("/")[0] not in tfds.list_builders(with_community_datasets=False):
        folders = [path.parents[1] for pattern in ("*/*", "*/*/*") for path in root.glob(f"{pattern}/features.json")]
        prepared = sorted({str(folder.relative_to(root)) for folder in folders} | {"digits"})
        return (
            f"unknown dataset '{name}': it is not in {root} (which has {', '.join(prepared)}) "
            "and TFDS has none of that name"
        )
    command = f"python -m gaternet_jax.tools.prepare stock --name={quote(name)} --data_dir={quote(root)}"
    if name == "imagenet2012":
        command = f"python -m gaternet_jax.tools.prepare imagenet --data_dir={quote(root)} (see its --help)"
    return (
        f"dataset '{name}' is not prepared in {root}; prepare it with `{command}`, or say where it is with --data_dir"
    )


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
