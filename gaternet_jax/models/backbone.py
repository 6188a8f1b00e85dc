"""What every backbone offers."""

import jax
from flax import nnx

from gaternet_jax.models.gates import GateSite


class Backbone(nnx.Module):
    """A CNN whose filters may be gated, and whose features may feed a gater.

    Attributes:
        channels: channels of the input images.
        num_features: length of the feature vector before the output layer.
        gate_sites: the gated convolutions, in forward order; empty for a plain network.
    """

    channels: int
    num_features: int
    gate_sites: tuple[GateSite, ...]

    def features(self, images: jax.Array, gates: jax.Array | None = None) -> jax.Array:
        """Pooled features, float32 [B, num_features], of images [B, H, W, C] and gates [B, G]."""
        raise NotImplementedError

    def __call__(self, images: jax.Array, gates: jax.Array | None = None) -> jax.Array:
        """Logits, float32 [B, K]; only of a backbone built with an output layer."""
        raise NotImplementedError
