"""Residual blocks: what stands between two additions, with its gates."""

import math

import jax
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.gating.local import LocalHead, LocalPass
from gaternet_jax.gating.sites import Gates, apply_gates, number_sites
from gaternet_jax.models.backbone import BackboneOptions, conv
from gaternet_jax.nn.layers import BatchNorm, SqueezeExcitation


class Shortcut(nnx.Module):
    """Applies a 1x1 convolution and BatchNorm, where a block changes the shape (released code)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, options: BackboneOptions):
        self.conv = conv(in_channels, out_channels, 1, options, stride=stride)
        self.bn = BatchNorm(out_channels, rngs=options.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bn(self.conv(x))


class ResidualBlock(nnx.Module):
    """Runs convolutions, each with BatchNorm and perhaps gates, and adds a shortcut around them.

        h_i = relu(bn_i(conv_i(h_{i-1}))) * g_i            gated by "all" only; h_0 = x
        r   = bn_n(conv_n(h_{n-1})) * g_n                  the last one: gated by "last" (released code) and "all"
        y   = relu(shortcut(x) + squeeze(r))

    Args:
        in_channels: channels of x.
        plan: kernel size, filters and stride of each convolution.
        options: see BackboneOptions.
    """

    def __init__(self, in_channels: int, plan: list[tuple[int, int, int]], options: BackboneOptions):
        self.depth, rngs, channels = len(plan), options.rngs, in_channels
        for i, (kernel, filters, stride) in enumerate(plan, 1):
            last = i == self.depth
            gated = options.gating == "all" or (last and options.gating == "last")
            setattr(self, f"conv{i}", conv(channels, filters, kernel, options, stride=stride, gated=gated))
            setattr(self, f"bn{i}", BatchNorm(filters, rngs=rngs, zero_init=last and options.zero_init_residual))
            channels = filters
        stride = math.prod(stride for _, _, stride in plan)
        same_shape = stride == 1 and in_channels == channels
        self.shortcut = None if same_shape else Shortcut(in_channels, channels, stride=stride, options=options)
        self.squeeze = SqueezeExcitation(channels, options.se_ratio, rngs=rngs) if options.se_ratio else None
        self.local = local_head(self, in_channels, options)
        self.out_channels = channels

    def __call__(self, x: jax.Array, gates: Gates) -> jax.Array:
        decide_locally(self.local, x, gates)
        h = x
        for i in range(1, self.depth + 1):
            layer = getattr(self, f"conv{i}")
            h = getattr(self, f"bn{i}")(layer(h))
            h = apply_gates(h if i == self.depth else jax.nn.relu(h), gates, layer.site)
        if self.squeeze is not None:
            h = self.squeeze(h)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return jax.nn.relu(shortcut + h)


def basic(width: int, stride: int) -> list[tuple[int, int, int]]:
    """Gives the plan of a basic block: two 3x3 convolutions."""
    return [(3, width, stride), (3, width, 1)]


def bottleneck(width: int, stride: int) -> list[tuple[int, int, int]]:
    """Gives the plan of a bottleneck: 1x1, 3x3, and 1x1 to four times the width; the stride on the 3x3 one ("v1.5")."""
    return [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]


def local_head(block: nnx.Module, in_channels: int, options: BackboneOptions) -> LocalHead | None:
    """Makes a head for a block that gates itself; None where gates come from outside or it has none so far."""
    bottleneck, bias = options.local_bottleneck, options.local_bias
    if not bottleneck or not (sites := number_sites(block)):
        return None
    return LocalHead(in_channels, bottleneck, sites, initial_bias=bias, rngs=options.rngs)


def decide_locally(head: LocalHead | None, x: jax.Array, gates: Gates) -> None:
    """Has a block with a head of its own decide its gates from its input."""
    if head is None:
        return
    if not isinstance(gates, LocalPass):
        raise UserError("this backbone gates itself; call the model, or pass a LocalPass as gates")
    gates.decide(head, x)
