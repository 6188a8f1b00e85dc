"""Writing checkpoints (Orbax) beside the training loop; `checkpoint.py` says what they hold."""

import contextlib
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from gaternet_jax.errors import UserError

BEST_METRIC = "top1"
IN_FLIGHT = 2  # saves: one is being written, one waits; each holds a copy of the state in the host's memory


class CheckpointWriter:
    """Writes the checkpoints of one folder, in order, in a thread of its own.

    Several processes write in the calling thread instead, as far as Orbax does: it begins a save by sums over the
    devices, which all processes must start in the same order, and another thread would do so at any moment between
    training steps.

    Args:
        folder: of the checkpoints.
        keep_latest: how many of the latest are kept; the one with the best top-1 is kept besides.
    """

    def __init__(self, folder: Path, keep_latest: int):
        self._folder, self._orbax = folder, _open_orbax(folder, keep_latest)
        self._thread = ThreadPoolExecutor(1, "checkpoints") if jax.process_count() == 1 else None
        self._in_flight: deque[Future[None]] = deque()

    def save(self, step: int, parts: dict, metadata: dict, **options: Any) -> None:
        """Starts a save; returns once it is safe to change what `parts` holds, and no more than IN_FLIGHT go on.

        Args:
            step: its name.
            parts: trees of arrays, by name.
            metadata: JSON; the parts' checksums are added.
            options: of Orbax.

        Raises:
            UserError: this one or an earlier one cannot be written, e.g. because the disk is full.
        """
        with self._explained():
            if self._thread is None:
                self._orbax.save_checkpointables_async(step, parts, custom_metadata=_with(metadata, parts), **options)
                return
            while self._in_flight and (self._in_flight[0].done() or len(self._in_flight) == IN_FLIGHT):
                self._in_flight.popleft().result()
            # The next step overwrites the arrays on the devices. Not jax.device_get: on CPUs it takes five times as
            # long, since it lets other threads go first at every array.
            copy = jax.tree.map(np.array, parts)
            self._in_flight.append(self._thread.submit(self._write, step, copy, metadata, options))

    def _write(self, step: int, parts: dict, metadata: dict, options: dict) -> None:
        self._orbax.save_checkpointables(step, parts, custom_metadata=_with(metadata, parts), **options)

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

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"a checkpoint cannot be written to {self._folder}: {reason}. The earlier ones are whole; make room, "
                "and the same command goes on from them"
            ) from error


def checksum(tree: Any) -> int:
    """CRC-32 of all arrays of a tree, in order: what was read is what was written."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(jax.device_get(leaf)).tobytes(), total)
    return total


def _with(metadata: dict, parts: dict) -> dict:
    return metadata | {"checksums": {name: checksum(part) for name, part in parts.items()}}


def _open_orbax(folder: Path, keep_latest: int) -> Any:
    policies: Any = ocp.training.preservation_policies
    return ocp.training.Checkpointer(
        str(folder),
        save_decision_policy=_Always(),
        preservation_policy=policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep_latest),
                policies.BestN(
                    n=1,
                    get_metric_fn=lambda metrics: metrics[BEST_METRIC],
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        ),
    )


class _Always:
    """The training loop decides when to save."""

    def should_save(self, step, previous_steps, *, context) -> bool:
        del step, previous_steps, context
        return True
