"""How many filters of each site, and which."""

from collections.abc import Sequence

import numpy as np

from gaternet_jax.gating import GateSite


def round_up(width: int, size: int) -> int:
    """The next width, of a convolution of `size` filters, that is worth a program of its own: few, and even.

    Steps of 4 up to 16 filters, of 8 up to 64, of an eighth beyond; at least one step.
    """
    step = 4 if size <= 16 else max(8, size // 8)
    return min(-(-max(width, 1) // step) * step, size)


def count_per_site(keep: np.ndarray, sites: Sequence[GateSite]) -> np.ndarray:
    """Filters kept of each site, int [..., sites], of bool [..., G]."""
    return np.stack([keep[..., site.gates].sum(-1) for site in sites], -1)


def fill(keep: np.ndarray, widths: np.ndarray, sites: Sequence[GateSite], open_rate: np.ndarray) -> np.ndarray:
    """Adds the filters that are open most often until each site has so many.

    Args:
        keep: bool [G].
        widths: int [sites].
        sites: of the model.
        open_rate: [G], breaks ties by order.
    """
    filled = keep.copy()
    for site, width in zip(sites, widths, strict=True):
        wanted = np.where(keep[site.gates], np.inf, open_rate[site.gates])
        filled[site.offset + np.argsort(-wanted, kind="stable")[: max(int(width), keep[site.gates].sum())]] = True
    return filled


def at_least_one(keep: np.ndarray, sites: Sequence[GateSite]) -> np.ndarray:
    """Keeps the first filter where a site would have none: none is no convolution."""
    kept = keep.copy()
    for site in sites:
        kept[site.offset] |= not kept[site.gates].any()
    return kept


def channels_of(keep: np.ndarray, sites: Sequence[GateSite]) -> dict[str, np.ndarray]:
    """Numbers of the kept filters of each site, by its name."""
    return {site.name: np.flatnonzero(keep[site.gates]) for site in sites}
