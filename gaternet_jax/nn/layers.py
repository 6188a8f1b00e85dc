"""Convolution, BatchNorm, Linear and squeeze-and-excitation, as all networks here have them.

Parameters and BatchNorm arithmetic are float32 whatever the compute type. Convolutions pad symmetrically (PyTorch's
padding of kernel // 2), not by XLA's "SAME", which differs when the stride is 2.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.nn.keys import Keys, filled, initial

LINEAR_UNIFORM = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # assumed: PyTorch's default


class _Layer(nnx.Module):
    """Has a kernel [..., inputs, outputs]."""

    kernel: nnx.Param
    site: Any = None  # which gates its maps have (gating/sites.py)

    @property
    def in_features(self) -> int:
        return self.kernel.shape[-2]

    @property
    def out_features(self) -> int:
        return self.kernel.shape[-1]


class Conv(_Layer):
    """Convolves NHWC maps. `nnx.Conv` has four times as many attributes, each of which Flax checks as it is set.

    Args:
        kernel: float32 [h, w, inputs, filters].
        strides: pixels, down and across.
        padding: pixels on all sides, or (above and below, left and right).
        dtype: compute type.
    """

    def __init__(self, kernel: Any, *, strides: int, padding: int | tuple[int, int], dtype: jnp.dtype):
        self.kernel = nnx.Param(kernel)
        self.strides, self.padding, self.dtype = strides, padding, dtype

    @property
    def kernel_size(self) -> tuple[int, int]:
        height, width, _, _ = self.kernel.shape
        return height, width

    def __call__(self, inputs: jax.Array) -> jax.Array:
        down, across = (self.padding, self.padding) if isinstance(self.padding, int) else self.padding
        return jax.lax.conv_general_dilated(
            inputs.astype(self.dtype),
            self.kernel.get_value().astype(self.dtype),
            (self.strides, self.strides),
            ((down, down), (across, across)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Linear(_Layer):
    """Applies a float32 fully connected layer.

    Args:
        kernel: float32 [inputs, outputs].
        bias: float32 [outputs].
    """

    def __init__(self, kernel: Any, bias: Any):
        self.kernel, self.bias = nnx.Param(kernel), nnx.Param(bias)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return inputs @ self.kernel.get_value() + self.bias.get_value()[None]


def linear(in_features: int, out_features: int, *, initial_bias: float = 0.0, rngs: Keys) -> Linear:
    """Makes a float32 fully connected layer; biases start at zero (released code) unless told otherwise."""
    kernel = initial(rngs, LINEAR_UNIFORM, (in_features, out_features))
    return Linear(kernel, initial(rngs, nnx.initializers.constant(initial_bias), (out_features,)))


def at_least_float32(x: jax.Array) -> jax.Array:
    """Turns bfloat16 into float32; float64 (gradient checks) stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class BatchNorm(nnx.Module):
    """Normalises a batch over all axes but the last, in float32, and returns it in the type of its input.

    Momentum 0.9 and epsilon 1e-5 are PyTorch's defaults (which write the momentum as 0.1); the running variance is
    the biased one, as everywhere in Flax. Not `nnx.BatchNorm`, which evaluates in the compute type and, in Flax 0.12,
    updates its statistics in a way that makes tracing time quadratic in the network's depth.

    Raises:
        UserError: in training, one value per channel (a batch of one, without maps or with maps of one position).
    """

    momentum = 0.9

    def __init__(self, channels: int, *, rngs: Keys, zero_init: bool = False, epsilon: float = 1e-5):
        scale_init = nnx.initializers.zeros if zero_init else nnx.initializers.ones
        self.mean, self.var = (nnx.BatchStat(filled(rngs, value, (channels,))) for value in (0.0, 1.0))
        self.scale = nnx.Param(initial(rngs, scale_init, (channels,)))
        self.bias = nnx.Param(initial(rngs, nnx.initializers.zeros, (channels,)))
        self.epsilon = epsilon
        self.use_running_average = False  # set by .train() and .eval()

    @property
    def num_features(self) -> int:
        return self.scale.shape[0]

    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = at_least_float32(x)
        if self.use_running_average:
            mean, variance = self.mean.get_value(), self.var.get_value()
        else:
            if x.size == x.shape[-1]:
                raise UserError(
                    "BatchNorm would see a single value per channel and give the same for every image; train with "
                    "larger batches (--config.train.batch_size) or larger images"
                )
            axes = tuple(range(x.ndim - 1))
            mean = inputs.mean(axes)
            variance = jnp.maximum((inputs * inputs).mean(axes) - mean * mean, 0.0)  # one pass over the maps
            self.mean.set_value(self.momentum * self.mean.get_value() + (1 - self.momentum) * mean)
            self.var.set_value(self.momentum * self.var.get_value() + (1 - self.momentum) * variance)
        return _normalise(inputs, mean, variance + self.epsilon, self.scale.get_value(), self.bias.get_value()).astype(
            x.dtype
        )


@jax.jit  # traced once for all layers of one shape
def _normalise(x, mean, variance, scale, bias):
    scale = scale * jax.lax.rsqrt(variance)
    shift = bias - mean * scale
    per_channel = (1,) * (x.ndim - 1) + (-1,)
    return x * scale.reshape(per_channel) + shift.reshape(per_channel)


class SqueezeExcitation(nnx.Module):
    """Rescales each channel by a function of all channels' means (Hu et al., CVPR 2018, section 3).

    y = x * sigmoid(fc2(relu(fc1(mean(x)))))        fc1 to channels / ratio units, both with biases
    """

    def __init__(self, channels: int, ratio: int, *, rngs: Keys):
        hidden = max(channels // ratio, 1)
        self.fc1 = linear(channels, hidden, rngs=rngs)
        self.fc2 = linear(hidden, channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        pooled = at_least_float32(x).mean((1, 2))
        scale = jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(pooled))))
        return x * scale[:, None, None, :].astype(x.dtype)
