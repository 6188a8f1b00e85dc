"""Rules of operations that leave channels what they are, and move, join or part them."""

import itertools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from gaternet_jax.gating.channels import ALL, Channels, Layout, Run, join
from gaternet_jax.gating.program import Step
from gaternet_jax.gating.rules import Rule, Value, is_zero

_NAMES = """broadcast_in_dim squeeze expand_dims transpose rev pad reduce_sum reduce_max reduce_min reduce_and reduce_or
reduce_prod reduce_window_sum reduce_window_max reduce_window_min cumsum cummax cummin cumprod"""
PER_CHANNEL = frozenset(_NAMES.split())


class PerChannel(Rule):
    """Works on each channel by itself, and may move the axis: shapes, windows and reductions over other axes."""

    def axis(self, step: Step, axis: int) -> int | None:
        """Where an axis of the operand goes; None where its channels do not stay what they are."""
        params, shape, name = step.params, step.inputs[0].shape, step.name
        if name == "broadcast_in_dim":
            place = params["broadcast_dimensions"][axis]
            return place if step.outputs[0].shape[place] == shape[axis] else None
        if name in ("reshape", "squeeze", "expand_dims"):
            return _same_place(shape, step.outputs[0].shape, axis)
        if name == "transpose":
            return list(params["permutation"]).index(axis)
        if name == "rev":
            return None if axis in params["dimensions"] else axis
        if name == "pad":
            return axis if tuple(params["padding_config"][axis]) == (0, 0, 0) else None
        if name == "slice":
            return axis if step.outputs[0].shape[axis] == shape[axis] else None
        if name.startswith("cum"):
            return None if params["axis"] == axis else axis
        if name.startswith("reduce_window"):
            sizes = [params[kind][axis] for kind in ("window_dimensions", "window_strides", "base_dilation")]
            return axis if sizes == [1, 1, 1] and tuple(params["padding"][axis]) == (0, 0) else None
        return None if axis in params["axes"] else axis - sum(other < axis for other in params["axes"])

    def absent(self, step: Step, layout: Layout, plan: Any) -> str | None:
        """What the absent channels of the result are; None: no constants."""
        zero, name, params = layout.absent == "zero", step.name, step.params
        if name == "pad":
            return "zero" if zero and is_zero(step.inputs[1], plan) else None
        if name.startswith("cum") or name == "reduce_prod":
            return "zero" if zero else None
        if name.startswith("reduce_window"):
            pads, dilations = [max(pad) for pad in params["padding"]], {*params["base_dilation"]}
            if any(pads) or dilations != {1}:  # a window also sees padding
                if name == "reduce_window_sum":
                    return "zero" if zero else None
                dilations |= {*params["window_dilation"]}
                sees_more = all(pad < size for pad, size in zip(pads, params["window_dimensions"], strict=True))
                return layout.absent if sees_more and dilations == {1} else None
        return layout.absent

    def have(self, step, plan):
        layout = plan.have.get(step.inputs[0])
        if layout is None or (axis := self.axis(step, layout.axis)) is None:
            return None
        absent = self.absent(step, layout, plan)
        return Layout(axis, layout.channels, absent) if absent else None

    def _source(self, step: Step, layout: Layout | None) -> Layout | None:
        """The layout of the operand from which the result has this one."""
        if layout is None:
            return None
        for axis, size in enumerate(step.inputs[0].shape):
            if self.axis(step, axis) == layout.axis and size == layout.channels.size:
                return Layout(axis, layout.channels)
        return None

    def want(self, step, plan):
        return [self._source(step, plan.layout(step.outputs[0])), *[None] * (len(step.inputs) - 1)]

    def run(self, step, ex):
        x, layout = step.inputs[0], ex.plan.layout(step.outputs[0])
        source = self._source(step, layout)
        if step.name == "broadcast_in_dim" and (source is None) == (layout is None):
            result = _placed(step, ex.take(x, source) if source else ex.thin(x))
        elif source is None or layout is None:
            return super().run(step, ex)
        else:
            operands = [ex.full(x, source), *map(ex.full, step.inputs[1:])]
            result = step.bind(operands, **_narrowed(step, source.axis, layout, ex.widths))[0]
        fill = ex.values[x].fill if layout and layout.absent == "constant" else None
        return [Value(result, None if fill is None else fill * _repeats(step))]


def _same_place(before: tuple, after: tuple, axis: int) -> int | None:
    """Where a reshape leaves an axis as it is."""
    for place, size in enumerate(after if before[axis] != 1 else ()):
        if size == before[axis] and math.prod(after[:place]) == math.prod(before[:axis]):
            return place
    return None


def _placed(step: Step, x: Any) -> Any:
    """A broadcast that only adds axes of size 1: what reads it broadcasts further."""
    shape = [1] * len(step.outputs[0].shape)
    for place, size in zip(step.params["broadcast_dimensions"], jnp.shape(x), strict=True):
        shape[place] = size
    return lax.reshape(jnp.asarray(x), shape)


def _narrowed(step: Step, axis: int, layout: Layout, widths: Any) -> dict[str, Any]:
    """The params for fewer channels."""
    name, axis = {"reshape": ("new_sizes", layout.axis), "slice": ("limit_indices", axis)}.get(step.name, ("", axis))
    if not name:
        return {}
    sizes = list(step.params[name])
    sizes[axis] = layout.channels.count(widths)
    return {name: tuple(sizes)}


def _repeats(step: Step) -> Any:
    """How many equal numbers a sum adds."""
    if step.name == "reduce_sum":
        return math.prod(step.inputs[0].shape[axis] for axis in step.params["axes"])
    return math.prod(step.params["window_dimensions"]) if step.name == "reduce_window_sum" else 1


class Reshape(PerChannel):
    """Keeps the axis of the channels, or merges others into it: [B, H, W, C] to [B, H * W * C]."""

    def have(self, step, plan):
        layout = plan.have.get(step.inputs[0])
        if layout is None or self.axis(step, layout.axis) is not None:
            return super().have(step, plan)
        before, after, axis = step.inputs[0].shape, step.outputs[0].shape, layout.axis
        for first, last in itertools.product(range(1, axis + 1), range(axis, len(before))):  # never the batch
            if after == (*before[:first], math.prod(before[first : last + 1]), *before[last + 1 :]):
                outer = math.prod(before[first:axis]) * layout.channels.outer
                inner = math.prod(before[axis + 1 : last + 1]) * layout.channels.inner
                return Layout(first, Channels(layout.channels.runs, outer, inner), layout.absent)
        return None

    def run(self, step, ex):
        (x,), layout = step.inputs, ex.plan.layout(step.outputs[0])
        before = ex.plan.layout(x)
        if layout is None or before is None or self._source(step, layout) is not None:
            return super().run(step, ex)
        shape, fill = list(step.outputs[0].shape), ex.values[x].fill
        shape[layout.axis] = layout.channels.count(ex.widths)
        if fill is not None:
            inner = layout.channels.inner // before.channels.inner
            tall = (layout.channels.size // (fill.size * inner), fill.size, inner)
            fill = jnp.broadcast_to(fill[None, :, None], tall).reshape(-1)
        return [Value(ex.full(x, before).reshape(shape), fill)]


class Slice(PerChannel):
    """Leaves the channels, or takes a part of them where that cuts no site in two."""

    @staticmethod
    def _part(step: Step, layout: Layout | None) -> tuple[int, int] | None:
        """Start and stop of a slice of the channels only."""
        params, shape = step.params, step.inputs[0].shape
        cut = [axis for axis, size in enumerate(shape) if size != step.outputs[0].shape[axis]]
        if layout is None or cut != [layout.axis] or (params["strides"] or (1,) * len(shape))[layout.axis] != 1:
            return None
        return params["start_indices"][layout.axis], params["limit_indices"][layout.axis]

    def have(self, step, plan):
        layout = plan.have.get(step.inputs[0])
        if (part := self._part(step, layout)) is None:
            return super().have(step, plan)
        channels = layout.channels.between(*part)
        return Layout(layout.axis, channels, layout.absent) if channels and channels.sites else None

    def want(self, step, plan):
        layout = plan.layout(step.outputs[0])
        if (part := self._part(step, layout)) is None:
            return super().want(step, plan)
        channels = layout.channels.within(part[0], step.inputs[0].shape[layout.axis] - part[1])
        return [Layout(layout.axis, channels) if channels else None]

    def run(self, step, ex):
        (x,), layout = step.inputs, ex.plan.layout(step.outputs[0])
        source = ex.plan.layout(x)
        if (part := self._part(step, source)) is None or source is None:
            if self._part(step, layout) is None:
                return super().run(step, ex)
            return [ex.held(step.outputs[0], step.bind([ex.full(x)])[0])]
        before, channels = source.channels.between(0, part[0]), source.channels.between(*part)
        if before is None or channels is None or (layout is not None and layout.channels != channels):
            return [ex.held(step.outputs[0], step.bind([ex.full(x)])[0])]
        start, fill = before.count(ex.widths), ex.values[x].fill
        stop = start + channels.count(ex.widths)
        result = lax.slice_in_dim(ex.full(x, source), start, stop, axis=source.axis)
        return [Value(result, None if fill is None else fill[slice(*part)])]


class Concatenate(Rule):
    """Joins channels; along another axis, joins arrays of the same channels."""

    def have(self, step, plan):
        axis, layouts = step.params["dimension"], [plan.have.get(ref) for ref in step.inputs]
        there = [layout for layout in layouts if layout]
        zero = all(layout.absent == "zero" for layout in there)
        if not there:
            return None
        if all(layout and layout.axis != axis and layout.holds(there[0]) for layout in layouts):
            return there[0] if zero else None
        if any(layout.axis != axis or layout.channels.outer * layout.channels.inner != 1 for layout in there):
            return None
        own = zip(step.inputs, layouts, strict=True)
        runs = [run for ref, layout in own for run in (layout.channels.runs if layout else [Run(ALL, ref.shape[axis])])]
        return Layout(axis, join(runs), "zero" if zero else "constant")

    def want(self, step, plan):
        layout = plan.layout(step.outputs[0])
        if layout is None or layout.axis != step.params["dimension"]:
            return [layout] * len(step.inputs)
        return [Layout(layout.axis, part) if part and part.sites else None for part in self._parts(step, layout)]

    @staticmethod
    def _parts(step: Step, layout: Layout) -> list[Channels | None]:
        """The channels of each operand."""
        edges = itertools.accumulate((ref.shape[layout.axis] for ref in step.inputs), initial=0)
        return [layout.channels.between(*edge) for edge in itertools.pairwise(edges)]

    def run(self, step, ex):
        axis, layout = step.params["dimension"], ex.plan.layout(step.outputs[0])
        if layout is None:
            return super().run(step, ex)
        parts = self._parts(step, layout) if layout.axis == axis else [layout.channels] * len(step.inputs)
        if None in parts:
            return super().run(step, ex)
        held = [Layout(layout.axis, part) for part in parts if part is not None]
        result = step.bind([ex.full(ref, own) for ref, own in zip(step.inputs, held, strict=True)])[0]
        fill = None
        if layout.absent == "constant":
            fill = jnp.concatenate([ex.constants(ref, axis) for ref in step.inputs])
        return [Value(result, fill)]
