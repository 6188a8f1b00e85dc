"""GaterNet: a gater and a backbone, wired.

    image -> gater -> gate scores -> gates -> backbone -> logits
       \\__________________________________/

Z. Chen, Y. Li, S. Bengio, S. Si, "You Look Twice: GaterNet for Dynamic Filter Selection in CNNs", CVPR 2019.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.gating import GateSite
from gaternet_jax.gating.gater import Gater
from gaternet_jax.gating.local import LocalPass
from gaternet_jax.gating.semhash import binary_gates, sampled_gates
from gaternet_jax.models.backbone import Backbone
from gaternet_jax.nn.keys import InitKeys
from gaternet_jax.nn.layers import linear
from gaternet_jax.nn.streams import layer_keys


class Outputs(NamedTuple):
    """Holds what a model returns. A model without gates has G = 0.

    Attributes:
        logits: float32 [B, K].
        gates: float32 [B, G]; 0 or 1 in evaluation mode, in [0, 1] in training mode.
        gate_scores: float32 [B, G], before noise and threshold.
    """

    logits: jax.Array
    gates: jax.Array
    gate_scores: jax.Array


class GaterNet(nnx.Module):
    """Classifies images by a backbone whose filters are selected per image: by a gater, block by block, or not at all.

    In training mode (until `.eval()`) gates are sampled and a PRNG key is needed; in evaluation mode they are
    binary and deterministic.
    """

    def __init__(self, backbone: Backbone, gater: Gater | None):
        self.gater = gater
        self.backbone = backbone
        self.deterministic = False  # set by .train() and .eval()

    @property
    def gate_sites(self) -> tuple[GateSite, ...]:
        """Lists the gated convolutions of the backbone, in forward order."""
        return self.backbone.gate_sites

    def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> Outputs:
        """Predicts the classes of images.

        Args:
            images: float32 [B, H, W, C], already normalised.
            key: PRNG key of the gate noise; needed in training mode, ignored in evaluation mode.

        Raises:
            UserError: images of another shape or type, or training mode without a key.
        """
        self._check_images(images)
        with layer_keys(None if self.deterministic else key):
            return self._predict(images, key)

    def _predict(self, images: jax.Array, key: jax.Array | None) -> Outputs:
        noise_key = mix_key = backbone_key = extractor_key = None
        if not self.deterministic and key is not None:
            noise_key, mix_key, backbone_key, extractor_key = jax.random.split(key, 4)
        elif not self.deterministic and (self.gate_sites or self.backbone.stochastic):
            raise UserError("in training mode gates are sampled: pass key=..., or call model.eval() first")

        if not self.gate_sites:
            no_gates = jnp.zeros((images.shape[0], 0), jnp.float32)
            return Outputs(self.backbone(images, key=backbone_key), no_gates, no_gates)
        if self.gater is None:
            local = LocalPass(noise_key, mix_key)
            logits = self.backbone(images, local, backbone_key)
            return Outputs(logits, *local.collect(self.gate_sites))
        scores = self.gater(images, extractor_key)
        if noise_key is None or mix_key is None:
            gates = binary_gates(scores)
        else:
            gates = sampled_gates(scores, noise_key, mix_key)
        return Outputs(self.backbone(images, gates, backbone_key), gates, scores)

    def reset_classifier(self, num_classes: int, seed: int = 0) -> None:
        """Gives the model a freshly initialised output layer for so many classes, in place.

        Args:
            num_classes: length of the logits.
            seed: seed of the initial parameters.

        Raises:
            UserError: not one class.

        Example:
            >>> model = gx.load_model("runs/digits")
            >>> model.reset_classifier(5)  # then train it
            >>> model(jnp.ones((1, 8, 8, 1))).logits.shape
            (1, 5)
        """
        if num_classes < 1:
            raise UserError(f"num_classes={num_classes} must be at least 1")
        keys = InitKeys(seed)
        self.backbone.fc = linear(self.backbone.num_features, num_classes, rngs=keys)
        if self.gater is not None and self.gater.auxiliary is not None:
            self.gater.auxiliary = linear(self.gater.extractor.num_features, num_classes, rngs=keys)

    def _check_images(self, images: jax.Array) -> None:
        channels, shape = self.backbone.channels, getattr(images, "shape", ())
        if len(shape) != 4 or shape[-1] != channels or not jnp.issubdtype(images.dtype, jnp.floating):
            given = f"{images.dtype} {list(shape)}" if shape else f"a {type(images).__name__}"
            raise UserError(
                f"images must be normalised floats of shape [batch, height, width, {channels}]; got {given}. "
                "`load_run(workdir).preprocess` makes them of pixels and files"
            )
