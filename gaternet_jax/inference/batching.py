"""How a batch is cut into microbatches: by a short measurement, remembered in the user's cache folder.

On a CPU the maps of a large batch leave the cache between one layer and the next, and a small program does not keep all
cores busy: small networks want one thread for each of several microbatches, large ones all threads for one image.
Accelerators take the batch as it is.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gaternet_jax.files import write_file
from gaternet_jax.inference.engines import Array, Engine
from gaternet_jax.inference.network import Network

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # of this process
MICROBATCH_PIXELS = 8 * 32 * 32  # of all images of a microbatch, where nothing is measured
LARGE_PIXELS = 64 * 64  # images from this size on keep all cores busy one by one, where nothing is measured
ENOUGH_SECONDS, REPEATS = 0.3, 5  # of what is timed, at most

Jobs = list[tuple[Engine, np.ndarray]]  # engines, and the rows of a batch that each is to compute


class Batching(NamedTuple):
    """Says how a batch is run on a machine."""

    microbatch: int  # images that run together
    at_once: int = 1  # microbatches that run at the same time
    threads: int = 1  # of each; XLA has its own


class Runner:
    """Runs batches in microbatches, so many at once.

    Microbatches are padded to the next of `sizes`, ascending, because each is compiled; without sizes they are not.
    """

    def __init__(self, batching: Batching, sizes: Sequence[int] = ()):
        self.batching, self._sizes = batching, sizes
        self._map = ThreadPoolExecutor(batching.at_once, "microbatch").map if batching.at_once > 1 else map

    def __call__(self, jobs: Jobs, *arrays: Array) -> list[np.ndarray]:
        """Computes the outputs of `jobs`, which have each row of the batch's arrays once, in the order of the rows."""
        size = self.batching.microbatch
        if not self._sizes:  # as many for each thread
            size = min(size, -(-sum(len(rows) for _, rows in jobs) // self.batching.at_once))
        tasks = [(engine, rows[i : i + size]) for engine, rows in jobs for i in range(0, len(rows), size)]
        found = list(self._map(lambda task: self._compute(*task, *arrays), tasks))
        order = np.argsort(np.concatenate([rows for _, rows in tasks]))
        return [np.concatenate(parts)[order] for parts in zip(*found, strict=True)]

    def _compute(self, engine: Engine, rows: np.ndarray, *arrays: Array) -> list[np.ndarray]:
        padded = np.resize(rows, next((size for size in self._sizes if size >= len(rows)), len(rows)))
        return [np.asarray(output)[: len(rows)] for output in engine(padded, *arrays)]  # as jax.device_get, but quicker


def few_sizes(microbatch: int) -> list[int]:
    """Lists sizes up to that of a microbatch, for groups of images: few programs, little padding."""
    sizes = {microbatch, *(size for power in range(12) for size in (2**power, 3 * 2**power))}
    return sorted(size for size in sizes if size <= microbatch)


def candidates(engine: str, batch_size: int, image_size: int) -> list[Batching]:
    """Lists the ways to cut batches that may be fastest; the first one by a rule of thumb."""
    if jax.default_backend() != "cpu":
        return [Batching(batch_size)]
    share = -(-batch_size // CORES)
    usual = min(share, max(MICROBATCH_PIXELS // image_size**2, 1))

    def several(size: int, at_once: int) -> Batching:
        return Batching(size, min(-(-batch_size // size), at_once))

    if engine == "xla":  # while one microbatch waits, another goes on
        found = [several(usual, 2 * CORES), Batching(batch_size)]
    else:
        first = several(usual, CORES) if image_size**2 < LARGE_PIXELS else Batching(usual, 1, CORES)
        parallel = (several(min(size, share), CORES) for size in (2, 4, 8, 16))
        found = [first, *parallel, Batching(min(batch_size, 16), 1, CORES)]
    return list(dict.fromkeys(found)) if CORES > 1 else found[:1]


def choose_batching(network: Network, images: Array, make: Callable[[Batching], Callable] | None) -> Batching:
    """Chooses how batches of a network are cut.

    Args:
        images: a batch to measure with, [batch, size, size, channels].
        make: makes what runs so many of the images, for the fastest of the candidates; None: a rule of thumb decides.
    """
    found, engine = candidates(network.engine, *images.shape[:2]), network.engine
    if make is None or len(found) == 1:
        return found[0]
    version = importlib.metadata.version("jax" if engine == "xla" else engine)
    key = " ".join(map(str, (platform.node(), CORES, engine, version, *images.shape, network.layers("whole"))))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gaternet-jax" / "batching"
    path = folder / hashlib.sha256(key.encode()).hexdigest()[:32]
    with contextlib.suppress(OSError, ValueError, KeyError):  # nothing there, or nothing that was written here
        return {str(batching): batching for batching in found}[path.read_text(encoding="utf-8")]

    def seconds_per_image(batching: Batching) -> float:
        run, count = make(batching), min(len(images), batching.microbatch * batching.at_once)
        return best_seconds(lambda: run(images, count)) / count

    chosen = min(found, key=seconds_per_image)
    with contextlib.suppress(OSError):  # a folder that cannot be written only costs the measurement again
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, str(chosen), f".{os.getpid()}")
    return chosen


def best_seconds(run: Callable[[], Any]) -> float:
    """Measures the least seconds of a few calls, without the first, which compiles."""
    run()
    taken: list[float] = []
    while len(taken) < REPEATS and sum(taken) < ENOUGH_SECONDS:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)
