"""Shake-Shake 26 2xWd for small images, with gates per branch (Gastaldi, "Shake-Shake regularization", 2017).

Each block has two branches. In training they are mixed at random, for each image anew, and independently so forward
and backward ("shake-shake-image"); in evaluation by their mean.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
from flax import nnx

from gaternet_jax.gating.sites import Gates, apply_gates
from gaternet_jax.models.backbone import Backbone, BackboneOptions, conv
from gaternet_jax.models.blocks import decide_locally, local_head
from gaternet_jax.models.registry import register
from gaternet_jax.nn.layers import BatchNorm, SqueezeExcitation, at_least_float32, linear

STEM_FILTERS = 16  # author's code
BLOCKS_PER_STAGE = 4


@jax.custom_vjp
def shake(one: jax.Array, two: jax.Array, forward: jax.Array, backward: jax.Array) -> jax.Array:
    """Computes forward * one + (1 - forward) * two; its gradient is that with `backward` in place of `forward`.

    Args:
        one, two: maps [B, H, W, C].
        forward, backward: [B, 1, 1, 1], in [0, 1].
    """
    del backward
    return forward * one + (1 - forward) * two


def _shake_forward(one, two, forward, backward):
    return shake(one, two, forward, backward), (forward, backward)


def _shake_backward(mixing, gradient):
    forward, backward = mixing
    return backward * gradient, (1 - backward) * gradient, jnp.zeros_like(forward), jnp.zeros_like(backward)


shake.defvjp(_shake_forward, _shake_backward)


class Branch(nnx.Module):
    """Computes bn2(conv2(relu(bn1(conv1(relu(x)))) * g1)) * g2, with g1 for gating "all" only (placement assumed)."""

    def __init__(self, in_channels: int, width: int, *, stride: int, options: BackboneOptions):
        self.conv1 = conv(in_channels, width, 3, options, stride=stride, gated=options.gating == "all")
        self.bn1 = BatchNorm(width, rngs=options.rngs)
        self.conv2 = conv(width, width, 3, options, gated=options.gating != "none")
        self.bn2 = BatchNorm(width, rngs=options.rngs, zero_init=options.zero_init_residual)

    def __call__(self, x: jax.Array, gates: Gates) -> jax.Array:
        hidden = apply_gates(jax.nn.relu(self.bn1(self.conv1(jax.nn.relu(x)))), gates, self.conv1.site)
        return apply_gates(self.bn2(self.conv2(hidden)), gates, self.conv2.site)


class TwoPathShortcut(nnx.Module):
    """Joins two 1x1 convolutions to half of the filters each, the second of a shifted image (author's code)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, options: BackboneOptions):
        self.stride = stride
        self.conv1 = conv(in_channels, out_channels // 2, 1, options)
        self.conv2 = conv(in_channels, out_channels - out_channels // 2, 1, options)
        self.bn = BatchNorm(out_channels, rngs=options.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x, every = jax.nn.relu(x), slice(None, None, self.stride)
        shifted = jnp.pad(x[:, :-1, :-1], ((0, 0), (1, 0), (1, 0), (0, 0)))
        paths = [self.conv1(x[:, every, every]), self.conv2(shifted[:, every, every])]
        return self.bn(jnp.concatenate(paths, axis=-1))


class ShakeBlock(nnx.Module):
    """Computes shortcut(x) + squeeze(mix(branch1(x), branch2(x)))."""

    def __init__(self, in_channels: int, width: int, *, stride: int, options: BackboneOptions):
        self.branch1 = Branch(in_channels, width, stride=stride, options=options)
        self.branch2 = Branch(in_channels, width, stride=stride, options=options)
        same_shape = stride == 1 and in_channels == width
        self.shortcut = None if same_shape else TwoPathShortcut(in_channels, width, stride=stride, options=options)
        ratio = options.se_ratio
        self.squeeze = SqueezeExcitation(width, ratio, rngs=options.rngs) if ratio else None
        self.local = local_head(self, in_channels, options)
        self.out_channels = width
        self.deterministic = False  # set by .train() and .eval()

    def __call__(self, x: jax.Array, gates: Gates, key: jax.Array | None) -> jax.Array:
        decide_locally(self.local, x, gates)
        one, two = self.branch1(x, gates), self.branch2(x, gates)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if self.deterministic:
            if self.squeeze is None:
                return shortcut + one / 2 + two / 2  # each into its own channels of the wide one
            return shortcut + self.squeeze(one / 2 + two / 2)
        assert key is not None, "in training mode branches are mixed at random: pass a key"
        mixing = jax.random.uniform(key, (2, x.shape[0], 1, 1, 1), x.dtype)
        mixed = shake(one, two, mixing[0], mixing[1])
        if self.squeeze is not None:
            mixed = self.squeeze(mixed)
        return shortcut + mixed


class ShakeShake(Backbone):
    """Runs a 3x3 stem and three stages of four blocks, of `width`, 2 and 4 times `width` filters.

    Args:
        stem_filters: of the stem; None: as many as the first stage has.
        options: see BackboneOptions.
    """

    stochastic = True

    def __init__(self, stem_filters: int | None, options: BackboneOptions):
        assert options.width is not None
        channels = stem_filters or options.width
        self.conv = conv(options.channels, channels, 3, options)
        self.bn = BatchNorm(channels, rngs=options.rngs)
        order = []
        for stage in (1, 2, 3):
            for number in range(1, BLOCKS_PER_STAGE + 1):
                name, width = f"stage{stage}_block{number}", options.width * 2 ** (stage - 1)
                stride = 2 if stage > 1 and number == 1 else 1
                setattr(self, name, ShakeBlock(channels, width, stride=stride, options=options))
                order.append(name)
                channels = width
        self.order = tuple(order)
        self.fc = None if options.num_classes is None else linear(channels, options.num_classes, rngs=options.rngs)
        self.channels, self.width, self.num_features = options.channels, options.width, channels

    def features(self, images: jax.Array, gates: Gates = None, key: jax.Array | None = None) -> jax.Array:
        x = self.bn(self.conv(images))
        for number, name in enumerate(self.order):
            x = getattr(self, name)(x, gates, None if key is None else jax.random.fold_in(key, number))
        return at_least_float32(jax.nn.relu(x)).mean((1, 2))


@register(
    r"shake26_2x([1-9]\d*)d(_paper)?",
    ("shake26_2x32d", "shake26_2x64d", "shake26_2x96d", "shake26_2x64d_paper", "shake26_2x96d_paper"),
)
def _shake_shake(match: re.Match[str], options: BackboneOptions) -> Backbone:
    """Builds a network; "_paper", its stem as wide as stage 1, is GaterNet's by its 11.71 M and 26.33 M parameters."""
    stem_filters = None if match[2] else STEM_FILTERS
    return ShakeShake(stem_filters, dataclasses.replace(options, width=options.width or int(match[1])))
