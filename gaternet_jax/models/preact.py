"""The paper's ResNet-164: pre-activation bottlenecks (He et al. 2016b), of which the first stage stays 16 wide.

GaterNet says nothing about it but numbers, and these fit: 7,200 = 18 (16 + 128 + 256) gates, 1.62 M and 1.64 M
parameters, 2.04 M with 18 filters in the first stage (2.05 M with activation after addition), 1.96 M and 1.98 M gated.
The usual ResNet-164 (resnet.py) has 64 filters in its first stage, 8,064 gates and 1.70 M parameters.
"""

import re

import jax
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.gating.sites import Gates, apply_gates
from gaternet_jax.models.backbone import Backbone, BackboneOptions, conv
from gaternet_jax.models.blocks import decide_locally, local_head
from gaternet_jax.models.registry import register
from gaternet_jax.nn.layers import BatchNorm, SqueezeExcitation, at_least_float32, linear


class PreActivationBlock(nnx.Module):
    """Runs a bottleneck: convolutions of 1x1, 3x3 and 1x1, each after BatchNorm and ReLU.

        a = relu(bn1(x))
        h = relu(bn2(conv1(a))) * g1
        h = relu(bn3(conv2(h))) * g2              g1, g2: gating "all" only
        y = shortcut + squeeze(conv3(h) * g3)     shortcut: x, or a 1x1 convolution of a where the shape changes

    Args:
        in_channels, inner, out_channels: of x, of the hidden maps, of y.
        stride: of the 3x3 convolution.
        options: see BackboneOptions.
    """

    def __init__(
        self,
        in_channels: int,
        inner: int,
        out_channels: int,
        *,
        stride: int,
        options: BackboneOptions,
    ):
        rngs, every = options.rngs, options.gating == "all"
        self.bn1 = BatchNorm(in_channels, rngs=rngs)
        self.conv1 = conv(in_channels, inner, 1, options, gated=every)
        self.bn2 = BatchNorm(inner, rngs=rngs)
        self.conv2 = conv(inner, inner, 3, options, stride=stride, gated=every)
        self.bn3 = BatchNorm(inner, rngs=rngs)
        self.conv3 = conv(inner, out_channels, 1, options, gated=options.gating != "none")
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = None if same_shape else conv(in_channels, out_channels, 1, options, stride=stride)
        ratio = options.se_ratio
        self.squeeze = SqueezeExcitation(out_channels, ratio, rngs=rngs) if ratio else None
        self.local = local_head(self, in_channels, options)

    def __call__(self, x: jax.Array, gates: Gates) -> jax.Array:
        decide_locally(self.local, x, gates)
        activated = jax.nn.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        h = apply_gates(jax.nn.relu(self.bn2(self.conv1(activated))), gates, self.conv1.site)
        h = apply_gates(jax.nn.relu(self.bn3(self.conv2(h))), gates, self.conv2.site)
        h = apply_gates(self.conv3(h), gates, self.conv3.site)
        return shortcut + (h if self.squeeze is None else self.squeeze(h))


class PreActivationResNet(Backbone):
    """Runs a 3x3 stem and three stages of bottlenecks that end with `width`, 8 and 16 times `width` filters.

    Args:
        blocks: of each stage.
        options: see BackboneOptions; the own width is 16.
    """

    def __init__(self, blocks: int, options: BackboneOptions):
        width = options.width or 16
        self.conv = conv(options.channels, width, 3, options)
        channels, order = width, []
        for stage, filters in enumerate((width, 8 * width, 16 * width), 1):
            for number in range(1, blocks + 1):
                name = f"stage{stage}_block{number}"
                stride = 2 if stage > 1 and number == 1 else 1
                inner = max(filters // 4, 1)
                block = PreActivationBlock(channels, inner, filters, stride=stride, options=options)
                setattr(self, name, block)
                order.append(name)
                channels = filters
        self.order = tuple(order)
        self.bn = BatchNorm(channels, rngs=options.rngs)
        self.fc = None if options.num_classes is None else linear(channels, options.num_classes, rngs=options.rngs)
        self.channels, self.width, self.num_features = options.channels, width, channels

    def features(self, images: jax.Array, gates: Gates = None, key: jax.Array | None = None) -> jax.Array:
        x = self.conv(images)
        for name in self.order:
            x = getattr(self, name)(x, gates)
        return at_least_float32(jax.nn.relu(self.bn(x))).mean((1, 2))


@register(r"resnet(\d+)_paper", ("resnet164_paper",))
def _paper_resnet(match: re.Match[str], options: BackboneOptions) -> Backbone:
    depth = int(match[1])
    if depth < 11 or depth % 9 != 2:
        raise UserError(f"no ResNet of bottlenecks has depth {depth}; depths are 9n + 2: resnet164_paper")
    if options.zero_init_residual:
        raise UserError(f"model.zero_init_residual=True was asked of '{match[0]}', whose blocks end without BatchNorm")
    return PreActivationResNet((depth - 2) // 9, options)
