"""Which filter has which gate: the one table that training, inference and analysis read."""

from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from gaternet_jax.errors import check_choice
from gaternet_jax.gating.gate import GateSite, gate
from gaternet_jax.gating.local import LocalPass


def group_gates(sites: Sequence[GateSite], by: Literal["unit", "stage"]) -> dict[str, np.ndarray]:
    """Lists the numbers of the gates of each unit or stage, in forward order."""
    check_choice("group of gates", by, ("unit", "stage"))
    groups: dict[str, list[np.ndarray]] = {}
    for site in sites:
        groups.setdefault(getattr(site, by), []).append(np.arange(site.offset, site.offset + site.size))
    return {name: np.concatenate(parts) for name, parts in groups.items()}


class GateTable:
    """Hands out gate sites while a backbone is built, in forward order."""

    def __init__(self) -> None:
        self.sites: tuple[GateSite, ...] = ()

    def add(self, name: str, size: int) -> GateSite:
        """Appends a site of `size` gates behind those handed out so far."""
        site = GateSite(name, sum(site.size for site in self.sites), size)
        self.sites += (site,)
        return site


# What a backbone takes: the gate vector [B, G], or the gates of a locally gated pass; None for a plain network.
Gates = jax.Array | LocalPass | None


def apply_gates(maps: jax.Array, gates: Gates, site: GateSite | None) -> jax.Array:
    """Computes O_i = maps_i * g_i: a gate of 0 replaces the feature map by zeros (GaterNet eq. 5).

    Args:
        maps: feature maps [B, H, W, C]; C is site.size.
        gates: the gates of this pass.
        site: which gates these maps have; None leaves them as they are.

    Raises:
        ValueError: the maps are gated and no gates were given.
    """
    if site is None:
        return maps
    if gates is None:
        raise ValueError(f"{site.name} is gated, but no gates were given; pass gates of shape [B, G]")
    of_site = gates.of(site) if isinstance(gates, LocalPass) else gates[:, site.gates]
    return gate(maps, of_site, site.name)
