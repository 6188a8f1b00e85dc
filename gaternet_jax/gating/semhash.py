r"""Improved SemHash: gate scores to binary gates, with a straight-through gradient.

    training     s' = s + e,  e ~ N(0, 1)             v = clip(1.2 sigmoid(s') - 0.1, 0, 1)
                 g = 1[v > 0.49999] or v, per sample, each with probability 1/2
    evaluation   g = 1[v > 0.49999], without noise
    backward     dg/ds' = dv/ds'                      (the threshold passes gradients unchanged)

Source: GaterNet section 3.2 and released code; Kaiser and Bengio, "Discrete Autoencoders for Sequence Models"
(2018), and tensor2tensor.
"""

import jax
import jax.numpy as jnp

from gaternet_jax.nn.layers import at_least_float32

# Released code. The sigmoid is stretched to (-0.1, 1.1) before the clip, so that gates reach exactly 0 and 1.
STRETCH = 1.2
SHIFT = 0.1
# Released code: just below 1/2, so that a score of exactly 0 (a dead bottleneck with zero bias) opens the gate.
THRESHOLD = 0.49999


def saturating_sigmoid(scores: jax.Array) -> jax.Array:
    """Computes v = clip(1.2 sigmoid(s) - 0.1, 0, 1); the gradient is zero where v is clipped."""
    return jnp.clip(STRETCH * jax.nn.sigmoid(scores) - SHIFT, 0.0, 1.0)


@jax.custom_vjp
def straight_through_threshold(values: jax.Array) -> jax.Array:
    """Computes b = 1[v > 0.49999], in the type of `values`; backward, the gradient of b is passed to v unchanged."""
    return (values > THRESHOLD).astype(values.dtype)


straight_through_threshold.defvjp(
    lambda values: (straight_through_threshold(values), None),
    lambda _, gradient: (gradient,),
)


def binary_gates(scores: jax.Array) -> jax.Array:
    """Makes gates of scores float32 [B, G], in evaluation: deterministic, 0 or 1."""
    return straight_through_threshold(saturating_sigmoid(scores))


def sampled_gates(scores: jax.Array, noise_key: jax.Array, mix_key: jax.Array) -> jax.Array:
    """Makes gates of scores float32 [..., G], in training: noisy; of a sample all binary or all real-valued in [0, 1].

    The typed PRNG keys are those of the noise, and of the choice between binary and real-valued.
    """
    noisy = scores + jax.random.normal(noise_key, scores.shape, scores.dtype)
    values = saturating_sigmoid(noisy)
    take_binary = jax.random.bernoulli(mix_key, 0.5, (*scores.shape[:-1], 1))
    return jnp.where(take_binary, straight_through_threshold(values), values)


def sem_hash(scores: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Makes gates of scores: noisy ones with a key, for training; 0 or 1 without one, for evaluation.

    Args:
        scores: [B, G], or of one sample [G]; gates of this shape are float32, in [0, 1].
        key: typed PRNG key; see `sampled_gates`. None: see `binary_gates`.

    Example:
        >>> gx.sem_hash(jnp.array([[-1.0, 0.0, 2.0]]))
        Array([[0., 1., 1.]], dtype=float32)
    """
    scores = at_least_float32(jnp.asarray(scores))  # in bfloat16 the threshold is 1/2, which a score of 0 only reaches
    return binary_gates(scores) if key is None else sampled_gates(scores, *jax.random.split(key))
