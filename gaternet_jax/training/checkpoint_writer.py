"""Writing checkpoints (Orbax) beside the training loop; `checkpoint.py` says what they hold."""

import contextlib
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from gaternet_jax.errors import UserError
from gaternet_jax.training.checkpoint_reader import (
    DamagedError,
    checksum,
    checksum_of_metadata,
    read_checkpoint,
    shapes,
)
from gaternet_jax.training.processes import is_primary
from gaternet_jax.workdir import REPLACED

BEST_METRIC = "top1"
IN_FLIGHT = 2  # saves: one is being written, one waits; each holds a copy of the state in the host's memory


class CheckpointWriter:
    """Writes the checkpoints of one folder, in order, in a thread of its own, and reads the first one back.

    Several processes write in the calling thread instead, as far as Orbax does: it begins a save by sums over the
    devices, which all processes must start in the same order, and another thread would do so at any moment between
    training steps.

    Args:
        folder: of the checkpoints.
        keep_latest: how many of the latest are kept; the one with the best top-1 is kept besides.
        top1: of the checkpoints that are there and were evaluated, by step.
    """

    def __init__(self, folder: Path, keep_latest: int, top1: dict[int, float]):
        self._folder, self._keep = folder, _Keep(keep_latest, dict(top1))
        self._orbax = _open_orbax(folder, self._keep)
        self._thread = ThreadPoolExecutor(1, "checkpoints") if jax.process_count() == 1 else None
        if self._thread is not None:
            self._thread.submit(bool).result()  # starts it: one that Ctrl-C meets as it starts is never waited for
        self._in_flight: deque[Future[None]] = deque()
        self._first = True

    def save(self, step: int, parts: dict, metadata: dict) -> None:
        """Starts a save; returns once it is safe to change what `parts` holds, and no more than IN_FLIGHT go on.

        Args:
            step: its name.
            parts: trees of arrays, by name.
            metadata: JSON; the shapes of the model and the parts' checksums are added.

        Raises:
            UserError: this one or an earlier one cannot be written, e.g. because the disk is full, or not be read.
        """
        if metadata.get("metrics"):
            self._keep.top1[step] = metadata["metrics"][BEST_METRIC]
        with self._explained():
            if self._thread is None:
                if self._first:
                    self._write(step, parts, metadata)
                else:
                    metadata = _with(metadata, parts)
                    self._orbax.save_checkpointables_async(step, dict(parts), custom_metadata=metadata)
                return
            while self._in_flight and (self._in_flight[0].done() or len(self._in_flight) == IN_FLIGHT):
                self._in_flight.popleft().result()
            # The next step overwrites the arrays on the devices. Not jax.device_get: on CPUs it takes five times as
            # long, since it lets other threads go first at every array.
            copy = jax.tree.map(np.array, parts)
            self._in_flight.append(self._thread.submit(self._write, step, copy, metadata))

    def _write(self, step: int, parts: dict, metadata: dict) -> None:
        self._orbax.save_checkpointables(step, dict(parts), custom_metadata=_with(metadata, parts))
        if self._first:
            _read_back(self._folder / str(step), parts)
            self._first = False

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
            UserError: it cannot be written.
        """
        with self._explained():
            try:
                for save in self._in_flight:
                    save.result()
            finally:
                if self._thread is not None:
                    self._thread.shutdown()
                self._orbax.close()
            _delete_replaced(self._folder)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UserError:  # of `_read_back`: it says already what to do
            raise
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"a checkpoint cannot be written to {self._folder}: {reason}. The earlier ones are whole; make room, "
                "and the same command goes on from them"
            ) from error


def _read_back(path: Path, parts: dict) -> None:
    """Reads the first checkpoint back: a run whose checkpoints cannot be read is better ended at the first of them."""
    try:
        read_checkpoint(path, parts)
    except DamagedError as error:
        raise UserError(
            f"checkpoint {path.name} was written to {path.parent}, but cannot be read: {error}. Nothing would be left "
            "of this run; choose another --workdir, on other storage"
        ) from None


def _delete_replaced(folder: Path) -> None:
    """Deletes what was replaced, by a checkpoint that later ones may have replaced in turn."""
    if is_primary():
        latest = max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=-1)
        for path in folder.glob(f"*{REPLACED}"):
            if path.stem.isdecimal() and int(path.stem) <= latest:
                shutil.rmtree(path)


def _with(metadata: dict, parts: dict) -> dict:
    """Gives the metadata with what tells, when it is read, whether all is as it was written, and of which model."""
    metadata = metadata | {"shapes": shapes(parts["model"])}
    metadata["checksums"] = {name: checksum(part) for name, part in parts.items()}
    metadata["checksums"]["metadata"] = checksum_of_metadata(metadata)
    return metadata


def _open_orbax(folder: Path, keep: "_Keep") -> Any:
    return ocp.training.Checkpointer(
        str(folder),
        save_decision_policy=_Always(),
        preservation_policy=keep,
    )


class _Keep:
    """Keeps the latest few checkpoints, and the best (the later of equals).

    Args:
        latest: how many of the latest.
        top1: of the steps that were evaluated.
    """

    def __init__(self, latest: int, top1: dict[int, float]):
        self._latest, self.top1 = latest, top1

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        evaluated = [step for step in steps if step in self.top1]
        best = max(evaluated, key=lambda step: (self.top1[step], step), default=None)
        return [checkpoint.step in (best, *steps[-self._latest :]) for checkpoint in checkpoints]


class _Always:
    """Saves whenever it is asked: the training loop decides when to save."""

    def should_save(self, step, previous_steps, *, context) -> bool:
        del step, previous_steps, context
        return True
