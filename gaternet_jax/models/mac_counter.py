"""Multiply-accumulates of a model: what `gaternet_jax.gating` counts of its traced program, backbone and gater apart.

The one source of truth for the `macs` loss, evaluation, `tools.models`, reports and benchmarks. What is counted, and
what a closed gate saves: gating/explain.py. Deciding the gates is never saved, whoever decides.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from gaternet_jax.gating import MacCount, count_macs
from gaternet_jax.models.functional import Tree
from gaternet_jax.models.gaternet import GaterNet, Outputs


class MacCounter:
    """Counts a model's multiply-accumulates per image.

    Args:
        model: a built model; one of shapes only (`abstract_model`) is enough.
        image_size: height and width of its images, pixels.

    Attributes:
        layers: all convolutions and products, in the order in which they run, named by their path in the model, e.g.
            "backbone.stage1.block1.conv2" or "gater.head.scores".
        gater: macs of the gater; 0 without one.
        dense: macs of the backbone with all gates open.
    """

    def __init__(self, model: GaterNet, image_size: int):
        count = trace_macs(model, image_size)
        self.layers = count.layers
        self.gater = sum(layer.macs for layer in count.layers if layer.name.startswith("gater."))
        in_backbone = [layer for layer in count.layers if not layer.name.startswith("gater.")]
        numbered = {site.name: site for site in model.gate_sites}  # the model's own numbers, whatever comes first
        self._backbone = MacCount([numbered[site.name] for site in count.sites], in_backbone)
        self.dense = self._backbone.dense

    @functools.cached_property
    def least(self) -> float:
        """Gives the macs of the backbone with all gates closed, relative to dense."""
        return self.evenly(0.0) / self.dense

    def evenly(self, fraction: float) -> float:
        """Counts the macs of the backbone with this fraction of the gates of each site open."""
        return self._backbone.left([fraction * site.size for site in self._backbone.sites])

    def fraction(self, gates: jax.Array) -> jax.Array:
        """Gives the macs of the backbone with these gates, relative to the dense backbone; differentiable.

        Args:
            gates: [B, G] in [0, 1]; a fraction counts as the expected number of open filters.

        Returns:
            float32 [B].
        """
        return self._backbone.fraction(gates)

    def count(self, gates: jax.Array) -> jax.Array:
        """Counts the macs of the backbone with these gates [B, G], float32 [B]."""
        return float(self.dense) * self.fraction(gates)


def trace_macs(model: GaterNet, image_size: int) -> MacCount:
    """Counts a whole model, which decides its gates itself; traced in evaluation mode, the caller's stays as it is."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, model.backbone.channels), jnp.float32)

    graphdef, state = nnx.split(model)

    def evaluate(arrays: Tree, images: jax.Array) -> Outputs:
        """Gives all outputs: gate scores are results, so that all are wanted, whatever the gates make of them."""
        merged = nnx.merge(graphdef, arrays)
        merged.eval()
        return merged(images)

    return count_macs(evaluate, nnx.to_pure_dict(state), images)
