"""DenseNet-BC for small images, with gates (Huang et al., CVPR 2017, sections 3 and 4.2)."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.gating.sites import Gates, apply_gates
from gaternet_jax.models.backbone import Backbone, BackboneOptions, conv
from gaternet_jax.models.blocks import decide_locally, local_head
from gaternet_jax.models.registry import register
from gaternet_jax.nn.layers import BatchNorm, SqueezeExcitation, at_least_float32, linear

COMPRESSION = 0.5  # of the channels, at each transition


class DenseLayer(nnx.Module):
    """Adds `growth` channels to its input.

        h = relu(bn2(conv1(relu(bn1(x))))) * g1          1x1, 4 growth filters; g1: gating "all" only
        y = [x, squeeze(conv2(h) * g2)]                  3x3; g2: gating "last" and "all"

    Args:
        gated: whether gating "last" gates this layer.
    """

    def __init__(self, in_channels: int, growth: int, *, gated: bool, options: BackboneOptions):
        self.bn1 = BatchNorm(in_channels, rngs=options.rngs)
        self.conv1 = conv(in_channels, 4 * growth, 1, options, gated=options.gating == "all")
        self.bn2 = BatchNorm(4 * growth, rngs=options.rngs)
        gated = options.gating == "all" or (options.gating == "last" and gated)
        self.conv2 = conv(4 * growth, growth, 3, options, gated=gated)
        ratio = options.se_ratio
        self.squeeze = SqueezeExcitation(growth, ratio, rngs=options.rngs) if ratio else None
        self.local = local_head(self, in_channels, options)

    def __call__(self, x: jax.Array, gates: Gates) -> jax.Array:
        decide_locally(self.local, x, gates)
        hidden = self.conv1(jax.nn.relu(self.bn1(x)))
        hidden = apply_gates(jax.nn.relu(self.bn2(hidden)), gates, self.conv1.site)
        new = apply_gates(self.conv2(hidden), gates, self.conv2.site)
        if self.squeeze is not None:
            new = self.squeeze(new)
        return jnp.concatenate([x, new], axis=-1)


class Transition(nnx.Module):
    """Applies BatchNorm, ReLU, a 1x1 convolution that halves the channels, and 2x2 average pooling."""

    def __init__(self, in_channels: int, out_channels: int, options: BackboneOptions):
        self.bn = BatchNorm(in_channels, rngs=options.rngs)
        self.conv = conv(in_channels, out_channels, 1, options)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.avg_pool(self.conv(jax.nn.relu(self.bn(x))), (2, 2), strides=(2, 2))


class DenseNet(Backbone):
    """Runs three dense blocks of (depth - 4) / 6 layers, with transitions between them.

    Args:
        depth: 6n + 4.
        options: see BackboneOptions; its width is the growth rate.
    """

    def __init__(self, depth: int, options: BackboneOptions):
        assert options.width is not None
        growth, layers = options.width, (depth - 4) // 6
        channels = 2 * growth
        self.conv = conv(options.channels, channels, 3, options)
        order = []
        for block in (1, 2, 3):
            names = [f"block{block}_layer{i}" for i in range(1, layers + 1)]
            for i, name in enumerate(names):
                gated = {"none": True, "first": i > 0, "last": i < layers - 1}[options.dense_ungated]
                layer = DenseLayer(channels, growth, gated=gated, options=options)
                setattr(self, name, layer)
                channels += growth
            order += names
            if block < 3:
                name, compressed = f"transition{block}", int(channels * COMPRESSION)
                setattr(self, name, Transition(channels, compressed, options))
                order.append(name)
                channels = compressed
        self.order = tuple(order)
        self.bn = BatchNorm(channels, rngs=options.rngs)
        self.fc = None if options.num_classes is None else linear(channels, options.num_classes, rngs=options.rngs)
        self.channels, self.width, self.num_features = options.channels, growth, channels

    def features(self, images: jax.Array, gates: Gates = None, key: jax.Array | None = None) -> jax.Array:
        x = self.conv(images)
        for name in self.order:
            module = getattr(self, name)
            x = module(x) if isinstance(module, Transition) else module(x, gates)
        return at_least_float32(jax.nn.relu(self.bn(x))).mean((1, 2))


_GROWTH = {100: 12, 250: 24, 190: 40}  # Huang et al. 2017, table 2


@register(r"densenet(\d+)(?:_k(\d+))?", ("densenet100", "densenet250", "densenet190"))
def _densenet(match: re.Match[str], options: BackboneOptions) -> Backbone:
    depth, growth = int(match[1]), int(match[2]) if match[2] else _GROWTH.get(int(match[1]))
    if depth < 10 or depth % 6 != 4 or not (growth or options.width):
        usual = ", ".join(f"{depth} (k = {growth})" for depth, growth in _GROWTH.items())
        raise UserError(
            f"no DenseNet-BC is '{match[0]}'; depths are 6n + 4, and others than {usual} "
            "name their growth rate: densenet40_k12"
        )
    if options.zero_init_residual:
        raise UserError("model.zero_init_residual=True was asked of a DenseNet, which has no residual to start at zero")
    return DenseNet(depth, dataclasses.replace(options, width=options.width or growth))
