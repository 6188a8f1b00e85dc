"""The ways to run a network on batches of one size, on this machine: whole, or by variants with some of the filters.

    images -> gater -> gates -> the first variant, the cheapest first, that has all open filters
                                (the whole network, where none has) -> masks for the rest -> logits, in order

A specialist has filters of its own: those that a group of calibration images opens. How many there are, and how rare a
filter may be in its group before it is left out, are the numbers with the least expected work, for images that were
held out from the grouping. A profile has room for so many filters of each site; which, its program sees from the gates.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gaternet_jax.gating import GateSite
from gaternet_jax.inference.batching import Batching, Jobs, Runner, best_seconds, choose_batching, few_sizes
from gaternet_jax.inference.engines import Array, Engine
from gaternet_jax.inference.network import Network

GROUPS = (1, 2, 3, 4, 6, 8, 10, 12, 16)  # numbers of specialists that are tried
RARE = (0.0, 0.01, 0.03, 0.1)  # a filter open for at most this fraction of its group is left out
TIERS = (1, 2)  # specialists of one tier have the same widths, hence one compiled program
CALL = 0.05  # of one more program, in the work of the whole network for an image; about, measured on a CPU
SHARES = (0.5, 1.0)  # of the images, those that open the fewest filters: each share has a profile
WORTH = 0.9  # of the whole network's work, at most, for a profile
MEASURED = 8  # images, at most, where profiles run each alone
DRAWS = 64  # of batches, to plan for

Mode = Callable[[Array, int], list[Any]]  # normalised images [B, H, W, C], how many of them count; NumPy's `Outputs`
Widths = tuple[int, ...]  # of each site, how many filters
Work = Callable[[Widths], float]  # multiply-accumulates with some widths, relative to all


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
        self._engine = functools.cache(lambda kind: network.make(kind, threads=self.batching.threads))
        self.dense = functools.cache(lambda: self.whole(self.batching))

    def whole(self, batching: Batching) -> Mode:
        """Makes the mode that runs all filters whose gates are not fixed closed; of batches that are cut so."""
        run = Runner(batching, [batching.microbatch] if self.network.engine == "xla" else ())
        engine = self.network.make("whole", threads=batching.threads)
        return lambda images, count: run([(engine, np.arange(count))], images)

    def specialists(self, gates: np.ndarray) -> Mode:
        """Makes the mode that runs each image by a specialist, for gates like these, [N, G]."""
        network, threads = self.network, self.batching.threads
        keep, _ = plan_specialists(gates, network.model.gate_sites, network.work, len(self.example))
        engines = [network.make("backbone", filters, threads) for filters in keep]
        return self._routed(engines, functools.partial(have_all, keep))

    def dynamic(self, gates: Array) -> Mode:
        """Makes the mode that runs images by profiles with room for gates like these, [N, G].

        On CPUs image by image; on accelerators all images of a batch together, by what any of them opens.
        """
        network, sites, opened = self.network, self.network.model.gate_sites, gates > 0
        together = 1 if jax.default_backend() == "cpu" else self.batching.microbatch
        if together > 1:
            opened = opened[np.random.default_rng(0).integers(len(opened), size=(DRAWS, together))].any(1)

        def routed(profiles: Sequence[Widths]) -> Mode:
            widths, engines = np.array(profiles), [network.profile(widths) for widths in profiles]

            def covers(opened: Array) -> Any:
                counts = count_per_site(opened if together == 1 else opened.any(0, keepdims=True), sites)
                return (counts[:, None] <= widths).all(-1)

            return self._routed(engines, covers, together == 1)

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

    def _routed(self, variants: Sequence[Engine], covers: Callable[[Array], Any], alone: bool = False) -> Mode:
        """Decides the gates first, then has each image run by the first variant that covers its open filters.

        covers: of these, bool [count, G], tells which variants do, bool [count, variants], or [1, variants] for all.
        """
        if not variants:
            return self.dense()  # one program is quicker than two
        engines = [*variants, self._engine("backbone")]

        def routed(images: Array, count: int) -> list[Any]:
            gates, scores = self.gates(images, count)
            chosen = np.broadcast_to(first_covering(covers(gates > 0)), count)
            jobs: Jobs = []
            for number in np.unique(chosen):
                rows = np.flatnonzero(chosen == number)
                parts = rows[:, None] if alone and number < len(variants) else [rows]
                jobs += [(engines[number], part) for part in parts]
            return [*self._run(jobs, images, gates), gates, scores]

        return routed


def first_covering(covers: np.ndarray) -> np.ndarray:
    """Gives each image the first variant that has all its open filters, of bool [N, variants], as int [N]; the number
    of variants where none has."""
    return np.logical_and.accumulate(~covers, axis=1).sum(1)


def have_all(keep: np.ndarray, opened: np.ndarray) -> Any:
    """Tells which specialists, of filters [specialists, G], have the open ones [N, G]; bool [N, specialists]."""
    return ~(opened @ ~keep.T)  # of floats, threads of NumPy's BLAS would wait busily, and ONNX Runtime lack the cores


def plan_profiles(opened: np.ndarray, sites: Sequence[GateSite], work: Work) -> list[Widths]:
    """Chooses the widths of a few profiles, narrowest first, for filters that are open together, bool [N, G]."""
    counts = count_per_site(opened, sites)
    order = np.argsort(counts.sum(1), kind="stable")
    shares = (counts[order[: max(round(share * len(order)), 1)]] for share in SHARES)
    return [widths for widths in dict.fromkeys(widths_for(share, sites) for share in shares) if work(widths) <= WORTH]


def plan_specialists(gates: Array, sites: Sequence[GateSite], work: Work, batch_size: int) -> tuple[np.ndarray, float]:
    """Groups calibration images by their gates [N, G], for the least expected work of a batch.

    Returns:
        The filters of each specialist, bool [specialists, G], the cheapest first; the work, relative to the whole
        network's.
    """
    from sklearn.cluster import KMeans  # a second, for a mode that few use

    opened, rng = gates > 0, np.random.default_rng(0)
    shuffled = opened[rng.permutation(len(opened))]
    fitted, judged = shuffled[::2], shuffled[1::2] if len(shuffled) > 1 else shuffled
    batches = rng.integers(len(judged), size=(DRAWS, batch_size))
    best, least, different = np.zeros((0, opened.shape[1]), bool), 1.0, len(np.unique(fitted, axis=0))
    for number in (number for number in GROUPS if number <= different):
        groups = KMeans(number, random_state=0).fit_predict(fitted.astype(np.float32))
        rates = np.stack([fitted[groups == group].mean(0) for group in range(number)])
        for rare, tiers in itertools.product(RARE, TIERS):
            keep, costs = _equip(rates, rare, tiers, sites, work)
            chosen = first_covering(have_all(keep, judged))[batches]  # [draws, batch]
            counts = (chosen[..., None] == np.arange(number + 1)).sum(1)  # [draws, specialists + 1]
            total = (counts * np.array([*costs, 1.0]) + (counts > 0) * CALL).sum(1).mean() / (batch_size + CALL)
            if total < least - 0.01:  # a program more must be worth it
                best, least = keep, float(total)
    return best, least


def _equip(rates: Array, rare: float, tiers: int, sites: Sequence[GateSite], work: Work) -> tuple[Array, list[float]]:
    """Gives specialists the filters that are open at such rates, [groups, G], in their groups, those of a tier in the
    same widths; returns the filters and the costs, the cheapest first."""
    needed, keep, costs = count_per_site(rates > rare, sites), np.zeros(rates.shape, bool), []
    order = np.argsort(needed.sum(1), kind="stable")
    for tier in np.array_split(order, min(tiers, len(order))):
        widths = widths_for(needed[tier], sites)
        costs += [work(widths)] * len(tier)
        for row, (site, width) in itertools.product(tier, zip(sites, widths, strict=True)):
            keep[row, site.offset + np.argsort(-rates[row, site.gates], kind="stable")[:width]] = True
    return keep[order], costs


def widths_for(counts: np.ndarray, sites: Sequence[GateSite]) -> Widths:
    """Gives widths with room for some numbers of filters, int [N, sites], that are worth programs: few, and even.

    Steps of 4 for convolutions of up to 16 filters, of 8 up to 64, of an eighth beyond; at least one step.
    """
    sizes = np.array([site.size for site in sites])
    steps = np.where(sizes <= 16, 4, np.maximum(8, sizes // 8))
    return tuple(np.minimum(-(-np.maximum(counts.max(0), 1) // steps) * steps, sizes).tolist())


def count_per_site(opened: np.ndarray, sites: Sequence[GateSite]) -> np.ndarray:
    """Counts the open filters of each site, int [..., sites], of bool [..., G]."""
    return np.add.reduceat(opened, [site.offset for site in sites], axis=-1, dtype=int)
