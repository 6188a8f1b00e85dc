import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.models.layers import BatchNorm, conv


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


def test_strided_convolution_pads_as_pytorch_does():
    layer = conv(1, 1, 3, stride=2, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    layer.kernel.set_value(jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0))  # picks the centre pixel
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layer(x)[0, :, :, 0], [[0, 2], [8, 10]])
