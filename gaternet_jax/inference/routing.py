"""Variants of the backbone with some of the filters, and which of them runs an image: exact for every image.

    images -> gater -> gates -> the first variant, the cheapest first, that has all open filters
                                (the whole network, where none has) -> masks for the rest -> logits, in order

A specialist has filters of its own: those that a group of calibration images opens. How many there are, and how rare a
filter may be in its group before it is left out, are the numbers with the least expected work, for images that were
held out from the grouping. A profile has room for so many filters of each site; which, its program sees from the gates.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gaternet_jax.gating import GateSite

GROUPS = (1, 2, 3, 4, 6, 8, 10, 12, 16)  # numbers of specialists that are tried
RARE = (0.0, 0.01, 0.03, 0.1)  # a filter open for at most this fraction of its group is left out
TIERS = (1, 2)  # specialists of one tier have the same widths, hence one compiled program
DRAWS = 32  # batches of a simulation
CALL = 0.05  # of one more program, in the work of the whole network for an image; about, measured on a CPU

SHARES = (0.5, 1.0)  # of the images, those that open the fewest filters: each share has a profile
WORTH = 0.9  # of the whole network's multiply-accumulates, at most, for a profile

Widths = tuple[int, ...]  # of each site, how many filters
Work = Callable[[Widths], float]  # multiply-accumulates with some widths, relative to all


def first_covering(covers: np.ndarray) -> np.ndarray:
    """Gives each image the first variant that has all its open filters, of bool [N, variants], as int [N]; the number
    of variants where none has."""
    return np.logical_and.accumulate(~covers, axis=1).sum(1)


def have_all(keep: np.ndarray, opened: Any) -> np.ndarray:
    """Tells which specialists, of filters [specialists, G], have the open ones [N, G]; bool [N, specialists]."""
    return ~(opened @ ~keep.T)  # of floats, threads of NumPy's BLAS would wait busily, and ONNX Runtime lack the cores


def have_room(widths: np.ndarray, opened: np.ndarray, sites: Sequence[GateSite]) -> Any:
    """Tells which profiles, of widths [profiles, sites], have room for open filters [N, G]; bool [N, profiles]."""
    return (count_per_site(opened, sites)[:, None] <= widths).all(-1)


def plan_profiles(opened: np.ndarray, sites: Sequence[GateSite], work: Work) -> list[Widths]:
    """Chooses the widths of a few profiles, narrowest first, for filters that are open together, bool [N, G]."""
    counts = count_per_site(opened, sites)
    order = np.argsort(counts.sum(1), kind="stable")
    shares = (counts[order[: max(round(share * len(order)), 1)]] for share in SHARES)
    return [widths for widths in dict.fromkeys(widths_for(share, sites) for share in shares) if work(widths) <= WORTH]


def plan_specialists(
    gates: np.ndarray, sites: Sequence[GateSite], work: Work, batch_size: int
) -> tuple[np.ndarray, float]:
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
            keep, costs = _widen(rates, rates > rare, sites, tiers, work)
            chosen = first_covering(have_all(keep, judged))[batches]  # [draws, batch]
            counts = (chosen[..., None] == np.arange(number + 1)).sum(1)  # [draws, specialists + 1]
            total = (counts * np.array([*costs, 1.0]) + (counts > 0) * CALL).sum(1).mean() / (batch_size + CALL)
            if total < least - 0.01:  # a program more must be worth it
                best, least = keep, float(total)
    return best, least


def _widen(
    rates: np.ndarray, keep: np.ndarray, sites: Sequence[GateSite], tiers: int, work: Work
) -> tuple[np.ndarray, list[float]]:
    """Gives the specialists of a tier the same widths; returns them and their costs, the cheapest first."""
    needed = count_per_site(keep, sites)
    order = np.argsort(needed.sum(1), kind="stable")
    widened, costs = keep[order], []
    for tier in np.array_split(np.arange(len(order)), min(tiers, len(order))):
        widths = widths_for(needed[order[tier]], sites)
        costs += [work(widths)] * len(tier)
        for row, (site, width) in itertools.product(tier, zip(sites, widths, strict=True)):
            wanted = np.where(widened[row, site.gates], np.inf, rates[order[row], site.gates])
            widened[row, site.offset + np.argsort(-wanted, kind="stable")[:width]] = True  # the most often open
    return widened, costs


def widths_for(counts: np.ndarray, sites: Sequence[GateSite]) -> Widths:
    """Gives the rounded width of each site with room for some numbers of filters, int [N, sites]."""
    return tuple(round_up(int(count), site.size) for count, site in zip(counts.max(0), sites, strict=True))


def round_up(width: int, size: int) -> int:
    """Gives the next width, of a convolution of `size` filters, that is worth a program of its own: few, and even.

    Steps of 4 up to 16 filters, of 8 up to 64, of an eighth beyond; at least one step.
    """
    step = 4 if size <= 16 else max(8, size // 8)
    return min(-(-max(width, 1) // step) * step, size)


def count_per_site(opened: np.ndarray, sites: Sequence[GateSite]) -> np.ndarray:
    """Counts the open filters of each site, int [..., sites], of bool [..., G]."""
    return np.add.reduceat(opened, [site.offset for site in sites], axis=-1, dtype=int)
