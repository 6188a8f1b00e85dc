"""The training loss: cross-entropy + lambda times a gate loss.

l1      the mean gate (GaterNet eq. 7)
target  the squared distance of the open fraction to t, overall or for each site (assumed; for a chosen openness)
macs    likewise of the expected multiply-accumulates, relative to the dense backbone's (assumed; for a budget)

The gate losses themselves are functions of arrays, in gating/losses.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gaternet_jax.config import LossConfig, check_choices
from gaternet_jax.errors import UserError
from gaternet_jax.gating import GateSite
from gaternet_jax.gating.losses import gate_l1, gate_macs, gate_target
from gaternet_jax.models.mac_counter import MacCounter

GateLoss = Callable[[jax.Array], jax.Array]  # gates [B, G] -> scalar


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Gives the cross-entropy of each image, in nats, float32 [B].

    Args:
        logits: [B, K].
        labels: int [B]; one that is no class makes NaN, so that nothing is learnt of it.
        smoothing: probability mass that the target spreads over all classes (Szegedy et al. 2016).
    """
    logits = logits.astype(jnp.float32)
    if not smoothing:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
        loss = optax.softmax_cross_entropy(logits, targets)
    return jnp.where(is_class(labels, logits), loss, jnp.nan)


def is_class(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """Tells whether each label, int [B], is that of one of the classes that the logits [B, K] are of."""
    return (labels >= 0) & (labels < logits.shape[-1])


def make_gate_loss(config: LossConfig, sites: tuple[GateSite, ...], macs: MacCounter) -> GateLoss:
    """Makes the weighted gate term of the loss, a function of the gates; 0 for a model without gates.

    Args:
        config: the `loss` part of a run's config.
        sites: of the model.
        macs: of the model, at the size of its images.

    Raises:
        UserError: a kind of loss that there is not, or a target of multiply-accumulates that not even closing all gates
            would reach.
    """
    check_choices(config, "loss")
    weight, target = config.gate_weight, config.gate_target
    if not sites:
        return lambda gates: jnp.zeros((), jnp.float32)
    if config.gate == "l1":
        return lambda gates: weight * gate_l1(gates)
    if config.gate == "macs":
        check_macs_target(target, macs)
        return lambda gates: weight * gate_macs(gates, macs, target)
    slices = [site.gates for site in sites] if config.gate_target_scope == "site" else None
    return lambda gates: weight * gate_target(gates, target, slices)


def check_macs_target(target: float, macs: MacCounter) -> None:
    """Refuses a target of multiply-accumulates below what is left with all gates closed."""
    if target < (least := macs.least):
        raise UserError(
            f"loss.gate_target={target} cannot be reached: with all gates closed {least:.4f} of the dense backbone's "
            "multiply-accumulates remain, the least that is possible. Give a target well above that, or gate more "
            "layers (--config.model.gating=all)"
        )
