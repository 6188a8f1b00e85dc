"""CIFAR ResNets of basic blocks, depth 6n + 2, with gates.

Layers, names and gate placement follow the GaterNet authors' released code; the network is He et al. (2016),
section 4.2, with 1x1 convolutions as shortcuts where the shape changes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from gaternet_jax.models.backbone import Backbone
from gaternet_jax.models.gates import GateTable, apply_gates
from gaternet_jax.models.layers import BatchNorm, at_least_float32, conv, linear


class Shortcut(nnx.Module):
    """A 1x1 convolution and BatchNorm, where a block changes the shape (released code)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = conv(in_channels, out_channels, 1, stride=stride, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(out_channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bn(self.conv(x))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut.

    h = relu(bn1(conv1(x))) * g1                     g1: gating "all" only
    y = relu(shortcut(x) + bn2(conv2(h)) * g2)       g2: gating "residual" (released code) and "all"
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        gating: str,
        table: GateTable,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(out_channels, rngs=rngs)
        self.site1 = table.add(f"{name}.conv1", out_channels) if gating == "all" else None
        self.conv2 = conv(out_channels, out_channels, 3, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(out_channels, rngs=rngs)
        self.site2 = table.add(f"{name}.conv2", out_channels) if gating != "none" else None
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = (
            None if same_shape else Shortcut(in_channels, out_channels, stride=stride, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: jax.Array, gates: jax.Array | None) -> jax.Array:
        hidden = apply_gates(jax.nn.relu(self.bn1(self.conv1(x))), gates, self.site1)
        residual = apply_gates(self.bn2(self.conv2(hidden)), gates, self.site2)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return jax.nn.relu(shortcut + residual)


class Stage(nnx.Module):
    """`blocks` blocks of one width; the first one may halve the resolution."""

    def __init__(self, name: str, in_channels: int, out_channels: int, blocks: int, *, stride: int, **options):
        self.block_names = tuple(f"block{i}" for i in range(1, blocks + 1))
        for i, block_name in enumerate(self.block_names):
            block = BasicBlock(
                f"{name}.{block_name}",
                in_channels if i == 0 else out_channels,
                out_channels,
                stride=stride if i == 0 else 1,
                **options,
            )
            setattr(self, block_name, block)

    def __call__(self, x: jax.Array, gates: jax.Array | None) -> jax.Array:
        for block_name in self.block_names:
            x = getattr(self, block_name)(x, gates)
        return x


class ResNet(Backbone):
    """ResNet for small images: a 3x3 stem, three stages of (depth - 2) / 6 blocks, global average pooling.

    Args:
        depth: 6n + 2 with n >= 1.
        channels: channels of the input images.
        num_classes: length of the logits; None builds the network without its output layer.
        width: filters of the first stage; the others have two and four times as many (16: He et al. and
            released code).
        gating: "none", "residual" (second convolutions) or "all" (first convolutions too).
        dtype: compute type of the convolutions.
    """

    def __init__(
        self,
        depth: int,
        *,
        channels: int,
        num_classes: int | None,
        width: int,
        gating: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        table = GateTable()
        options = dict(gating=gating, table=table, dtype=dtype, rngs=rngs)
        blocks = (depth - 2) // 6
        self.conv = conv(channels, width, 3, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(width, rngs=rngs)
        self.stage1 = Stage("stage1", width, width, blocks, stride=1, **options)
        self.stage2 = Stage("stage2", width, 2 * width, blocks, stride=2, **options)
        self.stage3 = Stage("stage3", 2 * width, 4 * width, blocks, stride=2, **options)
        self.fc = None if num_classes is None else linear(4 * width, num_classes, rngs=rngs)
        self.num_features = 4 * width
        self.channels = channels
        self.gate_sites = table.sites

    def features(self, images: jax.Array, gates: jax.Array | None = None) -> jax.Array:
        x = jax.nn.relu(self.bn(self.conv(images)))
        x = self.stage1(x, gates)
        x = self.stage2(x, gates)
        x = self.stage3(x, gates)
        return at_least_float32(x).mean((1, 2))

    def __call__(self, images: jax.Array, gates: jax.Array | None = None) -> jax.Array:
        if self.fc is None:
            raise ValueError("this ResNet was built without an output layer (num_classes=None); use features()")
        return self.fc(self.features(images, gates))
