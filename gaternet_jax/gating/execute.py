"""Computes a program in the layouts of its plan."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gaternet_jax.gating.channels import Channels, Layout, along
from gaternet_jax.gating.plan import Plan, rule_of
from gaternet_jax.gating.products import Product
from gaternet_jax.gating.program import Ref, Step
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
        (array, fill), own = self.values[ref], self.plan.layout(ref)
        cuts = {layout.axis: layout.channels for layout in layouts if layout}
        if own and cuts.get(own.axis) == own.channels:
            del cuts[own.axis]
        elif own and (start := own.channels.find(cuts.get(own.axis), self.widths)) is not None:
            stop = start + cuts.pop(own.axis).count(self.widths)
            array = lax.slice_in_dim(array, start, stop, axis=own.axis)
        elif own and not own.channels.is_complete(self.widths):
            whole = [own.channels.size if axis == own.axis else size for axis, size in enumerate(array.shape)]
            shape = jnp.broadcast_shapes(whole, np.shape(fill))
            others = jnp.full(shape, 0 if fill is None else fill, ref.aval.dtype)
            array = self._at(others, own.axis, own.channels).set(array, **_DISTINCT)
        for axis, channels in cuts.items():
            array = self._gather(array, axis, channels)
        return array

    def constants(self, ref: Ref, least: Sequence[Any], absent_only: bool = False) -> Any:
        """Gives what the absent channels of a value are, in an array of all channels, spread to the least shape.

        Those that are there may be anything in it, or else zero; of a known value, all are what they are.
        """
        if ref.literal is not None:
            return ref.literal
        array, own = self.values[ref].fill, self.plan.have.get(ref)
        if array is None and self.plan.is_known(ref):
            array = self.values[ref].array
        elif array is None:  # zeros, in which nothing is read of what is whole
            size, axis = (ref.shape[own.axis], own.axis) if own else (1, 0)
            array = along(jnp.zeros(size, ref.aval.dtype), axis, len(ref.shape))
        if absent_only and own:
            array = self._at(array, own.axis, own.channels).set(0, **_DISTINCT)
        sizes = zip(array.shape, least, strict=True)
        return jnp.broadcast_to(array, [more if size == 1 else size for size, more in sizes])

    def folded(self, step: Step) -> list[Any] | None:
        """Computes affine operations by the product that they stand behind: with another kernel, and a shift.

        None where this is not the last of them. What they make of 0 is the shift; their derivative is the scale.
        """
        if (found := self._product_before(step)) is None:
            return None
        product, axis, place, steps = found
        rule, kernel, output = rule_of(product), product.inputs[1], step.outputs[0].aval
        assert isinstance(rule, Product)
        kept = rule.want(product, self.plan)[1]

        def follow(maps: Any) -> Any:
            for step in steps:
                maps = rule_of(step).follow(step, maps, self)
            return maps

        size = kept.channels.count(self.widths) if kept else kernel.shape[axis]
        dtype = jnp.result_type(*(ref.aval.dtype for each in (product, *steps) for ref in each.outputs))  # the widest
        zeros = along(jnp.zeros(size, dtype), place, len(output.shape))
        shift, scale = jax.jvp(follow, (zeros,), (jnp.ones_like(zeros),))
        result, extra = rule.product(product, self, along(scale, axis, len(kernel.shape)))
        if extra is not None:
            shift = extra.astype(dtype) * scale + shift
        elif not any(other.name in ("add", "add_any", "sub") for other in steps):
            return [result.astype(output.dtype)]
        return [(result.astype(dtype) + shift).astype(output.dtype)]

    def _product_before(self, last: Step) -> tuple[Step, int, int, list[Step]] | None:
        """Finds the product behind which affine operations stand, of which this is the last; along which axis of its
        kernel, and of the result, they vary; and the operations."""
        plan, output, step, steps = self.plan, last.outputs[0], last, []
        reader = None if last.site is not None else plan.readers.get(output)  # gates are no constants: they end it
        if reader and plan.uses[output] == 1 and rule_of(reader).affine(reader, self) is output:
            return None  # it is not the last
        while not isinstance(rule := rule_of(step), Product):
            ref = None if steps and step.site is not None else rule.affine(step, self)
            if ref not in plan.makers or plan.uses[ref] > 1 or plan.held(ref) != plan.held(output):
                return None
            steps.insert(0, step)
            step = plan.makers[ref]
        places = list(rule.places(step)[1].items())
        is_float = jnp.issubdtype(step.outputs[0].aval.dtype, jnp.floating)
        if not plan.is_known(step.inputs[1]) or len(places) != 1 or not is_float:
            return None
        ((axis, place),) = places
        others = [ref for other in steps if other.site is None for ref in other.inputs if plan.is_known(ref)]
        shapes = [np.shape(self.thin(ref)) for ref in others]
        if any(size != 1 for shape in shapes for other, size in enumerate(shape) if other != place):
            return None
        return step, axis, place, steps

    def mask(self, own: Layout, layout: Layout | None, dtype: Any) -> jax.Array:
        """Gives 1 for channels of `own` and 0 for others, along the last axis of maps; cut to those of `layout`."""
        mask = self._at(jnp.zeros(own.channels.size, dtype), 0, own.channels).set(1, **_DISTINCT)
        if layout is not None and layout.axis == own.axis:
            mask = self._gather(mask, 0, layout.channels)
        return along(mask, own.axis, own.axis + 1)

    def held(self, ref: Ref, array: Any, channels: Channels | None = None) -> Value:
        """Holds a result that has the given channels, or all, in the layout of the plan."""
        layout, fill = self.plan.layout(ref), None
        if layout and layout.absent == "constant":
            step = self.plan.makers[ref]
            operands = map(self.constants, step.inputs, rule_of(step).least(step))
            fill = rule_of(step).bind(step, list(operands))[0]
        if layout and layout.channels != channels:
            array = self._gather(array, layout.axis, layout.channels)
        return Value(array, fill)

    def _gather(self, array: Any, axis: int, channels: Channels) -> Any:
        if channels.is_complete(self.widths) or array.shape[axis : axis + 1] != (channels.size,):
            return array  # the latter: of size 1, where it was broadcast
        return self._at(array, axis, channels).get(**_DISTINCT)

    def _at(self, array: Any, axis: int, channels: Channels) -> Any:
        if channels not in self._indices:
            self._indices[channels] = channels.indices(self.keep, self.widths)
        return jnp.asarray(array).at[(slice(None),) * axis + (self._indices[channels],)]
