"""The gater G(x) = D(E(x)): it sees the whole image first and scores every gate of the backbone at once."""

import jax
from flax import nnx

from gaternet_jax.models.backbone import Backbone
from gaternet_jax.models.layers import BatchNorm, linear


class GaterHead(nnx.Module):
    """D: features [B, h] -> gate scores [B, c], through a bottleneck of b << h, c units.

    It has (h + c) b weights rather than h c. D = FC, ReLU, FC (released code), or with BatchNorm before the ReLU
    (GaterNet section 3.2). Always float32: a gate is a threshold on its score.
    """

    def __init__(
        self,
        num_features: int,
        bottleneck: int,
        num_gates: int,
        *,
        batch_norm: bool,
        initial_bias: float,
        rngs: nnx.Rngs,
    ):
        self.bottleneck = linear(num_features, bottleneck, rngs=rngs)
        self.bn = BatchNorm(bottleneck, rngs=rngs) if batch_norm else None
        self.scores = linear(bottleneck, num_gates, initial_bias=initial_bias, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        hidden = self.bottleneck(features)
        if self.bn is not None:
            hidden = self.bn(hidden)
        return self.scores(jax.nn.relu(hidden))


class Gater(nnx.Module):
    """Images [B, H, W, C] -> gate scores, float32 [B, G]."""

    def __init__(self, extractor: Backbone, head: GaterHead):
        self.extractor = extractor
        self.head = head

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return self.head(self.extractor.features(images, key=key))
