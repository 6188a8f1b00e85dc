"""Convolution, BatchNorm and Linear as the released GaterNet has them.

Parameters and BatchNorm arithmetic are float32 whatever the compute type. Convolutions pad symmetrically (PyTorch's
padding of kernel // 2), not XLA's "SAME", which differs when the stride is 2.
"""

import jax
import jax.numpy as jnp
from flax import nnx

HE_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")  # released code
LINEAR_UNIFORM = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # assumed: PyTorch's default


def conv(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """A kernel x kernel convolution without bias, He-initialised by its fan-out (released code)."""
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=HE_FAN_OUT,
        rngs=rngs,
    )


def linear(in_features: int, out_features: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A float32 fully connected layer with zero bias (released code)."""
    return nnx.Linear(in_features, out_features, kernel_init=LINEAR_UNIFORM, rngs=rngs)


def at_least_float32(x: jax.Array) -> jax.Array:
    """bfloat16 to float32; float64 (gradient checks) stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class BatchNorm(nnx.BatchNorm):
    """BatchNorm over all axes but the last, in float32, returned in the type of its input.

    Momentum 0.9 and epsilon 1e-5 are PyTorch's defaults (which write the momentum as 0.1); the running variance is
    the biased one, as everywhere in Flax. Own arithmetic because `nnx.BatchNorm` evaluates in the compute type and,
    in Flax 0.12, updates its statistics in a way that makes tracing time quadratic in the network's depth.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        super().__init__(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = at_least_float32(x)
        if self.use_running_average:
            mean, variance = self.mean.get_value(), self.var.get_value()
        else:
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
