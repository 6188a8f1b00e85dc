"""Losses of gates, scalars that are added to a network's own loss: cross_entropy + 0.1 * gate_l1(gates)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def gate_l1(gates: jax.Array) -> jax.Array:
    """Gives the mean gate, ||G(x)||_1 / c (GaterNet eq. 7), of gates [B, G] in [0, 1]; 0 of a model without gates.

    Example:
        >>> gx.losses.gate_l1(jnp.array([[1.0, 0.0, 0.0, 1.0]]))
        Array(0.5, dtype=float32)
    """
    return gates.sum() / max(gates.size, 1)


def gate_target(gates: jax.Array, target: float, sites: Sequence[slice] | None = None) -> jax.Array:
    """Gives the squared distance of the fraction of open gates, over the batch, to a target.

    Args:
        gates: [B, G] in [0, 1].
        target: fraction of open gates, 0 to 1.
        sites: the gates of each site (its `GateSite.gates`), all of which have the target, and the mean distance
            counts; None: all gates together have it.

    Example:
        >>> gates = jnp.array([[1.0, 1.0, 0.0, 0.0]])
        >>> gx.losses.gate_target(gates, 0.5), gx.losses.gate_target(gates, 0.5, [slice(0, 2), slice(2, 4)])
        (Array(0., dtype=float32), Array(0.25, dtype=float32))
    """
    if sites is None:
        return (gate_l1(gates) - target) ** 2
    fractions = jnp.stack([gates[:, site].mean() for site in sites])
    return ((fractions - target) ** 2).mean()


def gate_macs(gates: jax.Array, counter: Any, target: float) -> jax.Array:
    """Gives the squared distance of the expected multiply-accumulates, over the batch, to a budget.

    Args:
        gates: [B, G] in [0, 1].
        counter: of the network, from `count_macs`; counter.fraction(gates) is what counts.
        target: multiply-accumulates relative to those of the network with all gates open, 0 to 1.

    Example:
        >>> def network(kernel, x, gates):
        ...     return gx.gate(x @ kernel, gates) @ kernel.T
        >>> counter = gx.count_macs(network, jnp.ones((2, 4)), jnp.ones((1, 2)), jnp.ones((1, 4)))
        >>> gx.losses.gate_macs(jnp.array([[1.0, 0.0, 0.0, 0.0]]), counter, 0.75)
        Array(0.25, dtype=float32)
    """
    return (counter.fraction(gates).mean() - target) ** 2
