"""Inception-v4 for large images, with gates (Szegedy et al., AAAI 2017, figures 3 to 9).

Filters, strides and padding are those of TensorFlow's released code (which timm's `inception_v4` follows), the epsilon
of BatchNorm too. Its dropout before the output layer is left out.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gaternet_jax.errors import UserError, check_choice
from gaternet_jax.gating.sites import Gates, apply_gates
from gaternet_jax.models.backbone import Backbone, BackboneOptions, conv
from gaternet_jax.models.blocks import decide_locally, local_head
from gaternet_jax.models.registry import register
from gaternet_jax.nn.layers import BatchNorm, SqueezeExcitation, at_least_float32, linear

WIDTH = 32  # filters of the first convolution
EPSILON = 1e-3


class Step(NamedTuple):
    """Describes a convolution of a branch: `filters` of kernel h x w; without padding ("valid") where it says so."""

    height: int
    width: int
    filters: int
    stride: int = 1
    valid: bool = False


# A branch is a list of steps. A tuple of steps ends it: all see the same maps, and their outputs are joined.
Branch = list[Any]
AVERAGE, MAXIMUM = "3x3 average pooling", "3x3 max-pooling, stride 2"

STEM: tuple[Step, ...] = (Step(3, 3, 32, 2, valid=True), Step(3, 3, 32, valid=True), Step(3, 3, 64))
STEM_3A: list[Branch] = [[MAXIMUM], [Step(3, 3, 96, 2, valid=True)]]
STEM_4A: list[Branch] = [
    [Step(1, 1, 64), Step(3, 3, 96, valid=True)],
    [Step(1, 1, 64), Step(1, 7, 64), Step(7, 1, 64), Step(3, 3, 96, valid=True)],
]
STEM_5A: list[Branch] = [[Step(3, 3, 192, 2, valid=True)], [MAXIMUM]]
BLOCK_A: list[Branch] = [
    [Step(1, 1, 96)],
    [Step(1, 1, 64), Step(3, 3, 96)],
    [Step(1, 1, 64), Step(3, 3, 96), Step(3, 3, 96)],
    [AVERAGE, Step(1, 1, 96)],
]
REDUCTION_A: list[Branch] = [
    [Step(3, 3, 384, 2, valid=True)],
    [Step(1, 1, 192), Step(3, 3, 224), Step(3, 3, 256, 2, valid=True)],
    [MAXIMUM],
]
BLOCK_B: list[Branch] = [
    [Step(1, 1, 384)],
    [Step(1, 1, 192), Step(1, 7, 224), Step(7, 1, 256)],
    [Step(1, 1, 192), Step(7, 1, 192), Step(1, 7, 224), Step(7, 1, 224), Step(1, 7, 256)],
    [AVERAGE, Step(1, 1, 128)],
]
REDUCTION_B: list[Branch] = [
    [Step(1, 1, 192), Step(3, 3, 192, 2, valid=True)],
    [Step(1, 1, 256), Step(1, 7, 256), Step(7, 1, 320), Step(3, 3, 320, 2, valid=True)],
    [MAXIMUM],
]
BLOCK_C: list[Branch] = [
    [Step(1, 1, 256)],
    [Step(1, 1, 384), (Step(1, 3, 256), Step(3, 1, 256))],
    [Step(1, 1, 384), Step(3, 1, 448), Step(1, 3, 512), (Step(1, 3, 256), Step(3, 1, 256))],
    [AVERAGE, Step(1, 1, 256)],
]


class Unit(nnx.Module):
    """Computes relu(bn(conv(x))) * g."""

    def __init__(self, in_channels: int, step: Step, *, gated: bool, options: BackboneOptions):
        filters = scaled(step.filters, options)
        kernel = (step.height, step.width)
        self.conv = conv(in_channels, filters, kernel, options, stride=step.stride, valid=step.valid, gated=gated)
        self.bn = BatchNorm(filters, rngs=options.rngs, epsilon=EPSILON)
        self.out_channels = filters

    def __call__(self, x: jax.Array, gates: Gates) -> jax.Array:
        return apply_gates(jax.nn.relu(self.bn(self.conv(x))), gates, self.conv.site)


class Block(nnx.Module):
    """Joins the outputs of branches that see the same maps.

    Gating "last" gates the convolutions whose output another convolution of their branch reads, "all" those that
    end a branch as well. With the second and the third convolution of the stem the former are the paper's 16,608; other
    sets of convolutions have as many, but none by one rule for all blocks (assumed).
    """

    def __init__(self, in_channels: int, branches: Sequence[Branch], options: BackboneOptions):
        self.out_channels, paths = 0, []
        for number, branch in enumerate(branches):
            channels, path = in_channels, []
            for position, step in enumerate(branch):
                last = position == len(branch) - 1
                if isinstance(step, str):
                    path.append(step)
                    self.out_channels += channels if last else 0
                    continue
                fork = step if isinstance(step, tuple) and not isinstance(step, Step) else (step,)
                names = [
                    f"branch{number}_{position}{chr(ord('a') + i) if len(fork) > 1 else ''}" for i in range(len(fork))
                ]
                gated = options.gating == "all" or (options.gating == "last" and not last)
                units = [Unit(channels, of, gated=gated, options=options) for of in fork]
                for name, unit in zip(names, units, strict=True):
                    setattr(self, name, unit)
                channels = sum(unit.out_channels for unit in units)
                path.append(tuple(names))
                self.out_channels += channels if last else 0
            paths.append(tuple(path))
        self.paths = tuple(paths)  # of each branch the poolings, and the names of the units that see the same maps
        ratio = options.se_ratio
        self.squeeze = SqueezeExcitation(self.out_channels, ratio, rngs=options.rngs) if ratio else None
        self.local = local_head(self, in_channels, options)

    def __call__(self, x: jax.Array, gates: Gates) -> jax.Array:
        decide_locally(self.local, x, gates)
        outputs = []
        for path in self.paths:
            maps = [x]
            for step in path:
                (before,) = maps  # only the end of a branch has several
                maps = (
                    [pool(before, step)]
                    if isinstance(step, str)
                    else [getattr(self, unit)(before, gates) for unit in step]
                )
            outputs += maps
        y = jnp.concatenate(outputs, axis=-1)
        return y if self.squeeze is None else self.squeeze(y)


def pool(x: jax.Array, kind: str) -> jax.Array:
    """Pools windows of 3x3: their maximum with stride 2, or the average of what is there."""
    check_choice("pool", kind, (MAXIMUM, AVERAGE))
    if kind == MAXIMUM:
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding="VALID")
    return nnx.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)


def scaled(filters: int, options: BackboneOptions) -> int:
    """Scales a number of filters to a network whose first convolution has options.width instead of 32."""
    return max(round(filters * (options.width or WIDTH) / WIDTH), 1)


class InceptionV4(Backbone):
    """Runs a stem, then blocks A, B and C with reductions between them.

    Args:
        blocks: numbers of blocks A, B and C; 4, 7 and 3 in the paper.
        options: see BackboneOptions; its own width is 32, the filters of the first convolution.
    """

    def __init__(self, blocks: tuple[int, int, int], options: BackboneOptions):
        channels = options.channels
        self.stem_names = tuple(f"stem_conv{number}" for number in range(1, len(STEM) + 1))
        for number, (name, step) in enumerate(zip(self.stem_names, STEM, strict=True)):
            gated = number > 0 and options.gating != "none"
            unit = Unit(channels, step, gated=gated, options=options)
            setattr(self, name, unit)
            channels = unit.out_channels
        self.local = local_head(self, options.channels, options)
        plan = [("stem_3a", STEM_3A), ("stem_4a", STEM_4A), ("stem_5a", STEM_5A)]
        for kind, branches, number, reduction in zip(
            "ABC", (BLOCK_A, BLOCK_B, BLOCK_C), blocks, (REDUCTION_A, REDUCTION_B, None), strict=True
        ):
            plan += [(f"block{kind}_{i}", branches) for i in range(1, number + 1)]
            plan += [(f"reduction{kind}", reduction)] if reduction else []
        for name, branches in plan:
            block = Block(channels, branches, options)
            setattr(self, name, block)
            channels = block.out_channels
        self.order = tuple(name for name, _ in plan)
        self.fc = None if options.num_classes is None else linear(channels, options.num_classes, rngs=options.rngs)
        self.channels, self.width, self.num_features = options.channels, options.width or WIDTH, channels

    def features(self, images: jax.Array, gates: Gates = None, key: jax.Array | None = None) -> jax.Array:
        decide_locally(self.local, images, gates)
        x = images
        for name in (*self.stem_names, *self.order):
            x = getattr(self, name)(x, gates)
        return at_least_float32(x).mean((1, 2))


@register(r"inceptionv4(?:_(\d+)_(\d+)_(\d+))?", ("inceptionv4",), image_size=299)
def _inception(match: re.Match[str], options: BackboneOptions) -> Backbone:
    """Builds an Inception-v4. Numbers of blocks may follow the name: inceptionv4_1_1_1 is a small one."""
    if options.zero_init_residual:
        raise UserError(
            "model.zero_init_residual=True was asked of an Inception, which has no residual to start at zero"
        )
    a, b, c = map(int, match.groups()) if match[1] else (4, 7, 3)
    return InceptionV4((a, b, c), options)
