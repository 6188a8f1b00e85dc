"""A run's folder: whose it is, its config and the names of its classes.

workdir/config.json        the resolved config
workdir/labels.txt         the names of the classes, one a line
workdir/dataset.json       what identifies the dataset, see data/record.py
workdir/metrics.jsonl      see metrics.py
workdir/starts.json        see starts.py
workdir/tensorboard/       the same for TensorBoard
workdir/checkpoints/STEP/  see checkpoint.py
workdir/lock               held by the process that trains here
workdir/compaction.json    of a compacted model: the filters that it kept
workdir/finished           the last step, once all steps are done
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from gaternet_jax.config import Config, default, flatten
from gaternet_jax.data.record import DatasetRecord, number_classes
from gaternet_jax.errors import UserError

COMPACTION = "compaction.json"  # which filters a compacted model kept (inference/compact.py)

# Fields that a resumed run may change. All others decide what the run computes.
MAY_CHANGE = (
    "data.data_dir",
    "data.name",  # dataset.json tells whether it is the same one
    "data.on_error",
    "data.pipeline",
    "data.root",
    "data.stall_seconds",
    "data.threads",
    "data.workers",
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

    Raises:
        UserError: no such file, or not a config.
    """
    path = Path(workdir) / "config.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{workdir} is not a run: it has no config.json. Give the --workdir of a training run or the --out of "
            "a conversion"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a config: {error}") from None
    known = {field for field, _ in flatten(default())}
    missing = known - {field for field, _ in flatten(ConfigDict(content))} if isinstance(content, dict) else known
    if missing:
        raise UserError(
            f"{path} is of another version of gaternet-jax, or no config: it lacks {', '.join(sorted(missing))}"
        )
    return ConfigDict(content).lock()


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
    """The names of the classes, by label; their numbers where the workdir does not tell."""
    path = Path(workdir) / "labels.txt"
    if not path.exists():
        return list(number_classes(load_config(workdir).model.num_classes))
    return path.read_text(encoding="utf-8").splitlines()


def save_dataset(dataset: DatasetRecord, workdir: Path) -> None:
    """Writes workdir/dataset.json."""
    write_file(workdir / "dataset.json", json.dumps(dataclasses.asdict(dataset), indent=2) + "\n")


def load_dataset(workdir: str | Path) -> DatasetRecord:
    """What a run remembers of its dataset; of one without dataset.json, the name and the classes.

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
