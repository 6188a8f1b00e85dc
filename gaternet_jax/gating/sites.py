"""Which filter has which gate: the one table that training, inference and analysis read."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from gaternet_jax.gating.gate import gate


@dataclasses.dataclass(frozen=True)
class GateSite:
    """Tells which gates a convolution has: filter i of `name` is multiplied by gate `offset + i`.

    Attributes:
        name: path of the gated convolution in the backbone, e.g. "stage2.block1.conv2".
        offset: index of its first gate in the gate vector.
        size: number of its gates.

    Example:
        >>> gx.GateSite("stage1.block1.conv2", offset=16, size=16).gates
        slice(16, 32, None)
    """

    name: str
    offset: int
    size: int

    @property
    def gates(self) -> slice:
        """Says where this site's gates stand in the gate vector."""
        return slice(self.offset, self.offset + self.size)

    @property
    def unit(self) -> str:
        """Its block: "stage2.block1" of "stage2.block1.conv2" and of "stage2.block1.branch1.conv2"."""
        return ".".join(self.name.split(".")[:-1][:2])

    @property
    def stage(self) -> str:
        """Its stage: "stage2" of "stage2.block1.conv2", "block1" of "block1_layer3.conv1"."""
        return self.name.split(".")[0].split("_")[0]


def group_gates(sites: Sequence[GateSite], by: Literal["unit", "stage"]) -> dict[str, np.ndarray]:
    """Numbers of the gates of each unit or stage, in forward order."""
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


class LocalGates(abc.ABC):
    """Gates that blocks decide for themselves while the image passes (gating/local.py)."""

    @abc.abstractmethod
    def of(self, site: GateSite) -> jax.Array:
        """The gates of a site, [B, site.size]."""


# What a backbone takes: the gate vector [B, G], or the gates of a locally gated pass; None for a plain network.
Gates = jax.Array | LocalGates | None


def apply_gates(maps: jax.Array, gates: Gates, site: GateSite | None) -> jax.Array:
    """O_i = maps_i * g_i: a gate of 0 replaces the feature map by zeros (GaterNet eq. 5).

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
    of_site = gates.of(site) if isinstance(gates, LocalGates) else gates[:, site.gates]
    return gate(maps, of_site, site.name)
