"""The ways to run a network on batches of one size, on this machine."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gaternet_jax.inference.batching import Batching, Jobs, Runner, best_seconds, choose_batching, few_sizes
from gaternet_jax.inference.engines import Array, Engine
from gaternet_jax.inference.network import Network
from gaternet_jax.inference.routing import Widths, first_covering, have_all, have_room, plan_profiles, plan_specialists

DRAWS = 64  # of images that run together, where a profile is to have room for what any of them opens
MEASURED = 8  # images, at most, where each runs alone

Mode = Callable[[Array, int], list[Any]]  # normalised images [B, H, W, C], how many of them count; NumPy's `Outputs`


class Modes:
    """Makes the ways to run a network.

    Args:
        network: the model's programs.
        example: a batch of normalised images, to measure with.
        tune: measures how batches are best cut and which profiles are worth it; a rule of thumb decides otherwise.
    """

    def __init__(self, network: Network, example: Array, tune: bool = True):
        self.network, self.example, self._tune = network, example, tune
        self.batching = choose_batching(network, example, self.whole if tune else None)
        self._run = Runner(self.batching, few_sizes(self.batching.microbatch) if network.engine == "xla" else ())
        self._make = functools.partial(network.make, threads=self.batching.threads)
        self._engine = functools.cache(self._make)

    def whole(self, batching: Batching | None = None) -> Mode:
        """Makes the mode that runs all filters whose gates are not fixed closed; of batches that are cut so."""
        batching = batching or self.batching
        run = Runner(batching, [batching.microbatch] if self.network.engine == "xla" else ())
        engine = self.network.make("whole", threads=batching.threads)
        return lambda images, count: run([(engine, np.arange(count))], images)

    def make(self, mode: str, gates: Callable[[], np.ndarray]) -> Mode:
        """Makes a mode of the `Predictor`; `gates` computes those that it is to learn of, [N, G]."""
        if mode in ("specialists", "dynamic"):
            return getattr(self, mode)(gates())
        return self.whole()

    def specialists(self, gates: np.ndarray) -> Mode:
        """Makes the mode that runs each image by a specialist (routing.py), for gates like these, [N, G]."""
        network = self.network
        keep, _ = plan_specialists(gates, network.model.gate_sites, network.work, len(self.example))
        return self._routed([self._make("backbone", filters) for filters in keep], functools.partial(have_all, keep))

    def dynamic(self, gates: Array) -> Mode:
        """Makes the mode that runs images by profiles (routing.py) with room for gates like these, [N, G].

        On CPUs image by image; on accelerators all images of a batch together, by what any of them opens.
        """
        network, sites, opened = self.network, self.network.model.gate_sites, gates > 0
        together = 1 if jax.default_backend() == "cpu" else self.batching.microbatch
        if together > 1:
            opened = opened[np.random.default_rng(0).integers(len(opened), size=(DRAWS, together))].any(1)

        def routed(profiles: Sequence[Widths]) -> Mode:
            def covers(opened: Array) -> np.ndarray:
                return have_room(np.array(profiles), opened if together == 1 else opened.any(0, keepdims=True), sites)

            return self._routed([network.profile(widths) for widths in profiles], covers, together == 1)

        profiles = plan_profiles(opened, sites, network.work)
        if not self._tune:
            return routed(profiles)
        count = min(len(self.example), MEASURED if together == 1 else together)
        chosen = itertools.product((True, False), repeat=len(profiles))
        ways = [routed(list(itertools.compress(profiles, which))) for which in chosen]
        return min(ways, key=lambda run: best_seconds(lambda: run(self.example, count)))

    def gates(self, images: Array, count: int) -> list[np.ndarray]:
        """Computes gates and gate scores, [count, G] each."""
        return self._run([(self._engine("gater"), np.arange(count))], images)

    def _routed(self, variants: Sequence[Engine], covers: Callable[[Array], np.ndarray], alone: bool = False) -> Mode:
        """Decides the gates first, then has each image run by the first variant that covers its open filters.

        covers: of these, bool [count, G], tells which variants do, bool [count, variants], or [1, variants] for all.
        """
        if not variants:
            return self.whole()  # one program is quicker than two
        engines = [*variants, self._engine("backbone")]

        def routed(images: Array, count: int) -> list[Any]:
            gates, scores = self.gates(images, count)
            chosen = np.broadcast_to(first_covering(covers(gates > 0)), count)
            jobs: Jobs = []
            for number in np.unique(chosen):
                jobs += _jobs(engines[number], np.flatnonzero(chosen == number), alone and number < len(variants))
            return [*self._run(jobs, images, gates), gates, scores]

        return routed


def _jobs(engine: Engine, rows: np.ndarray, alone: bool) -> Jobs:
    """Lists what an engine has to do for some images: each alone, or all together."""
    return [(engine, part) for part in (rows[:, None] if alone else [rows])]
