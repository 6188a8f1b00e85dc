"""Crop, flip, normalise and cutout: on the device, inside the jitted step, so that uint8 crosses the bus."""

import jax
import jax.numpy as jnp

from gaternet_jax.config import DataConfig
from gaternet_jax.data.preprocess import normalize


def augment(images: jax.Array, key: jax.Array, config: DataConfig) -> jax.Array:
    """Crops after zero padding and flips horizontally, at random (He et al. 2016, 4.2); normalises; applies cutout.

    Each image draws for itself.

    Args:
        images: uint8 [B, H, W, C].
        key: one typed PRNG key for the batch.
        config: the `data` part of a run's config.

    Returns:
        float32 [B, H, W, C].
    """
    crop_key, flip_key, cutout_key = jax.random.split(key, 3)
    batch, height, width, channels = images.shape
    padding = config.crop_padding
    if padding:
        padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        corners = jax.random.randint(crop_key, (batch, 2), 0, 2 * padding + 1)

        def crop(image, corner):
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

        images = jax.vmap(crop)(padded, corners)
    if config.flip:
        flipped = jax.random.bernoulli(flip_key, 0.5, (batch, 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    images = normalize(images, config)
    return cutout(images, cutout_key, config.cutout) if config.cutout else images


def cutout(images: jax.Array, key: jax.Array, size: int) -> jax.Array:
    """Sets a square to the mean colour, which is 0 after normalisation (DeVries and Taylor 2017).

    The square's centre is uniform over the image, so that part of it may lie outside.

    Args:
        images: float32 [B, H, W, C], normalised.
        key: one typed PRNG key for the batch.
        size: side of the square, pixels.
    """
    batch, height, width, _ = images.shape
    centers = jax.random.randint(key, (batch, 2), 0, jnp.array([[height, width]]))

    def inside(axis_length: int, center: jax.Array) -> jax.Array:  # bool [B, axis_length]
        offset = jnp.arange(axis_length)[None, :] - center[:, None]
        return (offset >= -(size // 2)) & (offset < size - size // 2)

    hole = inside(height, centers[:, 0])[:, :, None, None] & inside(width, centers[:, 1])[:, None, :, None]
    return jnp.where(hole, 0.0, images)
