"""Writes the shards of a dataset in parallel, each whole or not at all. Worker processes import this: no JAX here."""

import json
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from array_record.python.array_record_module import ArrayRecordWriter

from gaternet_jax.errors import UserError
from gaternet_jax.files import whole_file, write_file
from gaternet_jax.progress import progress_bar
from gaternet_jax.signals import interruptible, spared_children

POLL_SECONDS = 0.2  # between looks at the workers' progress


class Corrupt(NamedTuple):
    """Names an image that cannot be stored, and says why."""

    path: str
    reason: str


class Examples(Protocol):
    """Yields what one shard will hold: tf.Examples, serialized, or `Corrupt` in place of one. Can be pickled."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes | Corrupt]: ...


class Written(NamedTuple):
    """Says what a shard holds: number of records, their bytes, and what was left out."""

    records: int
    num_bytes: int
    corrupt: list[Corrupt]


@dataclass(frozen=True)
class Shard:
    """Describes a shard to write: the ArrayRecord file, the note that says what it holds, and its examples."""

    path: Path
    note: Path
    examples: Examples

    def written(self) -> Written | None:
        """Reads what the finished shard holds; None if it is not finished."""
        if not (self.path.exists() and self.note.exists()):
            return None
        records, num_bytes, corrupt = json.loads(self.note.read_text())
        return Written(records, num_bytes, [Corrupt(*entry) for entry in corrupt])


def write_shards(shards: list[Shard], *, done: int, workers: int, title: str, unit: str) -> None:
    """Writes shards, with a progress bar; `Shard.written` then tells what they hold.

    Args:
        shards: those to write.
        done: examples in shards that are there already, for the bar.
        workers: processes; 1 works in this one.
        title, unit: of the bar.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; finished shards stay.
        UserError: a shard cannot be written, or its examples not be read, or a worker died.
    """
    total = done + sum(len(shard.examples) for shard in shards)
    with progress_bar(title, total, unit=unit, initial=done) as bar, interruptible() as asked:
        if workers == 1 or len(shards) <= 1:
            _write_here(shards, bar, asked)
        else:
            _write_in_workers(shards, min(workers, len(shards)), bar, asked)


def _write_here(shards: list[Shard], bar: Any, asked: Callable[[], bool]) -> None:
    def tick():
        if asked():
            raise KeyboardInterrupt
        bar.update()

    for shard in shards:
        write_shard(shard, tick)


def _write_in_workers(shards: list[Shard], workers: int, bar: Any, asked: Callable[[], bool]) -> None:
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit the threads of JAX
    counter, stop = spawn.Value("q", 0), spawn.Event()
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin_worker, initargs=(counter, stop))
    try:
        with spared_children():  # the parent decides
            pending = {pool.submit(_write_in_worker, shard) for shard in shards}
        while pending:
            finished, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            bar.update(bar.initial + counter.value - bar.n)
            if asked():
                raise KeyboardInterrupt
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, perhaps for want of memory; the same command goes on with the shards that are "
            "missing, with --workers=1 in one process"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_progress: Any = None  # in a worker: its pool's counter and stop event


class _Stopped(Exception):
    """Says that the pool is being shut down."""


def _begin_worker(counter: Any, stop: Any) -> None:
    global _progress
    _progress = counter, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that was killed tells nobody; without this, its workers would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _write_in_worker(shard: Shard) -> None:
    counter, stop = _progress

    def tick():
        if stop.is_set():
            raise _Stopped
        with counter.get_lock():
            counter.value += 1

    write_shard(shard, tick)


def write_shard(shard: Shard, tick: Callable[[], None]) -> None:
    """Writes a shard under another name, then its note, then gives it its name.

    Args:
        tick: called after each example; what it raises ends the writing.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    records, num_bytes, corrupt = 0, 0, []
    try:
        with whole_file(shard.path, f".part-{os.getpid()}") as part:
            writer = ArrayRecordWriter(str(part), "group_size:1")  # as TFDS writes them: every record by itself
            for example in shard.examples:
                if isinstance(example, Corrupt):
                    corrupt.append(example)
                else:
                    writer.write(example)
                    records, num_bytes = records + 1, num_bytes + len(example)
                tick()
            writer.close()
            with part.open("rb") as file:
                os.fsync(file.fileno())  # a power cut after the renaming must not leave an empty file
            write_file(shard.note, json.dumps([records, num_bytes, corrupt]))
    except (OSError, RuntimeError) as error:  # ArrayRecord's are RuntimeErrors
        raise unwritable(shard.path.parent, error) from None


def unwritable(folder: Path, error: Exception) -> UserError:
    """Makes the error to raise when `folder` cannot be written to."""
    # ArrayRecord's messages go on with offsets and the like, after semicolons.
    reason = error.strerror if isinstance(error, OSError) else str(error).partition(";")[0]
    return UserError(
        f"cannot write to {folder}: {reason}; make room there, after which the same command goes on, or give a folder "
        "that you may write to with --data_dir"
    )
