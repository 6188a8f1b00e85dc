"""How many filters of each site."""

from collections.abc import Sequence

import numpy as np

from gaternet_jax.gating import GateSite


def round_up(width: int, size: int) -> int:
    """Gives the next width, of a convolution of `size` filters, that is worth a program of its own: few, and even.

    Steps of 4 up to 16 filters, of 8 up to 64, of an eighth beyond; at least one step.
    """
    step = 4 if size <= 16 else max(8, size // 8)
    return min(-(-max(width, 1) // step) * step, size)


def widths_for(counts: np.ndarray, sites: Sequence[GateSite]) -> tuple[int, ...]:
    """Gives the rounded width of each site with room for some numbers of filters, int [..., sites]."""
    most = counts.reshape(-1, len(sites)).max(0)
    return tuple(round_up(int(count), site.size) for count, site in zip(most, sites, strict=True))


def count_per_site(keep: np.ndarray, sites: Sequence[GateSite]) -> np.ndarray:
    """Counts the filters kept of each site, int [..., sites], of bool [..., G]."""
    return np.stack([keep[..., site.gates].sum(-1) for site in sites], -1)
