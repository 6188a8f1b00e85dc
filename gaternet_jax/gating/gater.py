"""The gater G(x) = D(E(x)): it sees the whole image first and scores every gate of the backbone at once."""

from typing import Any

import jax
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.nn.keys import Keys
from gaternet_jax.nn.layers import BatchNorm, linear


class GaterHead(nnx.Module):
    """Maps features [B, h] to gate scores [B, c], through a bottleneck of b << h, c units; D in the paper.

    D = FC, ReLU, FC (released code), or with BatchNorm before the ReLU (GaterNet section 3.2). Always float32: a gate
    is a threshold on its score.
    """

    def __init__(
        self, num_features: int, bottleneck: int, num_gates: int, *, batch_norm: bool, initial_bias: float, rngs: Keys
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
    """Scores all gates of a network from a look at the whole image.

    Args:
        extractor: a module with `num_features` and `features(images, key=key)`, float32 [B, num_features], as the
            backbones of this package are.
        num_gates: of the network, see `find_sites`; UserError: none.
        bottleneck: units between features and scores, at least one.
        batch_norm: before the bottleneck's ReLU.
        initial_bias: of the scores, before training; 3.0 opens all gates.
        num_classes: of an auxiliary classifier, a linear layer on the features; its loss teaches the extractor what is
            in the image while it learns which gates to open; None: there is none. It has no part in prediction.
        rngs: source of the initial parameters.

    Example:
        >>> class Extractor(nnx.Module):
        ...     num_features = 2
        ...
        ...     def features(self, images, key=None):
        ...         return images.mean((1, 2))
        >>> gater = gx.Gater(Extractor(), num_gates=5, rngs=nnx.Rngs(0))
        >>> gx.sem_hash(gater(jnp.ones((3, 8, 8, 2)))).shape
        (3, 5)
    """

    def __init__(
        self,
        extractor: Any,
        num_gates: int,
        *,
        bottleneck: int = 8,
        batch_norm: bool = False,
        initial_bias: float = 0.0,
        num_classes: int | None = None,
        rngs: Keys,
    ):
        if num_gates < 1 or bottleneck < 1:
            raise UserError(f"num_gates={num_gates} and bottleneck={bottleneck} must be at least 1; see find_sites")
        self.extractor = extractor
        self.head = GaterHead(
            extractor.num_features, bottleneck, num_gates, batch_norm=batch_norm, initial_bias=initial_bias, rngs=rngs
        )
        self.auxiliary = None if num_classes is None else linear(extractor.num_features, num_classes, rngs=rngs)
        self.deterministic = False  # set by .train() and .eval()

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Gives the gate scores, float32 [B, G], of images [B, H, W, C]; `sem_hash` makes gates of them.

        `key` is the PRNG key of an extractor that is random in training.
        """
        features = self.extractor.features(images, key=key)
        if self.auxiliary is not None and not self.deterministic:
            self.auxiliary_logits = nnx.Intermediate(self.auxiliary(features))
        return self.head(features)

    def pop_auxiliary_logits(self) -> jax.Array | None:
        """Takes the auxiliary classifier's logits, [B, K], of the last call in training mode; None: there are none."""
        if self.auxiliary is None:
            return None
        found: Any = nnx.pop(self, nnx.Intermediate)
        return found["auxiliary_logits"].get_value() if "auxiliary_logits" in found else None
