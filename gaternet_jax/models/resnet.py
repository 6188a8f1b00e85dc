"""ResNets for small and for large images, of basic or bottleneck blocks, with gates.

Layers, names and gate placement of the small basic ones follow the GaterNet authors' released code. The networks are
He et al. (2016), section 4.2 (CIFAR) and table 1 (ImageNet), with 1x1 convolutions as shortcuts where the shape
changes, activation after addition, and the stride of a bottleneck on its 3x3 convolution.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.gating.sites import Gates
from gaternet_jax.models.backbone import Backbone, BackboneOptions, conv
from gaternet_jax.models.blocks import ResidualBlock, basic, bottleneck
from gaternet_jax.models.registry import known_backbones, register
from gaternet_jax.nn.layers import BatchNorm, at_least_float32, linear

BlockPlan = Callable[[int, int], list[tuple[int, int, int]]]  # (width, stride) -> plan of a ResidualBlock


class Stage(nnx.Module):
    """Runs `blocks` blocks of one width; the first one may halve the resolution."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        blocks: int,
        *,
        block: BlockPlan,
        stride: int,
        options: BackboneOptions,
    ):
        self.block_names = tuple(f"block{i}" for i in range(1, blocks + 1))
        self.out_channels = in_channels
        for i, block_name in enumerate(self.block_names):
            plan = block(width, stride if i == 0 else 1)
            unit = ResidualBlock(self.out_channels, plan, options)
            setattr(self, block_name, unit)
            self.out_channels = unit.out_channels

    def __call__(self, x: jax.Array, gates: Gates) -> jax.Array:
        for block_name in self.block_names:
            x = getattr(self, block_name)(x, gates)
        return x


class ResNet(Backbone):
    """Runs a stem, stages of residual blocks, global average pooling, and an output layer.

    Args:
        stages: of each stage the plan of its blocks, their number, and its width relative to the first one's.
        large_images: a 7x7 stem of stride 2 and a 3x3 max-pooling of stride 2 (ImageNet) instead of a 3x3
            convolution (CIFAR).
        options: see BackboneOptions; the own widths are 16 (CIFAR) and 64 (ImageNet).
    """

    def __init__(self, stages: Sequence[tuple[BlockPlan, int, int]], *, large_images: bool, options: BackboneOptions):
        width = options.width or (64 if large_images else 16)
        kernel, stride = (7, 2) if large_images else (3, 1)
        self.large_images = large_images
        self.conv = conv(options.channels, width, kernel, options, stride=stride)
        self.bn = BatchNorm(width, rngs=options.rngs)
        self.stage_names = tuple(f"stage{i}" for i in range(1, len(stages) + 1))
        channels = width
        for i, (name, (block, blocks, times)) in enumerate(zip(self.stage_names, stages, strict=True)):
            stride = 1 if i == 0 else 2
            stage = Stage(channels, width * times, blocks, block=block, stride=stride, options=options)
            setattr(self, name, stage)
            channels = stage.out_channels
        self.fc = None if options.num_classes is None else linear(channels, options.num_classes, rngs=options.rngs)
        self.channels, self.width, self.num_features = options.channels, width, channels

    def features(self, images: jax.Array, gates: Gates = None, key: jax.Array | None = None) -> jax.Array:
        x = jax.nn.relu(self.bn(self.conv(images)))
        if self.large_images:
            padding: Any = ((1, 1), (1, 1))  # mistyped in Flax
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
        for name in self.stage_names:
            x = getattr(self, name)(x, gates)
        return at_least_float32(x).mean((1, 2))


# He et al. 2016, table 1.
_IMAGENET = {
    "18": (basic, (2, 2, 2, 2)),
    "34": (basic, (3, 4, 6, 3)),
    "50": (bottleneck, (3, 4, 6, 3)),
    "101": (bottleneck, (3, 4, 23, 3)),
    "152": (bottleneck, (3, 8, 36, 3)),
}


@register(r"resnet(18|34|50|101|152)", ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), image_size=224)
def _imagenet_resnet(match: re.Match[str], options: BackboneOptions) -> Backbone:
    block, blocks = _IMAGENET[match[1]]
    return ResNet([(block, number, 2**i) for i, number in enumerate(blocks)], large_images=True, options=options)


@register(
    r"resnet(\d+)(_basic|_bottleneck)?",
    ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet164"),
)
def _cifar_resnet(match: re.Match[str], options: BackboneOptions) -> Backbone:
    """Takes basic blocks where the depth is 6n + 2, bottlenecks where it is 9n + 2; where both fit, basic up to 163."""
    depth, kind = int(match[1]), match[2]
    fits = {"_basic": depth >= 8 and depth % 6 == 2, "_bottleneck": depth >= 11 and depth % 9 == 2}
    if kind is None:
        kind = "_basic" if fits["_basic"] and (depth < 164 or not fits["_bottleneck"]) else "_bottleneck"
    if not fits[kind]:
        raise UserError(
            f"no CIFAR ResNet has depth {depth}; depths are 6n + 2 with basic blocks and 9n + 2 with bottlenecks "
            f"(name them resnetD_basic or resnetD_bottleneck where both fit): {', '.join(known_backbones())}"
        )
    layers, block = (6, basic) if kind == "_basic" else (9, bottleneck)
    blocks = (depth - 2) // layers
    return ResNet([(block, blocks, 2**i) for i in range(3)], large_images=False, options=options)
