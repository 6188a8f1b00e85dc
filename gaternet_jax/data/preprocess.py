"""Pixels to the numbers that models take: on the device, so that uint8 crosses the bus."""

import jax
import jax.numpy as jnp

from gaternet_jax.config import DataConfig


def normalize(images: jax.Array, config: DataConfig) -> jax.Array:
    """Normalizes pixels, uint8 [B, H, W, C] -> float32 [B, H, W, C]: (pixel / 255 - mean) / std, per channel."""
    mean = jnp.asarray(config.mean, jnp.float32).reshape(1, 1, 1, -1)
    std = jnp.asarray(config.std, jnp.float32).reshape(1, 1, 1, -1)
    return (images.astype(jnp.float32) / 255.0 - mean) / std
