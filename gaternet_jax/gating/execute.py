"""Computes a program in the layouts of its plan."""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gaternet_jax.gating.channels import Channels, Layout, along
from gaternet_jax.gating.plan import Plan, rule_of
from gaternet_jax.gating.program import Ref
from gaternet_jax.gating.rules import Value

# What kept channels are, as indices.
_DISTINCT: dict[str, Any] = dict(unique_indices=True, mode="promise_in_bounds", wrap_negative_indices=False)


class Execution:
    """Runs a program once, in the layouts of its plan.

    `keep` has the channels that are kept of each site, distinct int [n]; those of sites that are `always_open` are not
    multiplied by their gates.
    """

    def __init__(self, plan: Plan, keep: Sequence[jax.Array], always_open: Collection[int] = ()):
        self.plan, self.keep, self.always_open = plan, keep, always_open
        self.widths = tuple(index.shape[0] for index in keep)
        self.values: dict[Ref, Value] = {ref: Value(array) for ref, array in plan.program.constants.items()}
        self._indices: dict[Channels, jax.Array] = {}

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Computes the outputs of the program, whole."""
        self.values |= {ref: self.held(ref, x) for ref, x in zip(self.plan.program.inputs, inputs, strict=True)}
        for step in self.plan.program.steps:
            self.values.update(zip(step.outputs, rule_of(step).run(step, self), strict=True))
        return [self.full(ref) for ref in self.plan.program.outputs]

    def full(self, ref: Ref, *layouts: Layout | None) -> Any:
        """Gives a value with all channels, or along some axes those of the layouts, in its whole shape."""
        array = jnp.asarray(self.thin(ref, *layouts))
        cuts = {layout.axis: layout.channels.count(self.widths) for layout in layouts if layout}
        shape = tuple(cuts.get(axis, size) for axis, size in enumerate(ref.shape))
        return array if array.shape == shape else jnp.broadcast_to(array, shape)

    def thin(self, ref: Ref, *layouts: Layout | None) -> Any:
        """Does as `full`, but leaves axes that it was broadcast to of size 1."""
        if ref.literal is not None:
            return ref.literal
        array, own = self.values[ref].array, self.plan.layout(ref)
        cuts = {layout.axis: layout.channels for layout in layouts if layout}
        if own and cuts.get(own.axis) == own.channels:
            del cuts[own.axis]
        elif own and (start := own.channels.find(cuts.get(own.axis), self.widths)) is not None:
            stop = start + cuts.pop(own.axis).count(self.widths)
            array = lax.slice_in_dim(array, start, stop, axis=own.axis)
        elif own and not own.channels.is_complete(self.widths):
            fill = self.values[ref].fill
            shape = [own.channels.size if axis == own.axis else size for axis, size in enumerate(array.shape)]
            others = 0 if fill is None else along(fill, own.axis, array.ndim)
            others = jnp.full(shape, others, ref.aval.dtype)
            array = self._at(others, own.axis, own.channels).set(array, **_DISTINCT)
        for axis, channels in cuts.items():
            array = self._gather(array, axis, channels)
        return array

    def folded(self, ref: Ref) -> Any:
        """Computes a product together with what follows it up to this value; None where that is not one."""
        if ref not in self.plan.chains:
            return None
        product, steps = self.plan.chains[ref]

        def follow(maps: Any) -> Any:
            return functools.reduce(lambda maps, step: rule_of(step).follow(step, maps, self), steps, maps)

        return rule_of(product).run(product, self, follow)[0].array

    def constants(self, ref: Ref, axis: int) -> jax.Array:
        """Gives what the absent channels of a value are, [C]."""
        fill = self.values[ref].fill
        return jnp.zeros(ref.shape[axis], ref.aval.dtype) if fill is None else fill

    def absent(self, ref: Ref) -> jax.Array:
        """Gives what the absent channels of a value are, and zeros for those that are there, [C]."""
        layout = self.plan.have[ref]
        return self._at(self.constants(ref, layout.axis), 0, layout.channels).set(0, **_DISTINCT)

    def fill(self, ref: Ref, layout: Layout) -> Any:
        """Gives what absent channels of an operand are, as an array that varies along the layout's axis only."""
        if ref in self.plan.have:
            return along(self.constants(ref, layout.axis), layout.axis, len(ref.shape))
        return self.thin(ref)

    def mask(self, own: Layout, layout: Layout | None, dtype: Any) -> jax.Array:
        """Gives 1 for channels of `own` and 0 for others, along the last axis of maps; cut to those of `layout`."""
        mask = self._at(jnp.zeros(own.channels.size, dtype), 0, own.channels).set(1, **_DISTINCT)
        if layout is not None and layout.axis == own.axis:
            mask = self._gather(mask, 0, layout.channels)
        return along(mask, own.axis, own.axis + 1)

    def held(self, ref: Ref, array: Any, channels: Channels | None = None, fill: Any = None) -> Value:
        """Holds a result that has the given channels, or all, in the layout of the plan."""
        layout = self.plan.layout(ref)
        if layout is None or layout.channels == channels:
            return Value(array, fill)
        return Value(self._gather(array, layout.axis, layout.channels), fill)

    def _gather(self, array: Any, axis: int, channels: Channels) -> Any:
        if channels.is_complete(self.widths) or array.shape[axis : axis + 1] != (channels.size,):
            return array  # the latter: of size 1, where it was broadcast
        return self._at(array, axis, channels).get(**_DISTINCT)

    def _at(self, array: Any, axis: int, channels: Channels) -> Any:
        if channels not in self._indices:
            self._indices[channels] = channels.indices(self.keep, self.widths)
        return jnp.asarray(array).at[(slice(None),) * axis + (self._indices[channels],)]
