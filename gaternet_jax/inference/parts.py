"""A batch in parts that run at once, each in a thread.

On a CPU the maps of a large batch leave the cache between one layer and the next, and a small program does not keep all
cores busy: several small ones do better. Accelerators take the batch as it is.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

PART_PIXELS = 8 * 32 * 32  # of all images of a part, at most; as measured on two cores with 1 MiB of level-2 cache each
PER_CORE = 2  # parts that run at once: while one waits, another goes on

Array = Any  # of JAX or NumPy


@dataclasses.dataclass(frozen=True)
class Parts:
    """How a batch is cut.

    Attributes:
        size: images of a part.
        at_once: parts that run at the same time.
    """

    size: int
    at_once: int


def choose_parts(batch_size: int, image_size: int, one_by_one: bool = False) -> Parts:
    """For this machine.

    Args:
        batch_size: images.
        image_size: pixels.
        one_by_one: where a batch is cut at all, into single images.
    """
    if jax.default_backend() != "cpu":
        return Parts(batch_size, 1)
    cores = os.cpu_count() or 1
    size = 1 if one_by_one else min(-(-batch_size // cores), max(PART_PIXELS // image_size**2, 1))
    return Parts(size, min(-(-batch_size // size), PER_CORE * cores))


class PartsRunner:
    """Runs a function of some images of a batch on all of them.

    Args:
        parts: how a batch is cut.
    """

    def __init__(self, parts: Parts):
        self.parts = parts
        self._threads = ThreadPoolExecutor(parts.at_once, "parts") if parts.at_once > 1 else None

    def __call__(self, run: Callable[[Array, np.ndarray], Any], images: Array, count: int) -> Any:
        """The arrays that `run(images, chosen)` gives, chosen being indices, of the first `count` images."""
        size = self.parts.size
        chosen = [np.minimum(np.arange(start, start + size), count - 1) for start in range(0, count, size)]
        if len(chosen) > 1:
            images = jax.device_put(images)  # once, not with every part

        def run_part(part: np.ndarray) -> Any:  # jax.device_get takes 0.2 ms longer
            return jax.tree.map(np.asarray, run(images, part))

        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *self.map(run_part, chosen))

    def map(self, function: Callable, arguments: Iterable[Any]) -> list[Any]:
        """As the built-in, so many at once."""
        return list((map if self._threads is None else self._threads.map)(function, arguments))
