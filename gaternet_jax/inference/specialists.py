"""Specialists: backbones for groups of images that open alike filters, exact for every image.

    images -> gater -> gates -> each image to the cheapest specialist that has all its open filters
                                (the whole network, where none has) -> masks for the rest -> logits, in order

They are made once, from the gates of calibration images. Their number, and how rare a filter may be in its group before
it is left out, are those with the least expected work, for images that were held out from the grouping.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gaternet_jax.gating import GateSite
from gaternet_jax.inference.compaction import check_gates
from gaternet_jax.inference.selection import count_per_site, widths_for

GROUPS = (1, 2, 3, 4, 6, 8, 10, 12, 16)  # numbers of specialists that are tried
RARE = (0.0, 0.01, 0.03, 0.1)  # a filter open for at most this fraction of its group is left out
TIERS = (1, 2)  # specialists of one tier have the same widths, hence one compiled program
DRAWS = 32  # batches of a simulation
CALL = 0.05  # of one more program, in the work of the whole network for an image; about, measured on a CPU


class Plan(NamedTuple):
    """Says which filters each specialist has."""

    keep: np.ndarray  # bool [specialists, G], the cheapest first
    work: float  # expected, of a batch, relative to the whole network's


def assign(gates: Any, keep: np.ndarray) -> np.ndarray:
    """Gives each image, of gates [N, G], the first specialist, of keep [specialists, G], that covers its open filters,
    int [N]; the number of specialists where none does."""
    # Of bools: after a product of floats the threads of NumPy's BLAS wait busily, and ONNX Runtime lacks the cores.
    misses = (np.asarray(gates) > 0) @ ~keep.T  # [N, specialists]
    covers = np.concatenate([~misses, np.ones((len(gates), 1), bool)], axis=1)
    return covers.argmax(1)


def plan_specialists(gates: Any, sites: Sequence[GateSite], work: Callable[[Any], float], batch_size: int) -> Plan:
    """Groups calibration images by their gates [N, G], for the least expected work of a batch.

    `work` gives the multiply-accumulates with some widths of the sites, relative to all. UserError: no image, or gates
    of another model.
    """
    check_gates(gates, sites)
    from sklearn.cluster import KMeans  # a second, for a mode that few use

    opened, rng = gates > 0, np.random.default_rng(0)
    shuffled = opened[rng.permutation(len(opened))]
    fitted, judged = shuffled[::2], shuffled[1::2] if len(shuffled) > 1 else shuffled
    batches = rng.integers(len(judged), size=(DRAWS, batch_size))

    def expected(keep: np.ndarray, costs: list[float]) -> float:
        groups = assign(judged, keep)[batches]  # [draws, batch]
        counts = (groups[..., None] == np.arange(len(keep) + 1)).sum(1)  # [draws, specialists + 1]
        return float((counts * np.array([*costs, 1.0]) + (counts > 0) * CALL).sum(1).mean())

    best = Plan(np.zeros((0, len(opened[0])), bool), 1.0)
    for number in (number for number in GROUPS if number <= len(np.unique(fitted, axis=0))):
        groups = KMeans(number, random_state=0).fit_predict(fitted.astype(np.float32))
        rates = np.stack([fitted[groups == group].mean(0) for group in range(number)])
        for rare, tiers in itertools.product(RARE, TIERS):
            keep, costs = _widen(rates, rates > rare, sites, tiers, work)
            total = expected(keep, costs) / (batch_size + CALL)
            if total < best.work - 0.01:  # a program more must be worth it
                best = Plan(keep, total)
    return best


def _widen(
    rates: np.ndarray, keep: np.ndarray, sites: Sequence[GateSite], tiers: int, work: Callable[[Any], float]
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
