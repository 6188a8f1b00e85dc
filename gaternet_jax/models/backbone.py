"""What every backbone is built from, and what it offers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gaternet_jax.config import CHOICES
from gaternet_jax.errors import UserError, check_choice
from gaternet_jax.gating import GateSite
from gaternet_jax.gating.sites import Gates
from gaternet_jax.nn.keys import initial
from gaternet_jax.nn.layers import Conv

HE_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")  # released code


@dataclasses.dataclass(frozen=True)
class BackboneOptions:
    """Says how to build a backbone, whatever its family.

    Attributes:
        channels: channels of the input images.
        num_classes: length of the logits; None builds the network without its output layer.
        width: filters of the first stage (DenseNet: growth rate); None takes the family's own.
        gating: "none", "last" (the convolution that ends each block) or "all".
        local_bottleneck: hidden units of each block's own gate head; 0: gates are given from outside.
        local_bias: of these heads' gate scores, before training.
        dense_ungated: the layer of a dense block that gating "last" leaves without gates: "first", "last", "none".
        se_ratio: of squeeze-and-excitation in each block; 0: none.
        zero_init_residual: start the scale of each block's last BatchNorm at zero.
        dtype: compute type of the convolutions.
        rngs: source of the initial parameters.

    Raises:
        UserError: a gating or a dense_ungated that there is not.
    """

    channels: int
    num_classes: int | None
    width: int | None
    gating: str
    local_bottleneck: int
    local_bias: float
    dense_ungated: str
    se_ratio: int
    zero_init_residual: bool
    dtype: jnp.dtype
    rngs: nnx.Rngs

    def __post_init__(self) -> None:
        for name in ("gating", "dense_ungated"):
            check_choice(name, getattr(self, name), CHOICES[f"model.{name}"])


class Backbone(nnx.Module):
    """Classifies images by a CNN whose filters may be gated, and whose features may feed a gater.

    Attributes:
        channels: channels of the input images.
        width: filters of the first stage (DenseNet: growth rate).
        num_features: length of the feature vector before the output layer.
        gate_sites: the gated convolutions, in forward order; empty for a plain network. `build_backbone` sets it.
        fc: the output layer; None if it was built without one.
        stochastic: whether it draws random numbers in training.
    """

    channels: int
    width: int
    num_features: int
    gate_sites: tuple[GateSite, ...] = ()
    fc: Any
    stochastic: bool = False

    def features(self, images: jax.Array, gates: Gates = None, key: jax.Array | None = None) -> jax.Array:
        """Gives the pooled features, float32 [B, num_features], of images [B, H, W, C].

        Args:
            images: already normalised.
            gates: [B, G]; None for a plain network.
            key: PRNG key, for stochastic networks in training.
        """
        raise NotImplementedError

    def __call__(self, images: jax.Array, gates: Gates = None, key: jax.Array | None = None) -> jax.Array:
        """Gives the logits, float32 [B, K]; arguments as of `features`."""
        if self.fc is None:
            raise UserError("this backbone was built without an output layer (num_classes=None); use features()")
        return self.fc(self.features(images, gates, key))


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    options: BackboneOptions,
    *,
    stride: int = 1,
    valid: bool = False,
    gated: bool = False,
) -> Conv:
    """Makes a convolution without bias, He-initialised by its fan-out (released code).

    `valid`: without padding. `gated`: its `site` says which gates its maps have, for `apply_gates`.
    """
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = 0 if valid else height // 2 if height == width else (height // 2, width // 2)
    weights = initial(options.rngs, HE_FAN_OUT, (height, width, in_channels, out_channels))
    layer = Conv(weights, strides=stride, padding=padding, dtype=options.dtype)
    if gated:
        layer.site = GateSite("", 0, out_channels)  # `number_sites` does the rest
    return layer
