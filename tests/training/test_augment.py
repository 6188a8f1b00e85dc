import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax.config import default
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.training.augment import augment, cutout


def config(**fields):
    data = default().data
    data.update(fields)
    return data


def augmented(images, key=0, **fields):
    """The augmented images as pixels: a normalisation that only scales is undone."""
    scaling = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    result = np.asarray(augment(jnp.asarray(images), jax.random.key(key), config(**scaling, **fields)))
    assert result.dtype == np.float32
    return np.round(255 * result).astype(np.uint8)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(1, 256, (64, 8, 8, 3), np.uint8)


def test_normalize_is_that_of_the_released_code(images):
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    result = normalize(jnp.asarray(images), config())
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, (images / 255 - mean) / std, atol=1e-6)


def test_crop_takes_a_window_of_the_padded_image_each_image_its_own(images):
    result = augmented(images, crop_padding=2, flip=False)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    corners = set()
    for before, after in zip(padded, result, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if (before[y : y + 8, x : x + 8] == after).all()]
        assert len(found) == 1
        corners.add(found[0])
    assert {y for y, _ in corners} == {x for _, x in corners} == set(range(5))


def test_flip_mirrors_about_half_of_the_images(images):
    result = augmented(images, crop_padding=0)
    same = (result == images).all((1, 2, 3))
    mirrored = (result == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_crop_and_flip_draw_independently():
    """Flips are as frequent among images cropped at the top as among the others."""
    rows = np.broadcast_to(np.arange(1, 9, dtype=np.uint8)[None, :, None, None], (2000, 8, 8, 3))
    columns = np.where(np.arange(8) < 4, 0, 100).astype(np.uint8)[None, None, :, None]
    result = augmented(rows + columns, crop_padding=1)
    top, flipped = result[:, 4, 4, 0] % 100, result[:, 4, 1, 0] > 100
    for row in np.unique(top):
        assert abs(flipped[top == row].mean() - 0.5) < 0.1


def test_nothing_asked_nothing_done(images):
    unchanged = augmented(images, crop_padding=0, flip=False)
    np.testing.assert_array_equal(unchanged, images)


def test_same_key_same_augmentation(images):
    once, again, other = (augmented(images, key) for key in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)


def test_images_come_out_normalised(images):
    result = augment(jnp.asarray(images), jax.random.key(0), config(crop_padding=0, flip=False))
    np.testing.assert_allclose(result, normalize(jnp.asarray(images), config()), atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_cutout_blanks_a_square_whose_centre_is_in_the_image(size):
    holes = np.asarray(cutout(jnp.ones((400, 8, 8, 3)), jax.random.key(0), size)) == 0
    assert (holes == holes[..., :1]).all(), "all channels alike"
    sizes = set()
    for hole in holes[..., 0]:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns) > 0
        assert rows[-1] - rows[0] == len(rows) - 1 and columns[-1] - columns[0] == len(columns) - 1
        sizes.add((len(rows), len(columns)))
    assert max(sizes) == (size, size)
    assert size == 1 or len(sizes) > 1, "some squares lie partly outside"


def test_cutout_comes_after_normalisation(images):
    result = np.asarray(augment(jnp.asarray(images), jax.random.key(0), config(crop_padding=0, flip=False, cutout=4)))
    untouched = np.asarray(normalize(jnp.asarray(images), config()))
    changed = np.abs(result - untouched) > 1e-6
    assert changed.any() and (result[changed] == 0).all()
