"""Multiply-accumulates of any function, dense and with given gates.

Counted: convolutions and matrix products of what depends on the inputs, one multiply-accumulate per weight and output
position, padding included. Not counted: additions, normalisation, activations, pooling, gates. A closed gate saves
what `skip_closed` skips for it: the channel itself where it is computed for that gate only, and its share of every
layer that reads it, also where it comes as a constant (through BatchNorm and ReLU, in a DenseNet).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gaternet_jax.gating.explain import layers_of
from gaternet_jax.gating.gate import Site
from gaternet_jax.gating.plan import Plan
from gaternet_jax.gating.skip import plan_of


class MacCount:
    """Counts multiply-accumulates; `count_macs` makes one.

    Attributes:
        sites: the gates, in order.
        layers: the convolutions and products, in the order in which they run.
        dense: multiply-accumulates with all gates open.
    """

    def __init__(self, plan: Plan):
        self.sites: tuple[Site, ...] = plan.program.sites
        self.layers = layers_of(plan)
        self.dense = sum(layer.macs for layer in self.layers)

    def fraction(self, gates: jax.Array) -> jax.Array:
        """Multiply-accumulates with these gates relative to the dense ones; differentiable.

        Args:
            gates: [B, G] of all sites, one behind the other, in [0, 1]; a fraction counts as the expected number of
                open gates.

        Returns:
            float32 [B].
        """
        total = sum(site.size for site in self.sites)
        if gates.ndim != 2 or gates.shape[1] != total:
            raise ValueError(
                f"the network has {total} gates, so that gates are [batch, {total}]; got {list(gates.shape)}"
            )
        of_site = [gates[:, site.gates].astype(jnp.float32) for site in self.sites]
        saved = jnp.zeros(gates.shape[0], jnp.float32)
        for layer in self.layers:
            shares = [cut.open(of_site) / cut.size for cut in (layer.inputs, layer.outputs) if cut]
            saved = saved + (1 - math.prod(shares)) * (layer.macs / self.dense)
        return 1 - saved

    def count(self, gates: jax.Array) -> jax.Array:
        """Multiply-accumulates with these gates [B, G], float32 [B]."""
        return float(self.dense) * self.fraction(gates)


def count_macs(function: Callable[..., Any], params: Any, *args: Any) -> MacCount:
    """Counts the multiply-accumulates of a function by tracing it; nothing is computed.

    Args:
        function: of (params, *args); see `skip_closed`.
        params: arrays or `jax.ShapeDtypeStruct`s.
        *args: examples of the other arguments, arrays or shapes. The count is of the whole batch: give one image.

    Example:
        >>> def network(kernel, x, gates):
        ...     return gate(x @ kernel, gates) @ kernel.T
        >>> macs = count_macs(network, jnp.ones((2, 4)), jnp.ones((1, 2)), jnp.ones((1, 4)))
        >>> macs.dense, macs.count(jnp.array([[1.0, 0.0, 0.0, 0.0]]))
        (16, Array([4.], dtype=float32))
    """
    return MacCount(plan_of(function, params, *args))
