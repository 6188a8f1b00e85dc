"""Which filters are open, counted and put in order within a compiled program; and their parts of kernels.

A network of small convolutions runs hundreds of such operations for an image, so that each microsecond counts.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gaternet_jax.models.gates import Gates, GateSite, LocalGates


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OpenFilters:
    """The gates of one site in a pass, within tables of all sites of its size: a branch of `lax.switch` takes what it
    needs from these, where slices for every site would be operations of their own.

    Attributes:
        all_gates: [B, G].
        orders: for each site all filters, those first that are open for any image, int32 [sites, filters].
        numbers: how many those are, int32 [sites].
        offset: where the site's gates begin.
        row: of the site.
    """

    all_gates: jax.Array
    orders: jax.Array
    numbers: jax.Array
    offset: int = dataclasses.field(default=0, metadata=dict(static=True))
    row: int = dataclasses.field(default=0, metadata=dict(static=True))

    @property
    def gates(self) -> jax.Array:
        """[B, filters]."""
        return self.all_gates[:, self.offset : self.offset + self.orders.shape[1]]

    @property
    def order(self) -> jax.Array:
        """int32 [filters]."""
        return self.orders[self.row]

    @property
    def number(self) -> jax.Array:
        """int32 []."""
        return self.numbers[self.row]

    def of(self, filters: jax.Array | None) -> jax.Array:
        """Gates, 0 or 1, of all filters (None) or of the first ones in their order, [B, filters]."""
        if filters is None:
            return self.gates
        if len(self.all_gates) == 1:  # those that are open come first; this needs no gathering
            return (jnp.arange(filters.size) < self.number)[None]
        return self.gates[:, filters]


def find_open(gates: Gates, site: GateSite, alike: tuple[int, ...]) -> OpenFilters:
    """Of a site. Every chain asks for the orders of all sites of one size: XLA finds them once."""
    assert gates is not None
    if isinstance(gates, LocalGates):
        of_site = gates.of(site)
        return OpenFilters(of_site, *open_first((of_site > 0).any(0)[None]))
    opened = (gates > 0).any(0)[np.add.outer(alike, np.arange(site.size))]  # [sites, filters]
    return OpenFilters(gates, *open_first(opened), site.offset, alike.index(site.offset))


def open_first(opened: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The filters of each site, those first that are open, else in order.

    Counts by a product and scatters: on CPUs a sort took up to ten times as long.

    Args:
        opened: bool [sites, filters].

    Returns:
        int32 [sites, filters]; how many are open, int32 [sites].
    """
    sites, filters = opened.shape
    numbers = opened.sum(1, dtype=jnp.int32)
    before = opened.astype(jnp.float32) @ jnp.triu(jnp.ones((filters, filters), jnp.float32), 1)  # open ones
    before, index = before.astype(jnp.int32), jnp.arange(filters)[None]
    places = jnp.where(opened, before, numbers[:, None] + index - before)
    orders = jnp.zeros((sites, filters), jnp.int32).at[jnp.arange(sites)[:, None], places]
    return orders.set(index, unique_indices=True, mode="promise_in_bounds"), numbers


def take_inputs(kernel: jax.Array, channels: jax.Array) -> jax.Array:
    """kernel[:, :, channels], as a gather of rows: that of four dimensions took XLA twice as long."""
    height, width, inputs, filters = kernel.shape
    rows = jnp.arange(height * width)[:, None] * inputs + channels[None]
    taken = kernel.reshape(-1, filters).at[rows.ravel()].get(mode="promise_in_bounds")
    return taken.reshape(height, width, channels.size, filters)


def take_outputs(kernel: jax.Array, filters: jax.Array) -> jax.Array:
    """kernel[..., filters], as a gather of columns; see `take_inputs`."""
    taken = kernel.reshape(-1, kernel.shape[-1]).at[:, filters].get(mode="promise_in_bounds")
    return taken.reshape(*kernel.shape[:-1], filters.size)
