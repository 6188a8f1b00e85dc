"""Which filter has which gate: the one table that training, inference and analysis read."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class GateSite:
    """The gates of one convolution: filter i of `name` is multiplied by gate `offset + i`.

    Attributes:
        name: path of the gated convolution in the backbone, e.g. "stage2.block1.conv2".
        offset: index of its first gate in the gate vector.
        size: number of its filters, hence of its gates.
    """

    name: str
    offset: int
    size: int

    @property
    def gates(self) -> slice:
        """Where this site's gates stand in the gate vector."""
        return slice(self.offset, self.offset + self.size)


class GateTable:
    """Hands out gate sites while a backbone is built, in forward order."""

    def __init__(self) -> None:
        self.sites: tuple[GateSite, ...] = ()

    def add(self, name: str, size: int) -> GateSite:
        """Appends a site of `size` gates behind those handed out so far."""
        site = GateSite(name, offset=self.num_gates, size=size)
        self.sites += (site,)
        return site

    @property
    def num_gates(self) -> int:
        return sum(site.size for site in self.sites)


def apply_gates(maps: jax.Array, gates: jax.Array | None, site: GateSite | None) -> jax.Array:
    """O_i = maps_i * g_i: a gate of 0 replaces the feature map by zeros (GaterNet eq. 5).

    Args:
        maps: feature maps [B, H, W, site.size].
        gates: the whole gate vector [B, G].
        site: which gates these maps have; None leaves them as they are.
    """
    if site is None:
        return maps
    if gates is None:
        raise ValueError(f"{site.name} is gated, but no gates were given; pass gates of shape [B, G]")
    return maps * gates[:, None, None, site.gates].astype(maps.dtype)
