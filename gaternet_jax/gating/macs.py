"""Multiply-accumulates of any function, dense and with given gates.

Counted: convolutions and matrix products of what depends on the inputs, one multiply-accumulate per weight and output
position, padding included. Not counted: additions, normalisation, activations, pooling, gates. A closed gate saves
what `skip_closed` skips for it: the channel itself where it is computed for that gate only, and its share of every
layer that reads it, also where it comes as a constant (through BatchNorm and ReLU, in a DenseNet).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaternet_jax.gating.channels import Channels
from gaternet_jax.gating.explain import Layer, layers_of
from gaternet_jax.gating.gate import GateSite
from gaternet_jax.gating.plan import plan_of


class MacCount:
    """Counts multiply-accumulates; `count_macs` makes one.

    Attributes:
        sites: the gates, in order.
        layers: the convolutions and products that are counted.
        dense: multiply-accumulates with all gates open.
    """

    def __init__(self, sites: Sequence[GateSite], layers: Sequence[Layer]):
        self.sites, self.layers = tuple(sites), tuple(layers)
        self.dense = sum(layer.macs for layer in layers)
        self._inputs = self._cuts([layer.inputs for layer in layers])
        self._outputs = self._cuts([layer.outputs for layer in layers])
        self._share = np.array([layer.macs / max(self.dense, 1) for layer in layers], np.float32)

    def _cuts(self, cuts: Sequence[Channels | None]) -> tuple[np.ndarray, np.ndarray]:
        """Finds the fraction of each layer's channels that there is with open gates, [layers],
        and what one closed gate of each site takes of it, [sites, layers]."""
        sizes, none, one = [site.size for site in self.sites], np.zeros(len(self.sites)), np.eye(len(self.sites))
        whole = [cut.count(sizes) / cut.size if cut else 1.0 for cut in cuts]
        of_gate = [(cut.count(one) - cut.count(none)) / cut.size if cut else none for cut in cuts]
        return np.array(whole, np.float32), np.array(of_gate, np.float32).reshape(len(cuts), len(self.sites)).T

    def fraction(self, gates: jax.Array) -> jax.Array:
        """Gives the multiply-accumulates with these gates relative to the dense ones, float32 [B]; differentiable.

        `gates` are those of all sites, one behind the other, [B, G] in [0, 1]: an expected number of open gates counts.
        """
        total = sum(site.size for site in self.sites)
        if gates.ndim != 2 or gates.shape[1] != total:
            expected = f"the network has {total} gates, so that gates are [batch, {total}]"
            raise ValueError(f"{expected}; got {list(gates.shape)}")
        if not total:
            return jnp.ones(gates.shape[0], jnp.float32)
        open_gates = [gates[:, site.gates].astype(jnp.float32).sum(-1) for site in self.sites]
        closed = jnp.stack([site.size - count for site, count in zip(self.sites, open_gates, strict=True)], -1)
        inputs, outputs = (
            whole[None] - jnp.matmul(closed, of_gate, precision=jax.lax.Precision.HIGHEST)  # these are counts
            for whole, of_gate in (self._inputs, self._outputs)
        )
        return 1 - (jnp.asarray(self._share)[None] * (1 - inputs * outputs)).sum(-1)

    def count(self, gates: jax.Array) -> jax.Array:
        """Gives the multiply-accumulates with these gates [B, G], float32 [B]."""
        return float(self.dense) * self.fraction(gates)

    def left(self, widths: Sequence[float]) -> float:
        """Gives the multiply-accumulates when site k keeps widths[k] channels; as `count`, of numbers."""
        return sum(layer.macs * layer.left(widths) for layer in self.layers)


def count_macs(function: Callable[..., Any], params: Any, *args: Any) -> MacCount:
    """Counts the multiply-accumulates of a function by tracing it; nothing is computed.

    Args:
        function: of (params, *args); see `skip_closed`.
        params: arrays or `jax.ShapeDtypeStruct`s.
        *args: examples of the other arguments, arrays or shapes. The count is of the whole batch: give one image.

    Example:
        >>> def network(kernel, x, gates):
        ...     return gx.gate(x @ kernel, gates) @ kernel.T
        >>> macs = gx.count_macs(network, jnp.ones((2, 4)), jnp.ones((1, 2)), jnp.ones((1, 4)))
        >>> macs.dense, macs.count(jnp.array([[1.0, 0.0, 0.0, 0.0]]))
        (16, Array([4.], dtype=float32))
    """
    plan = plan_of(function, params, *args)
    return MacCount(plan.program.sites, layers_of(plan))
