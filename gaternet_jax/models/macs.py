"""Multiply-accumulates of every convolution and linear layer, dense and with given gates.

Counted: convolutions and linear layers, one multiply-accumulate per weight and output position. Not counted: biases,
BatchNorm, activations, pooling, gates. A closed filter saves its own work and its share of the layers that it alone
feeds (GateSite.feeds). In a DenseNet a closed filter reaches the 1x1 layers it feeds as a constant, relu(shift) of
their BatchNorm, not as zero; its share is saved where that constant is folded into a bias per image. The one source of
truth for the `macs` loss, `tools.models` and inference.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.gates import GateSite
from gaternet_jax.models.layers import LayerCall, record_layers


@dataclasses.dataclass(frozen=True)
class LayerMacs:
    """The work of one layer on one image.

    Attributes:
        name: path in the model, e.g. "backbone.stage1.block1.conv2" or "gater.head.scores".
        in_channels: input channels or features.
        out_channels: filters or units.
        positions: output positions times kernel area; macs = positions * in_channels * out_channels.
    """

    name: str
    in_channels: int
    out_channels: int
    positions: int

    @property
    def macs(self) -> int:
        return self.positions * self.in_channels * self.out_channels


class MacCounter:
    """Counts a model's multiply-accumulates per image.

    Args:
        model: a built model; one of shapes only (`nnx.eval_shape`) is enough.
        image_size: height and width of its images, pixels.

    Attributes:
        layers: all layers, in the order in which they run.
        gater: macs of the gater; 0 without one.
        dense: macs of the backbone with all gates open.
        least: macs of the backbone with all gates closed, relative to dense.
    """

    def __init__(self, model: GaterNet, image_size: int):
        self.layers = tuple(_count(name, call) for name, call in trace_layers(model, image_size))
        self.gater = sum(layer.macs for layer in self.layers if layer.name.startswith("gater."))
        in_backbone = [layer for layer in self.layers if layer.name.startswith("backbone.")]
        self.dense = sum(layer.macs for layer in in_backbone)
        names = [layer.name.removeprefix("backbone.") for layer in in_backbone]
        self._sites: tuple[GateSite, ...] = model.gate_sites
        # Closed filters of a site (rows) leave so many outputs and inputs of a layer (columns).
        self._closes_outputs = np.array([[site.name == name for name in names] for site in self._sites], np.float32)
        self._closes_inputs = np.array([[name in site.feeds for name in names] for site in self._sites], np.float32)
        self._outputs = np.array([layer.out_channels for layer in in_backbone], np.float32)
        self._inputs = np.array([layer.in_channels for layer in in_backbone], np.float32)
        self._share = np.array([layer.positions / self.dense for layer in in_backbone], np.float32)

    @functools.cached_property
    def least(self) -> float:
        gates = sum(site.size for site in self._sites)
        with jax.ensure_compile_time_eval():
            return float(self.fraction(jnp.zeros((1, gates), jnp.float32))[0])

    def fraction(self, gates: jax.Array) -> jax.Array:
        """Macs of the backbone with these gates, relative to the dense backbone; differentiable.

        Args:
            gates: [B, G] in [0, 1]; a fraction counts as the expected number of open filters.

        Returns:
            float32 [B].
        """
        if not self._sites:
            return jnp.ones(gates.shape[0], jnp.float32)
        closed = jnp.stack([(1 - gates[:, site.gates]).sum(-1) for site in self._sites], -1)  # [B, sites]
        precise = jax.lax.Precision.HIGHEST  # these are counts
        outputs = self._outputs[None] - jnp.matmul(closed, self._closes_outputs, precision=precise)
        inputs = self._inputs[None] - jnp.matmul(closed, self._closes_inputs, precision=precise)
        return (self._share[None] * outputs * inputs).sum(-1)

    def count(self, gates: jax.Array) -> jax.Array:
        """Macs of the backbone with these gates [B, G], float32 [B]."""
        return float(self.dense) * self.fraction(gates)


def trace_layers(model: GaterNet, image_size: int) -> list[tuple[str, LayerCall]]:
    """The convolutions and linear layers of a model, by path, in the order in which an image passes them."""
    tracing = nnx.clone(model)  # the caller's model keeps its mode
    tracing.eval()
    graphdef, params, stats = split_model(tracing)
    traced: list[tuple[str, LayerCall]] = []

    def forward(params, stats, images):
        merged = merge_model(graphdef, params, stats)
        names = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(merged)}
        with record_layers() as calls:
            merged(images)
        traced.extend((names[id(call.layer)], call) for call in calls)

    shape = (1, image_size, image_size, model.backbone.channels)
    jax.eval_shape(forward, params, stats, jax.ShapeDtypeStruct(shape, jnp.float32))
    return traced


def _count(name: str, call: LayerCall) -> LayerMacs:
    positions = math.prod(call.outputs[1:-1]) * math.prod(getattr(call.layer, "kernel_size", ()))
    return LayerMacs(name, call.layer.in_features, call.layer.out_features, positions)
