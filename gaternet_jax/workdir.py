"""A run's folder: whose it is, its config and the names of its classes.

workdir/config.json        the resolved config
workdir/labels.txt         the names of the classes, one a line
workdir/dataset.json       what identifies the dataset, see data/record.py
workdir/metrics.jsonl      see metrics.py
workdir/starts.json        see starts.py
workdir/tensorboard/       the same for TensorBoard
workdir/checkpoints/STEP/  see checkpoint.py
workdir/lock               held by the process that trains here
workdir/finished           the last step, once all steps are done
"""

import contextlib
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from gaternet_jax.config import INITIAL_ONLY, MAY_CHANGE, RunConfig, default, flatten, identify
from gaternet_jax.data.record import DatasetRecord, number_classes
from gaternet_jax.errors import UserError
from gaternet_jax.files import locked, write_file
from gaternet_jax.older import bring_up_to_date
from gaternet_jax.validation import check_fields

REPLACED = ".replaced"  # ends the name of a checkpoint that gives way to a new one of its step, until that is written
BUCKETS = (("gs",), ("s3",), ("az",), ("hf",))  # folders of / that etils.epath, which Orbax uses, takes for buckets


def local_folder(path: str | Path) -> Path:
    """Checks a run's folder, and gives it as a path.

    Raises:
        UserError: it is, or reads to Orbax like, the address of a bucket: a run appends to its files and locks its
            folder, which buckets cannot; or its name cannot be read by Orbax.
    """
    folder = Path(path).absolute()
    url = re.match(r"([a-z][a-z0-9+.-]*):/+", str(path), re.IGNORECASE)  # a Path has lost one of the slashes
    if url:
        address = f"{url[1]}://{str(path)[url.end() :]}"
        raise UserError(
            f"{address} is not a folder of this machine; mount the bucket and give the folder (launch/README.md), or "
            f"give a local one and copy it: gcloud storage rsync -r DIR {address}"
        )
    if folder.parts[1:2] in BUCKETS or any(part.endswith(("gs:", "s3:")) for part in folder.parts):
        raise UserError(f"{folder} reads like the address of a bucket; choose another folder")
    if "\\" in str(folder) or any("\ud800" <= letter <= "\udfff" for letter in str(folder)):
        raise UserError(f"{str(folder)!a} has a backslash in it, or is not UTF-8: checkpoints there cannot be read")
    return Path(path)


def check_place(folder: Path, flag: str) -> None:
    """Checks that a run's files can be written to a folder.

    Raises:
        UserError: a part of its path is a file, or not to be entered; or its name has characters that Orbax takes for a
            pattern as it writes (it would merge what lies in any folder that matches); or as of `local_folder`.
    """
    absolute = str(local_folder(folder).absolute())
    if patterns := sorted(set(absolute) & set("*?[")):
        raise UserError(
            f"{absolute} has {' and '.join(patterns)} in it: checkpoints would be lost there; choose another {flag}"
        )
    for path in (folder, *folder.parents):
        try:
            is_file = path.exists() and not path.is_dir()
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another {flag}") from None
        if is_file:
            raise UserError(f"{path} is a file; choose another {flag}")


def check_new_folder(out: Path) -> None:
    """Checks that a model can be written to a folder.

    Raises:
        UserError: it is there and not empty, or not a place for checkpoints.
    """
    check_place(out, "--out")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not an empty folder; choose another --out")


def check_workdir(workdir: Path, given: RunConfig) -> None:
    """Checks that a workdir is new or empty, or holds the run that `given` describes.

    Raises:
        UserError: it holds something else, or a run with other values in fields beyond MAY_CHANGE, which are named.
    """
    if not workdir.exists() or not any(path.name != "lock" for path in workdir.iterdir()):
        return
    if (workdir / "checkpoints").exists() and not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir / 'checkpoints'} is not a folder; choose another --workdir")
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} holds something that is not a run (no config.json); choose another --workdir")
    if not has_checkpoint(workdir):
        return  # a start that failed before its first checkpoint
    saved = load_config(workdir)
    before, now = identify(saved), identify(given)
    differing = [
        f"{field}: {before.get(field, '(absent)')} in the workdir, {now.get(field, '(absent)')} given"
        for field in sorted(before.keys() | now.keys())
        if field not in MAY_CHANGE and before.get(field, before) != now.get(field, now)
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run with another config:\n  "
            + "\n  ".join(differing)
            + "\nGive the same config to go on with it, or another --workdir. "
            f"Fields that may change: {', '.join(MAY_CHANGE)}"
        )


@contextlib.contextmanager
def in_use(workdir: Path, given: RunConfig) -> Iterator[None]:
    """Keeps other runs out of a workdir.

    Raises:
        UserError: a living run is at work there, the folder cannot be written to, or, as of `check_workdir`, another
            run has been there a moment ago.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(workdir, "--workdir"))
        except OSError as error:
            raise UserError(f"cannot write to {workdir}: {error.strerror}; choose another --workdir") from None
        check_workdir(workdir, given)
        yield


def mark_finished(workdir: Path, step: int) -> None:
    """Leaves a file that tells launch scripts that all steps are done."""
    write_file(workdir / "finished", f"{step}\n")


def mark_unfinished(workdir: Path) -> None:
    """Takes the file `finished` away: a finished run goes on, with more epochs."""
    (workdir / "finished").unlink(missing_ok=True)


def saved_steps(workdir: Path) -> list[int]:
    """Lists the steps of the checkpoints in a workdir, ascending."""
    folder = workdir / "checkpoints"
    names = [path.name.removesuffix(REPLACED) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted({int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name)})


def has_checkpoint(workdir: Path) -> bool:
    """Tells whether a run in this workdir has saved anything yet."""
    return bool(saved_steps(workdir))


def save_config(config: RunConfig, labels: list[str], workdir: Path) -> None:
    """Writes workdir/config.json, and the names of the classes to workdir/labels.txt, one a line."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_file(workdir / "labels.txt", "".join(f"{label}\n" for label in labels))
    write_file(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def load_config(workdir: str | Path) -> RunConfig:
    """Reads workdir/config.json.

    One of another version is read, too: fields that it lacks have their defaults, and those that this version does not
    know are left out; both are named. Not so where they decide what the model computes.

    Raises:
        UserError: no such file, not a config, or one with other fields of the model than this version has.
    """
    path = local_folder(workdir) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        saved = dict(flatten(ConfigDict(content))) if isinstance(content, dict) else {}
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{workdir} is not a run: it has no config.json. Give the --workdir of a training run or the --out of "
            "a conversion"
        ) from None
    except (ValueError, OSError, RecursionError) as error:  # among them what JSON, UTF-8 and ConfigDict cannot be
        raise UserError(f"{path} is not a config: {error}") from None
    config = default()
    known = dict(flatten(config))
    saved = bring_up_to_date(saved, known)
    missing, unknown = sorted(known.keys() - saved.keys()), sorted(saved.keys() - known.keys())
    if needed := [field for field in missing if _decides_outputs(field)]:
        raise UserError(f"{path} is of another version of gaternet-jax, or no config: it lacks {', '.join(needed)}")
    sections = {field.partition(".")[0] for field in known if "." in field}
    if wrong := [field for field in unknown if field.startswith("model.") or field in sections]:
        raise UserError(f"{path} is of another version of gaternet-jax: this one does not know {', '.join(wrong)}")
    with config.ignore_type():  # `check_fields` names what is of another type
        config.update_from_flattened_dict({field: value for field, value in saved.items() if field in known})
    try:
        check_fields(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if missing:
        _note(f"{path} is of another version of gaternet-jax; defaults of this one stand for {', '.join(missing)}")
    if unknown:
        _note(f"{path} is of another version of gaternet-jax; without effect here: {', '.join(unknown)}")
    return config.lock()


def _decides_outputs(field: str) -> bool:
    """Tells whether the same parameters compute something else with another value of this field."""
    if field in INITIAL_ONLY:
        return False
    return field.startswith("model.") or field in ("data.name", "data.image_size", "data.mean", "data.std")


@functools.cache  # a config is read several times
def _note(text: str) -> None:
    print(f"Note: {text}", file=sys.stderr, flush=True)


def check_not_narrow(workdir: str | Path) -> None:
    """Raises UserError for a folder in which earlier versions wrote a compacted model."""
    if (path := Path(workdir) / "compaction.json").exists():
        raise UserError(
            f"{workdir} was compacted by an earlier version, whose narrower layers this one does not have ({path.name} "
            "is of it); compact the original run again: python -m gaternet_jax.tools.compact"
        )


def load_labels(workdir: str | Path) -> list[str]:
    """Reads the names of the classes, by label; their numbers where the workdir does not tell.

    Raises:
        UserError: labels.txt cannot be read, is not text in UTF-8, or has not one line per class.
    """
    path, classes = Path(workdir) / "labels.txt", load_config(workdir).model.num_classes
    if not path.exists():
        return list(number_classes(classes))
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as text in UTF-8: {error}; write the classes again, one a line"
        ) from None
    labels = lines[:-1] if lines[-1] == "" else lines
    if len(labels) != classes:
        raise UserError(
            f"{path} has {len(labels)} lines, but the model has {classes} classes; write one name a line, by label"
        )
    return labels


def save_dataset(dataset: DatasetRecord, workdir: Path) -> None:
    """Writes workdir/dataset.json."""
    write_file(workdir / "dataset.json", json.dumps(dataclasses.asdict(dataset), indent=2) + "\n")


def load_dataset(workdir: str | Path) -> DatasetRecord:
    """Reads what a run remembers of its dataset; of one without dataset.json, the name and the classes.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(workdir) / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return DatasetRecord(**content | {"classes": tuple(content["classes"])})
    except FileNotFoundError:
        return DatasetRecord(load_config(workdir).data.name, "", tuple(load_labels(workdir)), {}, "")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it: labels.txt then tells the classes") from None
