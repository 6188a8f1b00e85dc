import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax.config import default
from gaternet_jax.data.augment import augment, normalize


def config(**fields):
    data = default().data
    data.update(fields)
    return data


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(1, 256, (64, 8, 8, 3), np.uint8)


def test_normalize_is_that_of_the_released_code(images):
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    result = normalize(jnp.asarray(images), config())
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, (images / 255 - mean) / std, atol=1e-6)


def test_crop_takes_a_window_of_the_padded_image_each_image_its_own(images):
    result = np.asarray(augment(jnp.asarray(images), jax.random.key(0), config(crop_padding=2, flip=False)))
    assert result.dtype == np.uint8
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    corners = set()
    for before, after in zip(padded, result, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if (before[y : y + 8, x : x + 8] == after).all()]
        assert len(found) == 1
        corners.add(found[0])
    assert {y for y, _ in corners} == {x for _, x in corners} == set(range(5))


def test_flip_mirrors_about_half_of_the_images(images):
    result = np.asarray(augment(jnp.asarray(images), jax.random.key(0), config(crop_padding=0)))
    same = (result == images).all((1, 2, 3))
    mirrored = (result == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_nothing_asked_nothing_done(images):
    unchanged = augment(jnp.asarray(images), jax.random.key(0), config(crop_padding=0, flip=False))
    np.testing.assert_array_equal(unchanged, images)


def test_same_key_same_augmentation(images):
    once, again, other = (augment(jnp.asarray(images), jax.random.key(k), config()) for k in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
