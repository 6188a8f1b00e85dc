from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.models.backbone import conv
from gaternet_jax.nn.layers import BatchNorm


def test_batch_norm_equals_flax_in_training_and_evaluation():
    ours, flax = BatchNorm(5, rngs=nnx.Rngs(0)), nnx.BatchNorm(5, momentum=0.9, rngs=nnx.Rngs(0))
    for i in range(3):
        x = 3 * jax.random.normal(jax.random.key(i), (4, 6, 6, 5)) + 1
        np.testing.assert_allclose(ours(x), flax(x), atol=1e-5)
    np.testing.assert_allclose(ours.mean.get_value(), flax.mean.get_value(), atol=1e-6)
    np.testing.assert_allclose(ours.var.get_value(), flax.var.get_value(), rtol=1e-5)
    ours.eval(), flax.eval()
    np.testing.assert_allclose(ours(x), flax(x), atol=1e-5)


def test_batch_norm_is_float32_inside_and_keeps_the_type_outside():
    layer = BatchNorm(3, rngs=nnx.Rngs(0))
    layer.mean.set_value(jnp.full(3, 1000.0))
    layer.eval()
    x = jnp.full((1, 1, 1, 3), 1004.0, jnp.bfloat16)  # bfloat16 cannot tell 1000 from 1003
    y = layer(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), float(x[0, 0, 0, 0]) - 1000, atol=0.02)


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 1, 3)])
def test_batch_norm_of_one_value_per_channel_is_refused_in_training(shape):
    layer = BatchNorm(3, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"a single value per channel .*--config\.train\.batch_size"):
        layer(jnp.ones(shape))
    assert layer(jnp.ones((2, *shape[1:]))).shape == (2, *shape[1:])
    layer.eval()
    layer(jnp.ones(shape))


def test_strided_convolution_pads_as_pytorch_does():
    options: Any = SimpleNamespace(dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    layer = conv(1, 1, 3, stride=2, options=options)
    layer.kernel.set_value(jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0))  # picks the centre pixel
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layer(x)[0, :, :, 0], [[0, 2], [8, 10]])


def test_batch_statistics_of_bfloat16_maps_are_computed_in_float32():
    layer = BatchNorm(1, rngs=nnx.Rngs(0))
    x = (256 + jax.random.normal(jax.random.key(0), (64, 8, 8, 1)) * 4).astype(jnp.bfloat16)
    y = layer(x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(layer.mean.get_value(), 0.1 * exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.var.get_value(), 0.9 + 0.1 * exact.var((0, 1, 2)), rtol=1e-2)
    assert y.dtype == jnp.bfloat16
