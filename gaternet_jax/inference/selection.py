"""Which filters of a gated network stay, and which of those keep their gate."""

import dataclasses

import numpy as np

from gaternet_jax.errors import UserError
from gaternet_jax.models.gates import GateSite


@dataclasses.dataclass(frozen=True)
class SiteSelection:
    """The filters of one gated convolution that stay, the gated ones first.

    Attributes:
        kept: indices of the filters that stay.
        gated: how many of them, from the first, keep their gate; the others are always open.
    """

    kept: tuple[int, ...]
    gated: int

    @property
    def gates(self) -> np.ndarray:
        """Indices of the filters that keep their gate."""
        return np.array(self.kept[: self.gated], np.int64)


Selection = dict[str, SiteSelection]  # by the name of the site


def select(sites: tuple[GateSite, ...], keep: np.ndarray, gated: np.ndarray) -> Selection:
    """Makes a selection.

    A convolution keeps at least one filter, gated if all are to go: none is no convolution.

    Args:
        sites: of the model.
        keep: bool [G], filters that stay.
        gated: bool [G], filters that keep their gate, if they stay.
    """
    selection = {}
    for site in sites:
        stays, has_gate = keep[site.gates].copy(), gated[site.gates].copy()
        if not stays.any():
            stays[0] = has_gate[0] = True
        with_gate, without = np.flatnonzero(stays & has_gate), np.flatnonzero(stays & ~has_gate)
        selection[site.name] = SiteSelection((*with_gate.tolist(), *without.tolist()), len(with_gate))
    return selection


def everything(sites: tuple[GateSite, ...]) -> Selection:
    """All filters, all gated."""
    return {site.name: SiteSelection(tuple(range(site.size)), site.size) for site in sites}


def kept_gates(sites: tuple[GateSite, ...], selection: Selection) -> np.ndarray:
    """Positions of the remaining gates in the gate vector of the whole model, int64 [G']."""
    return np.concatenate([np.empty(0, np.int64), *(site.offset + selection[site.name].gates for site in sites)])


def covered(sites: tuple[GateSite, ...], selection: Selection) -> np.ndarray:
    """Which filters stay, bool [G]."""
    stays = np.zeros(sum(site.size for site in sites), bool)
    for site in sites:
        stays[site.offset + np.array(selection[site.name].kept)] = True
    return stays


def round_up(width: int, size: int) -> int:
    """The next width, of a convolution of `size` filters, that is worth a program of its own: few, and even.

    Steps of 4 up to 16 filters, of 8 up to 64, of an eighth beyond; at least one step.
    """
    step = 4 if size <= 16 else max(8, size // 8)
    return min(-(-max(width, 1) // step) * step, size)


def to_json(selection: Selection) -> dict:
    """For `from_json`."""
    return {name: {"kept": list(site.kept), "gated": site.gated} for name, site in selection.items()}


def from_json(content: dict, sites: tuple[GateSite, ...]) -> Selection:
    """Reads what `to_json` wrote.

    Raises:
        UserError: it is not a selection of these sites.
    """
    try:
        selection = {name: SiteSelection(tuple(site["kept"]), site["gated"]) for name, site in content.items()}
        sizes = {site.name: site.size for site in sites}
        for name, site in selection.items():
            distinct = sorted(set(site.kept))
            fits = len(distinct) == len(site.kept) > 0 and distinct[0] >= 0 and distinct[-1] < sizes[name]
            if not fits or not 0 <= site.gated <= len(site.kept):
                raise ValueError(f"filters of {name}, which has {sizes[name]}")
        if selection.keys() != sizes.keys():
            raise ValueError(f"convolutions {', '.join(sorted(sizes.keys() ^ selection.keys())[:3])}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the filters that were kept are not those of this model: {error}") from None
    return selection
