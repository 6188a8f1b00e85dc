"""A run's folder: whose it is, its config and the names of its classes.

workdir/config.json        the resolved config
workdir/labels.txt         the names of the classes, one a line
workdir/metrics.jsonl      see metrics.py
workdir/starts.json        see starts.py
workdir/tensorboard/       the same for TensorBoard
workdir/checkpoints/STEP/  see checkpoint.py
workdir/lock               held by the process that trains here
workdir/compaction.json    of a compacted model: the filters that it kept
workdir/finished           the last step, once all steps are done
"""

import contextlib
import fcntl
import functools
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from gaternet_jax.config import Config, check_fields, default, flatten
from gaternet_jax.errors import UserError

COMPACTION = "compaction.json"  # which filters a compacted model kept (inference/compact.py)

# Fields that a resumed run may change. All others decide what the run computes.
MAY_CHANGE = (
    "data.data_dir",
    "data.on_error",
    "data.pipeline",
    "data.stall_seconds",
    "data.threads",
    "data.workers",
    "optimizer.schedule_epochs",
    "train.epochs",
    "train.eval_batch_size",
    "train.eval_every_epochs",
    "train.log_every_steps",
    "train.max_skipped_steps",
    "train.steps_per_call",
    "checkpoint.keep_latest",
    "checkpoint.every_steps",
)


def check_workdir(workdir: Path, given: Config) -> None:
    """Checks that a workdir is new or empty, or holds the run that `given` describes.

    Raises:
        UserError: it holds something else, or a run with other values in fields beyond MAY_CHANGE, which are named.
    """
    for path in (workdir, *workdir.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; choose another --workdir")
    if not workdir.exists() or not any(path.name != "lock" for path in workdir.iterdir()):
        return
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} holds something that is not a run (no config.json); choose another --workdir")
    if not has_checkpoint(workdir):
        return  # a start that failed before its first checkpoint
    saved = load_config(workdir)
    before, now = dict(flatten(saved)), dict(flatten(given))
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
def in_use(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a workdir; the system lets go of it, whatever ends this process.

    Raises:
        UserError: a living run is at work there, or the folder cannot be written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / "lock").open("a+")
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror}; choose another --workdir") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise UserError(f"{workdir} is in use by {holder}; wait for its end, or choose another --workdir") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


def mark_finished(workdir: Path, step: int) -> None:
    """Leaves a file that tells launch scripts that all steps are done."""
    write_file(workdir / "finished", f"{step}\n")


def mark_unfinished(workdir: Path) -> None:
    """Takes that file away: a finished run goes on, with more epochs."""
    (workdir / "finished").unlink(missing_ok=True)


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run in this workdir has saved anything yet."""
    checkpoints = workdir / "checkpoints"
    return checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())


def save_config(config: Config, labels: list[str], workdir: Path) -> None:
    """Writes workdir/config.json, and the names of the classes to workdir/labels.txt, one a line."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_file(workdir / "labels.txt", "".join(f"{label}\n" for label in labels))
    write_file(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def write_file(path: Path, text: str) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never a part."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def load_config(workdir: str | Path) -> Config:
    """Reads workdir/config.json.

    One of another version is read, too: fields that it lacks have their defaults, and those that this version does not
    know are left out; both are named. Not so where they decide what the model computes.

    Raises:
        UserError: no such file, not a config, or one with other fields of the model than this version has.
    """
    path = Path(workdir) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        saved = dict(flatten(ConfigDict(content))) if isinstance(content, dict) else {}
    except FileNotFoundError:
        raise UserError(
            f"{workdir} is not a run: it has no config.json. Give the --workdir of a training run or the --out of "
            "a conversion"
        ) from None
    except (ValueError, OSError, RecursionError) as error:  # among them what JSON, UTF-8 and ConfigDict cannot be
        raise UserError(f"{path} is not a config: {error}") from None
    config = default()
    known = dict(flatten(config))
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
    """Whether the same parameters compute something else with another value of this field."""
    return field.startswith("model.") or field in ("data.name", "data.image_size", "data.mean", "data.std")


@functools.cache  # a config is read several times
def _note(text: str) -> None:
    print(f"Note: {text}", file=sys.stderr, flush=True)


def load_compaction(workdir: str | Path) -> dict | None:
    """Which filters a compacted model kept, by site; None of any other.

    Raises:
        UserError: the file is damaged, or of a newer version.
    """
    path = Path(workdir) / COMPACTION
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] > 1:
            raise UserError(
                f"{path} was written by a newer gaternet-jax (format {content['format']}); upgrade this one"
            )
        return content["selection"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); run tools.compact again") from None


def load_labels(workdir: str | Path) -> list[str]:
    """The names of the classes, by label; their numbers where the workdir does not tell.

    Raises:
        UserError: labels.txt cannot be read, is not text in UTF-8, or has not one line per class.
    """
    path, classes = Path(workdir) / "labels.txt", load_config(workdir).model.num_classes
    if not path.exists():
        return [f"class {label}" for label in range(classes)]
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
