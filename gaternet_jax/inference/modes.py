"""The ways to run a network on batches of one size, on this machine."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gaternet_jax.inference.batching import choose_batching, usual_batching
from gaternet_jax.inference.dynamic import Dynamic
from gaternet_jax.inference.engines import Array, Batching, Engine, Jobs, Runner, few_sizes
from gaternet_jax.inference.network import Network
from gaternet_jax.inference.specialists import assign, plan_specialists
from gaternet_jax.models.gaternet import Outputs

TRIALS = 5  # of what is timed; the median counts

Mode = Callable[[Array, int], Outputs]  # normalised images [B, H, W, C], how many of them count; arrays of NumPy


class Modes:
    """Makes the ways to run a network.

    Args:
        network: the model's programs.
        example: a batch of normalised images, to measure with.
        tune: whether to measure how batches are best cut; a rule of thumb decides otherwise.
    """

    def __init__(self, network: Network, example: Array, tune: bool = True):
        self.network, self.example, self._tune = network, example, tune
        if tune:
            self.batching = choose_batching(network.engine, example, network.description, self.whole)
        else:
            self.batching = usual_batching(network.engine, *example.shape[:2])
        sizes = few_sizes(self.batching.microbatch) if network.engine == "xla" else ()
        self._groups = Runner(self.batching, sizes)

    def whole(self, batching: Batching | None = None) -> Mode:
        """Makes the mode that runs all filters whose gates are not fixed closed; of batches that are cut so."""
        batching = batching or self.batching
        run = Runner(batching, [batching.microbatch] if self.network.engine == "xla" else ())
        engine = self.network.make("whole", threads=batching.threads)
        return lambda images, count: Outputs(*run([(engine, np.arange(count))], images))

    def specialists(self, gates: np.ndarray) -> Mode:
        """Makes the mode of specialists.py, for gates like these, [N, G]."""
        network = self.network
        keep = plan_specialists(gates, network.model.gate_sites, network.work, len(self.example)).keep
        engines = [network.make("backbone", filters, self.batching.threads) for filters in (*keep, None)]

        def jobs(gates: np.ndarray) -> Jobs:
            groups = assign(gates, keep)
            return [(engines[group], np.flatnonzero(groups == group)) for group in np.unique(groups)]

        return self._routed(jobs)

    def dynamic(self, gates: np.ndarray) -> Mode:
        """Makes the mode of dynamic.py; its profiles have room for gates like these, [N, G]."""
        made = Dynamic(self.network, gates, self.batching, self._seconds if self._tune else None)
        return self._routed(made) if made.profiles else self.whole()  # one program is quicker than two

    def gates(self, images: Array, count: int) -> list[Array]:
        """Computes gates and gate scores, [count, G] each."""
        return self._groups([(self._gater, np.arange(count))], images)

    @functools.cached_property
    def _gater(self) -> Engine:
        return self.network.make("gater", threads=self.batching.threads)

    def _routed(self, jobs: Callable[[np.ndarray], Jobs]) -> Mode:
        """Decides the gates first, then has each image run by the engine that suits them."""

        def routed(images: Array, count: int) -> Outputs:
            gates, scores = self.gates(images, count)
            (logits,) = self._groups(jobs(gates), images, gates)
            arrays: list[Any] = [logits, gates, scores]
            return Outputs(*arrays)

        return routed

    def _seconds(self, jobs: Jobs, gates: np.ndarray) -> float:
        images = self.example[: len(gates)]
        return median_seconds(lambda: self._groups(jobs, images, gates))


def median_seconds(run: Callable[[], Any]) -> float:
    """Measures the median seconds of a call, without the first, which compiles."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))
