"""Who computes a program: XLA, or ONNX Runtime on CPUs, whose convolutions are the faster ones there.

What an engine computes is a function of (prepared, *arrays), as `skip_closed` makes them; all arrays have the images of
a batch along their first axis.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from gaternet_jax.errors import UserError, check_choice

ENGINES = ("xla", "onnxruntime")

Array = Any  # of JAX or NumPy
Function = Callable[..., Any]  # of (prepared, *arrays) to a tuple of arrays
Engine = Callable[..., Sequence[Array]]  # of (rows, *arrays): computes the outputs for these rows of a batch
Jobs = list[tuple[Engine, np.ndarray]]  # engines, and the rows that each is to compute


class Batching(NamedTuple):
    """Says how a batch is run on a machine."""

    microbatch: int  # images that run together
    at_once: int = 1  # microbatches that run at the same time
    threads: int = 1  # of each; XLA has its own


def choose_engine(engine: str) -> str:
    """Chooses the engine for this machine: as given; for "auto" ONNX Runtime on CPUs where it is installed, else XLA.

    UserError: an engine that there is not, or not here.
    """
    installed = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    if engine == "auto":
        return "onnxruntime" if installed and jax.default_backend() == "cpu" else "xla"
    check_choice("engine", engine, ("auto", *ENGINES))
    if engine == "onnxruntime" and not installed:
        raise UserError("engine 'onnxruntime' needs onnx and onnxruntime: pip install -e '.[onnx]'; or take 'xla'")
    return engine


@dataclasses.dataclass(frozen=True)
class XLA:
    """Runs a function as XLA compiles it, once for each number of rows."""

    run: Function  # as of `by_rows`; engines that share it share its programs
    prepared: Any  # its first argument

    def __call__(self, rows: np.ndarray, *arrays: Array) -> Sequence[Array]:
        return self.run(self.prepared, rows, *arrays)


def by_rows(function: Function) -> Function:
    """Compiles a function of (prepared, *arrays) so that it takes the rows of its arrays from a batch on the device."""

    def run(prepared: Any, rows: Array, *arrays: Array) -> Any:
        return function(prepared, *(array[rows] for array in arrays))

    return jax.jit(run)


class OnnxRuntime:
    """Runs what `write_onnx` wrote, for any number of rows; UserError where ONNX Runtime does not."""

    def __init__(self, serialized: bytes, threads: int):
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        # Threads wait busily for the next operation, but not for the next call: that would take the cores from the
        # session that runs next, as the backbone's after the gater's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has its own for each reason
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"onnxruntime {onnxruntime.__version__} does not run this model: {reason}") from error
        self._names = [given.name for given in self._session.get_inputs()]

    def __call__(self, rows: np.ndarray, *arrays: Array) -> Sequence[Array]:
        feeds = zip(self._names, (np.asarray(array)[rows] for array in arrays), strict=True)
        return self._session.run(None, dict(feeds))


class Runner:
    """Runs batches in microbatches, so many at once.

    On a CPU the maps of a large batch leave the cache between one layer and the next, and a small program does not keep
    all cores busy: several small ones do better. Accelerators take the batch as it is. Microbatches are padded to the
    next of `sizes`, ascending, because each is compiled; if there are none, they are not.
    """

    def __init__(self, batching: Batching, sizes: Sequence[int] = ()):
        self.batching, self._sizes = batching, sizes
        self._threads = ThreadPoolExecutor(batching.at_once, "microbatch") if batching.at_once > 1 else None

    def __call__(self, jobs: Jobs, *arrays: Array) -> list[Array]:
        """Computes the outputs of `jobs`, which have each row of the batch's arrays once, in the order of the rows."""
        size = self.batching.microbatch
        if not self._sizes:  # as many for each thread
            size = min(size, -(-sum(len(rows) for _, rows in jobs) // self.batching.at_once))
        tasks = [(engine, rows[i : i + size]) for engine, rows in jobs for i in range(0, len(rows), size)]
        if self._threads is not None and len(tasks) > 1:
            found = list(self._threads.map(lambda task: self._compute(*task, *arrays), tasks))
        else:
            found = [self._compute(*task, *arrays) for task in tasks]
        order = np.argsort(np.concatenate([rows for _, rows in tasks]), kind="stable")
        joined = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return [array if len(tasks) == 1 else array[order] for array in joined]

    def _compute(self, engine: Engine, rows: np.ndarray, *arrays: Array) -> list[np.ndarray]:
        padded = np.resize(rows, next((size for size in self._sizes if size >= len(rows)), len(rows)))
        return [np.asarray(output)[: len(rows)] for output in engine(padded, *arrays)]  # as jax.device_get, but quicker


def few_sizes(microbatch: int) -> list[int]:
    """Lists sizes up to that of a microbatch, for groups of images: few programs, little padding."""
    sizes = {microbatch, *(size for power in range(12) for size in (2**power, 3 * 2**power))}
    return sorted(size for size in sizes if size <= microbatch)


def cores() -> int:
    """Counts the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
