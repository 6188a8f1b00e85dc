"""Convolution, BatchNorm, Linear and squeeze-and-excitation, as all networks here have them.

Parameters and BatchNorm arithmetic are float32 whatever the compute type. Convolutions pad symmetrically (PyTorch's
padding of kernel // 2), not by XLA's "SAME", which differs when the stride is 2.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.models.backbone import BackboneOptions

HE_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")  # released code
LINEAR_UNIFORM = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # assumed: PyTorch's default


def conv(in_channels: int, out_channels: int, kernel: int, options: BackboneOptions, *, stride: int = 1) -> nnx.Conv:
    """A kernel x kernel convolution without bias, He-initialised by its fan-out (released code)."""
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        dtype=options.dtype,
        kernel_init=HE_FAN_OUT,
        rngs=options.rngs,
    )


def linear(in_features: int, out_features: int, *, initial_bias: float = 0.0, rngs: nnx.Rngs) -> nnx.Linear:
    """A float32 fully connected layer; biases start at zero (released code) unless told otherwise."""
    bias_init = nnx.initializers.constant(initial_bias)
    return nnx.Linear(in_features, out_features, kernel_init=LINEAR_UNIFORM, bias_init=bias_init, rngs=rngs)


def at_least_float32(x: jax.Array) -> jax.Array:
    """bfloat16 to float32; float64 (gradient checks) stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class BatchNorm(nnx.BatchNorm):
    """BatchNorm over all axes but the last, in float32, returned in the type of its input.

    Momentum 0.9 and epsilon 1e-5 are PyTorch's defaults (which write the momentum as 0.1); the running variance is
    the biased one, as everywhere in Flax. Own arithmetic because `nnx.BatchNorm` evaluates in the compute type and,
    in Flax 0.12, updates its statistics in a way that makes tracing time quadratic in the network's depth.

    Raises:
        UserError: in training, one value per channel (a batch of one, without maps or with maps of one position).
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, zero_init: bool = False):
        scale_init = nnx.initializers.zeros if zero_init else nnx.initializers.ones
        super().__init__(channels, momentum=0.9, epsilon=1e-5, scale_init=scale_init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
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
        assert self.scale is not None and self.bias is not None
        scale = self.scale.get_value() * jax.lax.rsqrt(variance + self.epsilon)
        shift = self.bias.get_value() - mean * scale
        per_channel = (1,) * (x.ndim - 1) + (-1,)
        return (inputs * scale.reshape(per_channel) + shift.reshape(per_channel)).astype(x.dtype)


class SqueezeExcitation(nnx.Module):
    """Rescales each channel by a function of all channels' means (Hu et al., CVPR 2018, section 3).

    y = x * sigmoid(fc2(relu(fc1(mean(x)))))        fc1 to channels / ratio units, both with biases
    """

    def __init__(self, channels: int, ratio: int, *, rngs: nnx.Rngs):
        hidden = max(channels // ratio, 1)
        self.fc1 = linear(channels, hidden, rngs=rngs)
        self.fc2 = linear(hidden, channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        pooled = at_least_float32(x).mean((1, 2))
        scale = jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(pooled))))
        return x * scale[:, None, None, :].astype(x.dtype)
