"""A model with some of its filters, and with BatchNorm folded into its convolutions.

The result is an ordinary model of the same classes with narrower layers: it is called, counted, saved, compiled and
exported like any other. Each unit knows here what follows from its closed filters:

    ResidualBlock, Branch   the next convolution loses those inputs; the last one's filters are added into their
                            channels of the stream, and the others are left alone
    DenseLayer              the stream is narrower. A closed channel is 0, and the BatchNorm and ReLU before each 1x1
                            convolution make that a constant, relu(shift): it goes into the convolution's bias
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.inference.selection import Selection, SiteSelection, kept_gates
from gaternet_jax.models.backbone import Backbone
from gaternet_jax.models.blocks import ResidualBlock, Shortcut
from gaternet_jax.models.densenet import DenseLayer, DenseNet
from gaternet_jax.models.gater import GaterHead
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.gates import GateSite, GateTable
from gaternet_jax.models.layers import BatchNorm, Conv, Folded, Linear, Places, SqueezeExcitation
from gaternet_jax.models.local import LocalHead
from gaternet_jax.models.resnet import ResNet, Stage
from gaternet_jax.models.shake_shake import Branch, ShakeBlock, ShakeShake

Channels = np.ndarray | None  # which channels are there; None: all


def narrow_model(model: GaterNet, selection: Selection) -> GaterNet:
    """A copy of a model with the selected filters and gates, in evaluation mode.

    On every image whose gates are open only where the selection keeps the filter, and open where it keeps the filter
    without its gate, the logits are those of the model, up to rounding.

    Args:
        model: with or without gates; it is left as it is.
        selection: of its sites; empty for a plain model.
    """
    narrow = nnx.clone(model)
    narrow.eval()
    sites = model.gate_sites
    narrow.backbone = narrow_backbone(narrow.backbone, selection)
    if narrow.gater is not None:
        narrow.gater.extractor = narrow_backbone(narrow.gater.extractor, {})
        _narrow_head(narrow.gater.head, kept_gates(sites, selection))
        if not narrow.gate_sites:
            narrow.gater = None  # nothing is left to decide
    return narrow


def narrow_backbone(backbone: Backbone, selection: Selection) -> Backbone:
    """Narrows a backbone of its own in place; see `narrow_model`."""
    narrow = _BACKBONES[type(backbone)]
    table = GateTable()
    narrow(backbone, _Narrowing(selection, table))
    backbone.gate_sites = table.sites
    return backbone


def check_gated(model: GaterNet) -> None:
    """Raises UserError for a plain model."""
    if not model.gate_sites:
        raise UserError(
            "a plain model has no gates, so that there is nothing to leave out; use mode 'dense', or train a gated one"
        )


def is_narrow(model: GaterNet) -> bool:
    """Whether a model was narrowed before, so that its gates are not those of all filters."""
    return any(isinstance(module, Folded) for _, module in nnx.iter_modules(model))


class _Narrowing:
    """The selection, and the table into which the sites that remain are entered in forward order."""

    def __init__(self, selection: Selection, table: GateTable):
        self._selection, self._table = selection, table

    def kept(self, site: GateSite | None, filters: int) -> Channels:
        """Which of a convolution's filters stay; those behind the gated ones are always open."""
        if site is None:
            return None
        return np.concatenate([np.array(self._selection[site.name].kept), np.arange(site.size, filters)])

    def site(self, site: GateSite | None) -> GateSite | None:
        """The site with the gates that remain; None if all its filters are always open."""
        if site is None or not (gated := self._selection[site.name].gated):
            return None
        return self._table.add(site.name, gated, site.feeds)

    def head(self, head: LocalHead | None, inputs: Channels = None) -> LocalHead | None:
        """A block's own head, which decides the gates that remain; call it once the block's sites are entered."""
        if head is None:
            return None
        chosen: list[SiteSelection] = [self._selection[site.name] for site in head.sites]
        starts = np.cumsum([0, *(site.size for site in head.sites)])
        outputs = np.concatenate([start + site.gates for start, site in zip(starts, chosen, strict=False)])
        if not len(outputs):
            return None
        head.bottleneck = _layer(head.bottleneck, inputs=inputs)
        head.scores = _layer(head.scores, outputs=outputs)
        names = {site.name for site in head.sites}
        head.sites = tuple(site for site in self._table.sites if site.name in names)
        return head


def _resnet(net: ResNet, narrowing: _Narrowing) -> None:
    _fold(net, "conv", "bn")
    for stage_name in net.stage_names:
        stage: Stage = getattr(net, stage_name)
        for block_name in stage.block_names:
            _residual_block(getattr(stage, block_name), narrowing)


def _residual_block(block: ResidualBlock, narrowing: _Narrowing) -> None:
    channels: Channels = None
    for i, site in enumerate(block.sites, 1):
        kept = narrowing.kept(site, getattr(block, f"conv{i}").out_features)
        _fold(block, f"conv{i}", f"bn{i}", inputs=channels, outputs=kept)
        channels = kept
    block.sites = tuple(narrowing.site(site) for site in block.sites)
    block.into = _into(block.into, channels, block.out_channels)
    _narrow_squeeze(block.squeeze, channels)
    block.local = narrowing.head(block.local)
    if isinstance(block.shortcut, Shortcut):
        _fold(block.shortcut, "conv", "bn")


def _shake_shake(net: ShakeShake, narrowing: _Narrowing) -> None:
    _fold(net, "conv", "bn")
    for name in net.order:
        block: ShakeBlock = getattr(net, name)
        channels = block.out_channels
        for branch in (block.branch1, block.branch2):
            _branch(branch, channels, narrowing)
        block.local = narrowing.head(block.local)
        if block.shortcut is not None:
            _two_paths(block.shortcut)


def _branch(branch: Branch, channels: int, narrowing: _Narrowing) -> None:
    inner = narrowing.kept(branch.site1, branch.conv1.out_features)
    outer = narrowing.kept(branch.site2, branch.conv2.out_features)
    _fold(branch, "conv1", "bn1", outputs=inner)
    _fold(branch, "conv2", "bn2", inputs=inner, outputs=outer)
    branch.site1, branch.site2 = narrowing.site(branch.site1), narrowing.site(branch.site2)
    branch.into = _into(branch.into, outer, channels)


def _two_paths(shortcut: Any) -> None:  # a TwoPathShortcut
    if isinstance(shortcut.bn, Folded):
        return
    scale, shift = _scale_and_shift(shortcut.bn)
    half = shortcut.conv1.out_features
    shortcut.conv1 = _layer(shortcut.conv1, scale=scale[:half], shift=shift[:half])
    shortcut.conv2 = _layer(shortcut.conv2, scale=scale[half:], shift=shift[half:])
    shortcut.bn = Folded()


def _densenet(net: DenseNet, narrowing: _Narrowing) -> None:
    stream = np.arange(net.conv.out_features)  # the channels that are there, of those that were
    width = len(stream)  # how many there were
    for name in net.order:
        unit = getattr(net, name)
        if isinstance(unit, DenseLayer):
            growth = unit.conv2.out_features
            kept = _dense_layer(unit, stream, narrowing)
            stream = np.concatenate([stream, width + (np.arange(growth) if kept is None else kept)])
            width += growth
        else:
            constant = _constant(unit.bn, stream)
            unit.bn = _batch_norm(unit.bn, stream)
            unit.conv = _layer(unit.conv, inputs=stream, constant=constant)
            width = unit.conv.out_features
            stream = np.arange(width)
    constant = _constant(net.bn, stream)
    net.bn = _batch_norm(net.bn, stream)
    if net.fc is not None:
        net.fc = _layer(net.fc, inputs=stream, constant=constant)
        net.num_features = len(stream)


def _dense_layer(layer: Any, stream: np.ndarray, narrowing: _Narrowing) -> Channels:
    inner = narrowing.kept(layer.site1, layer.conv1.out_features)
    outer = narrowing.kept(layer.site2, layer.conv2.out_features)
    scale, shift = _scale_and_shift(layer.bn2)
    constant = _constant(layer.bn1, stream)
    layer.bn1 = _batch_norm(layer.bn1, stream)
    layer.conv1 = _layer(layer.conv1, inputs=stream, outputs=inner, scale=scale, shift=shift, constant=constant)
    layer.bn2 = Folded()
    layer.conv2 = _layer(layer.conv2, inputs=inner, outputs=outer)
    layer.site1, layer.site2 = narrowing.site(layer.site1), narrowing.site(layer.site2)
    _narrow_squeeze(layer.squeeze, outer)
    layer.local = narrowing.head(layer.local, stream)
    return outer


def _narrow_head(head: GaterHead, gates: np.ndarray) -> None:
    if isinstance(head.bn, BatchNorm):
        scale, shift = _scale_and_shift(head.bn)
        head.bottleneck = _layer(head.bottleneck, scale=scale, shift=shift)
        head.bn = None
    head.scores = _layer(head.scores, outputs=gates)


def _narrow_squeeze(squeeze: SqueezeExcitation | None, channels: Channels) -> None:
    """A closed channel's mean is zero, and it stays zero whatever rescales it."""
    if squeeze is not None:
        squeeze.fc1 = _layer(squeeze.fc1, inputs=channels)
        squeeze.fc2 = _layer(squeeze.fc2, outputs=channels)


_BACKBONES: dict[type[Backbone], Callable[[Any, _Narrowing], None]] = {
    ResNet: _resnet,
    DenseNet: _densenet,
    ShakeShake: _shake_shake,
}


def _into(before: Places | None, kept: Channels, channels: int) -> Any:
    """Into which of the stream's channels the kept filters go, when all of them went into those `before`."""
    places = np.arange(channels) if before is None else np.asarray(before.get_value())
    places = places if kept is None else places[kept]
    if np.array_equal(places, np.arange(channels)):
        return None
    return nnx.data(Places(jnp.asarray(places, jnp.int32)))  # the attribute was a plain None before


def _fold(unit: Any, conv: str, bn: str, *, inputs: Channels = None, outputs: Channels = None) -> None:
    """Narrows unit.conv, with unit.bn folded into it."""
    scale, shift = _scale_and_shift(getattr(unit, bn))
    setattr(unit, conv, _layer(getattr(unit, conv), inputs=inputs, outputs=outputs, scale=scale, shift=shift))
    setattr(unit, bn, Folded())


def _layer(
    layer: Any,
    *,
    inputs: Channels = None,
    outputs: Channels = None,
    scale: np.ndarray | None = None,
    shift: np.ndarray | None = None,
    constant: np.ndarray | None = None,
) -> Any:
    """A convolution or linear layer with some of its inputs and outputs, followed by scale and shift.

    Args:
        layer: Conv or Linear.
        inputs, outputs: which stay.
        scale, shift: of each output, before some are left out.
        constant: what each input is that is left out; a convolution must then be a 1x1 one.
    """
    kernel = np.asarray(layer.kernel.get_value(), np.float64)
    bias = np.zeros(kernel.shape[-1]) if layer.bias is None else np.asarray(layer.bias.get_value(), np.float64)
    if inputs is not None:
        if constant is not None:
            left_out = np.setdiff1d(np.arange(kernel.shape[-2]), inputs)
            bias = bias + constant[left_out] @ kernel.reshape(kernel.shape[-2:])[left_out]
        kernel = kernel[..., inputs, :]
    if scale is not None:
        kernel, bias = kernel * scale, bias * scale
    if shift is not None:
        bias = bias + shift
    if outputs is not None:
        kernel, bias = kernel[..., outputs], bias[outputs]
    options: dict[str, Any] = dict(kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    if isinstance(layer, Conv):
        options |= dict(strides=layer.strides, padding=layer.padding, dtype=layer.dtype)
        narrow: Any = Conv(kernel.shape[-2], kernel.shape[-1], layer.kernel_size, **options)
    else:
        narrow = Linear(kernel.shape[-2], kernel.shape[-1], **options)
    narrow.kernel.set_value(jnp.asarray(kernel, jnp.float32))
    narrow.bias.set_value(jnp.asarray(bias, jnp.float32))
    return narrow


def _scale_and_shift(bn: BatchNorm | Folded) -> tuple[Any, Any]:
    """y = scale x + shift, as BatchNorm evaluates; nothing where it was folded before."""
    if isinstance(bn, Folded):
        return None, None
    assert bn.scale is not None and bn.bias is not None
    scale, bias, mean, variance = (
        np.asarray(variable.get_value(), np.float64) for variable in (bn.scale, bn.bias, bn.mean, bn.var)
    )
    scale = scale / np.sqrt(variance + bn.epsilon)
    return scale, bias - mean * scale


def _constant(bn: BatchNorm, channels: np.ndarray) -> np.ndarray | None:
    """What a BatchNorm and a ReLU make of channels that are zero."""
    return None if len(channels) == bn.num_features else np.maximum(_scale_and_shift(bn)[1], 0)


def _batch_norm(bn: BatchNorm, channels: np.ndarray) -> BatchNorm:
    """The BatchNorm of some channels."""
    narrow = BatchNorm(len(channels), rngs=nnx.Rngs(0))
    narrow.eval()
    for name in ("scale", "bias", "mean", "var"):
        getattr(narrow, name).set_value(jnp.asarray(np.asarray(getattr(bn, name).get_value())[channels]))
    return narrow
