"""Per-image execution: each unit runs with the filters that are open, gathered into one of a few static widths.

    how many filters are open -> lax.switch -> gather their kernels -> narrow convolutions -> put back in their channels

Under one jit, exact for every input. In a batch a unit gathers the filters that any of its images opens, and the gates
are applied as masks: right for every batch, and made for batches of one, into which `Predictor` cuts larger ones.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.inference.narrow import check_gated, is_narrow, narrow_model
from gaternet_jax.inference.open_filters import OpenFilters, find_open, open_first, take_inputs, take_outputs
from gaternet_jax.inference.selection import everything, round_up
from gaternet_jax.inference.tuning import ConvShape, ConvTimes, choose_algorithms, conv_shapes
from gaternet_jax.models.blocks import ResidualBlock, decide_locally
from gaternet_jax.models.convolution import convolution, only
from gaternet_jax.models.densenet import DenseLayer
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.gates import Gates, GateSite
from gaternet_jax.models.layers import Conv, add_into
from gaternet_jax.models.shake_shake import Branch

FRACTIONS = (0.25, 0.375, 0.5, 0.625, 0.75)  # of a convolution's filters; where more are open it runs dense

Way = tuple[tuple[int, str], ...]  # filters and algorithm of each convolution


def _same(maps: jax.Array) -> jax.Array:
    return maps


class Chain(nnx.Module):
    """Convolutions one after the other, ReLU between them, that run with their open filters only.

        y = finish(onto + conv_n(relu(... conv_1(x))))        each with its gates; the last one is gated

    Args:
        convs: with BatchNorm folded into them.
        sites: their gates; None where a convolution is not gated.
        finish: see above.

    Attributes:
        ways: for each narrow way to run, the fastest first, the filters of each convolution and its algorithm.
        alike: for each site, where the gates of all sites of its size begin: their filters are ordered together.
    """

    def __init__(
        self, convs: list[Conv], sites: tuple[GateSite | None, ...], finish: Callable[[jax.Array], jax.Array] = _same
    ):
        self.convs, self.sites, self.finish = nnx.List(convs), sites, finish
        self.alike: tuple[tuple[int, ...], ...] = tuple((site.offset,) if site else () for site in sites)
        self.ways: tuple[Way, ...] = tuple(
            tuple(
                (conv.out_features if site is None else round_up(round(fraction * site.size), site.size), "direct")
                for conv, site in self._layers
            )
            for fraction in FRACTIONS
        )

    @property
    def _layers(self) -> list[tuple[Conv, GateSite | None]]:
        return list(zip(self.convs, self.sites, strict=True))

    def __call__(self, x: jax.Array, onto: jax.Array, gates: Gates) -> jax.Array:
        opened = [
            None if site is None else find_open(gates, site, alike)
            for site, alike in zip(self.sites, self.alike, strict=True)
        ]
        # The fastest way that is wide enough for all; chosen by scalars, which take no kernel of their own.
        level: Any = len(self.ways) + 1  # the dense one
        for i, way in reversed(list(enumerate(self.ways, 1))):
            wide = [of_site.number <= width for of_site, (width, _) in zip(opened, way, strict=True) if of_site]
            level = jnp.where(functools.reduce(jnp.logical_and, wide), i, level)
        assert opened[-1] is not None
        level = jnp.where(opened[-1].number == 0, 0, level)
        narrow: list[Callable] = [functools.partial(self.run, way) for way in self.ways]
        return jax.lax.switch(level, [self.run_closed, *narrow, self.run_dense], x, onto, opened)

    def run_closed(self, x: jax.Array, onto: jax.Array, opened: list[OpenFilters | None]) -> jax.Array:
        """Runs where no filter of the last convolution is open."""
        del x, opened
        return self.finish(onto)

    def run(self, way: Way, x: jax.Array, onto: jax.Array, opened: list[OpenFilters | None]) -> jax.Array:
        """Runs in a way that is wide enough for the open filters."""
        filters = None  # those that the maps are of; None: all
        for (conv, _), of_site, (width, algorithm) in zip(self._layers, opened, way, strict=True):
            assert conv.bias is not None
            kernel, bias = conv.kernel.get_value().astype(x.dtype), conv.bias.get_value().astype(x.dtype)
            kernel = kernel if filters is None else take_inputs(kernel, filters)
            filters = None if of_site is None or width == conv.out_features else of_site.order[:width]
            if filters is not None:
                kernel, bias = take_outputs(kernel, filters), bias[filters]
            x = convolution(x, kernel, only(conv.strides), only(conv.padding), algorithm) + bias[None, None, None]
            x = x if conv is self.convs[-1] else jax.nn.relu(x)
            if of_site is not None:
                x = x * of_site.of(filters)[:, None, None].astype(x.dtype)
        return self.finish(add_into(onto, x, filters))

    def run_dense(self, x: jax.Array, onto: jax.Array, opened: list[OpenFilters | None]) -> jax.Array:
        """Runs with all filters; gates as masks."""
        for (conv, _), of_site in zip(self._layers, opened, strict=True):
            x = conv(x)
            x = x if conv is self.convs[-1] else jax.nn.relu(x)
            if of_site is not None:
                x = x * of_site.gates[:, None, None].astype(x.dtype)
        return self.finish(onto + x)


class DynamicBlock(nnx.Module):
    """ResidualBlock with its open filters only."""

    def __init__(self, block: ResidualBlock):
        self.shortcut, self.squeeze, self.local = block.shortcut, block.squeeze, block.local
        convs = [getattr(block, f"conv{i}") for i in range(1, block.depth + 1)]
        self.chain = Chain(convs, block.sites, jax.nn.relu if self.squeeze is None else _same)

    def __call__(self, x: jax.Array, gates: Gates) -> jax.Array:
        decide_locally(self.local, x, gates)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if self.squeeze is None:
            return self.chain(x, shortcut, gates)
        return jax.nn.relu(shortcut + self.squeeze(self.chain(x, jnp.zeros_like(shortcut), gates)))


class DynamicDenseLayer(nnx.Module):
    """DenseLayer with its open filters only; channels of x that are closed still enter its first convolution."""

    def __init__(self, layer: DenseLayer):
        self.bn1, self.squeeze, self.local = layer.bn1, layer.squeeze, layer.local
        self.chain = Chain([layer.conv1, layer.conv2], (layer.site1, layer.site2))

    def __call__(self, x: jax.Array, gates: Gates) -> jax.Array:
        decide_locally(self.local, x, gates)
        nothing = jnp.zeros((*x.shape[:-1], self.chain.convs[-1].out_features), x.dtype)
        new = self.chain(jax.nn.relu(self.bn1(x)), nothing, gates)
        return jnp.concatenate([x, new if self.squeeze is None else self.squeeze(new)], axis=-1)


class DynamicBranch(nnx.Module):
    """Branch of a ShakeBlock with its open filters only."""

    def __init__(self, branch: Branch):
        self.chain, self.into = Chain([branch.conv1, branch.conv2], (branch.site1, branch.site2)), None

    def __call__(self, x: jax.Array, gates: Gates) -> jax.Array:
        conv = self.chain.convs[0]
        step = slice(None, None, only(conv.strides))
        nothing = jnp.zeros((*x[:, step, step].shape[:-1], self.chain.convs[-1].out_features), x.dtype)
        return self.chain(jax.nn.relu(x), nothing, gates)


_DYNAMIC: dict[type, type] = {ResidualBlock: DynamicBlock, DenseLayer: DynamicDenseLayer, Branch: DynamicBranch}


def make_dynamic(model: GaterNet, image_size: int, times: ConvTimes | None = None) -> GaterNet:
    """A copy of a model, in evaluation mode, whose gated units run with their open filters only.

    Args:
        model: with gates, not compacted.
        image_size: pixels.
        times: algorithms and ways are chosen by these; None: XLA's convolutions, all ways.

    Raises:
        UserError: the model has no gates, or some of its filters were removed.
    """
    check_gated(model)
    if is_narrow(model):
        raise UserError("per-image execution wants the whole model, but this one was compacted; give the original")
    dynamic = narrow_model(model, everything(model.gate_sites))
    shapes = conv_shapes(dynamic, image_size)
    choose_algorithms(dynamic, image_size, times)
    chosen: dict[tuple, tuple[Way, ...]] = {}  # units of one shape are measured once
    for path, unit in list(nnx.iter_modules(dynamic.backbone)):
        if type(unit) not in _DYNAMIC:
            continue
        replacement = _DYNAMIC[type(unit)](unit)
        *owners, name = map(str, path)
        owner: Any = dynamic.backbone
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, name, replacement)
        chain: Chain = replacement.chain
        chain.alike = tuple(
            tuple(other.offset for other in model.gate_sites if site and other.size == site.size)
            for site in chain.sites
        )
        if times is not None:
            prefix = ".".join(map(str, ("backbone", *path)))
            of_unit = tuple(shapes[f"{prefix}.conv{i}"] for i in range(1, len(chain.convs) + 1))
            key = (of_unit, tuple(site is not None for site in chain.sites))
            if key not in chosen:
                chosen[key] = _choose_ways(chain, of_unit, times)
            chain.ways = chosen[key]
    return dynamic


def _choose_ways(chain: Chain, shapes: tuple[ConvShape, ...], times: ConvTimes) -> tuple[Way, ...]:
    """The ways, with their algorithms, that are faster than all wider ones and than the dense one.

    The last convolution may also run with all of its filters: its outputs then need not be put in their places.
    """
    candidates: dict[Way, None] = {}  # rounding makes some the same
    for way in chain.ways:
        for last in (way[-1][0], shapes[-1].out_channels):
            channels, steps = shapes[0].in_channels, []
            for shape, width in zip(shapes, (*(width for width, _ in way[:-1]), last), strict=True):
                narrow = dataclasses.replace(shape, in_channels=channels, out_channels=width)
                steps.append((width, times.algorithm(narrow)))
                channels = width
            candidates[tuple(steps)] = None
    graphdef, state = nnx.split(chain)
    runs = [functools.partial(_run_chain, graphdef, way) for way in (*candidates, None)]
    x = jnp.ones(times.inputs(shapes[0]), shapes[0].dtype)
    opened = _all_open(chain, x)
    maps = jax.eval_shape(functools.partial(_run_chain, graphdef, None), x, jnp.zeros(()), state, opened)
    *seconds, dense = times.measure(runs, x, jnp.zeros(maps.shape, maps.dtype), state, opened)
    ways: list[Way] = []
    for taken, way in sorted(zip(seconds, candidates, strict=True)):
        narrower = any(all(width <= wide for (width, _), (wide, _) in zip(way, other, strict=True)) for other in ways)
        if taken < dense and not narrower:
            ways.append(way)
    return tuple(ways)


def _all_open(chain: Chain, x: jax.Array) -> list[OpenFilters | None]:
    return [
        site and OpenFilters(jnp.ones((x.shape[0], site.size)), *open_first(jnp.ones((1, site.size), bool)))
        for site in chain.sites
    ]


def _run_chain(
    graphdef: nnx.GraphDef, way: Way | None, x: jax.Array, onto: jax.Array, state: Any, opened: list
) -> jax.Array:
    chain = nnx.merge(graphdef, state)
    return chain.run_dense(x, onto, opened) if way is None else chain.run(way, x, onto, opened)
