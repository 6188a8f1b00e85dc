"""The training loss: cross-entropy + lambda ||G(x)||_1 / c (GaterNet eq. 7)."""

import jax
import jax.numpy as jnp
import optax

from gaternet_jax.config import Config
from gaternet_jax.models.gaternet import Outputs


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of each image, in nats, float32 [B], of logits [B, K] and labels int [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def gate_penalty(gates: jax.Array) -> jax.Array:
    """||G(x)||_1 / c, over the batch: the mean of gates [B, G]; 0 for a model without gates."""
    return gates.mean() if gates.size else jnp.zeros((), jnp.float32)


def training_loss(outputs: Outputs, labels: jax.Array, config: Config) -> jax.Array:
    """The scalar that is minimised, weight decay aside.

    Args:
        outputs: of the model in training mode.
        labels: int [B].
        config: the `loss` part of a run's config.
    """
    data_term = cross_entropy(outputs.logits, labels).mean()
    return data_term + config.gate_weight * gate_penalty(outputs.gates)
