"""Rules of operations that leave channels what they are, and move, join or part them."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from gaternet_jax.gating.channels import ALL, Channels, Layout, Run, join
from gaternet_jax.gating.program import Step
from gaternet_jax.gating.rules import Rule, Value

_NAMES = """broadcast_in_dim squeeze expand_dims transpose rev pad reduce_sum reduce_max reduce_min reduce_and reduce_or
reduce_prod reduce_window_sum reduce_window_max reduce_window_min cumsum cummax cummin cumprod"""
PER_CHANNEL = frozenset(_NAMES.split())


class PerChannel(Rule):
    """Works on each channel by itself, and may move the axis: shapes, windows and reductions over other axes."""

    def axis(self, step: Step, axis: int) -> int | None:
        """Says where an axis of the operand goes; None where its channels do not stay what they are."""
        params, before, after = step.params, step.inputs[0].shape, step.outputs[0].shape
        match step.name:
            case "broadcast_in_dim":
                place = params["broadcast_dimensions"][axis]
                return place if after[place] == before[axis] else None
            case "reshape" | "squeeze" | "expand_dims":
                places = [place for place, size in enumerate(after) if size == before[axis] != 1]
                outer = math.prod(before[:axis])
                return next((place for place in places if math.prod(after[:place]) == outer), None)
            case "transpose":
                return list(params["permutation"]).index(axis)
            case "rev":
                stays = axis not in params["dimensions"]
            case "pad":
                stays = tuple(params["padding_config"][axis]) == (0, 0, 0)
            case "slice":
                stays = after[axis] == before[axis]
            case "cumsum" | "cummax" | "cummin" | "cumprod":
                stays = axis != params["axis"]
            case "reduce_window_sum" | "reduce_window_max" | "reduce_window_min":
                sizes = [params[kind][axis] for kind in ("window_dimensions", "window_strides", "base_dilation")]
                stays = sizes == [1, 1, 1] and tuple(params["padding"][axis]) == (0, 0)
            case _:
                axes = params["axes"]
                return None if axis in axes else axis - sum(other < axis for other in axes)
        return axis if stays else None

    def absent(self, step: Step, layout: Layout, plan: Any) -> str | None:
        """Says what the absent channels of the result are; None: no constants."""
        name, params, only_zero = step.name, step.params, "zero" if layout.absent == "zero" else None
        if name == "pad":
            return only_zero if plan.is_zero(step.inputs[1]) else None
        if name.startswith("cum") or name == "reduce_prod":
            return only_zero
        if name.startswith("reduce_window"):
            pads, dilations = [max(pad) for pad in params["padding"]], {*params["base_dilation"]}
            if any(pads) or dilations != {1}:  # a window also sees padding
                if name == "reduce_window_sum":
                    return only_zero
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

    def places(self, step):
        axes = {axis: self.axis(step, axis) for axis in range(len(step.inputs[0].shape))}
        return [{axis: place for axis, place in axes.items() if place is not None}, *[{}] * (len(step.inputs) - 1)]

    def run(self, step, ex):
        x, layout, params = step.inputs[0], ex.plan.layout(step.outputs[0]), {}
        source = Rule.want(self, step, ex.plan)[0]
        if step.name == "broadcast_in_dim" and (source is None) == (layout is None):
            array = jnp.asarray(ex.thin(x, source))
            result = lax.reshape(array, spread(step, array.shape))
        elif source is None or layout is None:
            return super().run(step, ex)
        else:
            for name, axis in {"new_sizes": layout.axis, "limit_indices": source.axis}.items():
                if sizes := step.params.get(name):  # of a reshape, of a slice
                    params[name] = (*sizes[:axis], layout.channels.count(ex.widths), *sizes[axis + 1 :])
            result = step.bind([ex.full(x, source), *map(ex.full, step.inputs[1:])], **params)[0]
        fill = ex.values[x].fill if layout and layout.absent == "constant" else None
        return [Value(result, None if fill is None else fill * _repeats(step))]


def spread(step: Step, shape: Sequence[int]) -> list[int]:
    """Gives the shape of an operand of `broadcast_in_dim` with all axes of the result: size 1 where it had them not."""
    spread = [1] * len(step.outputs[0].shape)
    for place, size in zip(step.params["broadcast_dimensions"], shape, strict=True):
        spread[place] = size
    return spread


def _repeats(step: Step) -> Any:
    """Counts how many equal numbers a sum adds."""
    if step.name == "reduce_sum":
        return math.prod(step.inputs[0].shape[axis] for axis in step.params["axes"])
    return math.prod(step.params["window_dimensions"]) if step.name == "reduce_window_sum" else 1


class Reshape(PerChannel):
    """Keeps the axis of the channels, or merges others into it: [B, H, W, C] to [B, H * W * C]."""

    def have(self, step, plan):
        layout = plan.have.get(step.inputs[0])
        if layout is None or self.axis(step, layout.axis) is not None or not (merged := _merged(step, layout.axis)):
            return super().have(step, plan)
        first, outer, inner = merged
        runs = [run._replace(copies=run.copies * inner) for run in layout.channels.runs]
        return Layout(first, join(runs * outer), layout.absent)

    def run(self, step, ex):
        (x,), layout = step.inputs, ex.plan.layout(step.outputs[0])
        before = ex.plan.layout(x)
        if layout is None or before is None or self.want(step, ex.plan)[0] is not None:
            return super().run(step, ex)
        shape, fill, (_, outer, inner) = list(step.outputs[0].shape), ex.values[x].fill, _merged(step, before.axis)
        shape[layout.axis] = layout.channels.count(ex.widths)
        if fill is not None:
            fill = jnp.broadcast_to(fill[None, :, None], (outer, fill.size, inner)).reshape(-1)
        return [Value(ex.full(x, before).reshape(shape), fill)]


def _merged(step: Step, axis: int) -> Any:
    """Tells into which axis a reshape merges others and this one, and the sizes of those before and behind; or None."""
    before, after = step.inputs[0].shape, step.outputs[0].shape
    for first, last in itertools.product(range(1, axis + 1), range(axis, len(before))):  # never the batch
        if after == (*before[:first], math.prod(before[first : last + 1]), *before[last + 1 :]):
            return first, math.prod(before[first:axis]), math.prod(before[axis + 1 : last + 1])
    return None


class Slice(PerChannel):
    """Leaves the channels, or takes a part of them where that cuts no site in two."""

    @staticmethod
    def _part(step: Step, layout: Layout | None) -> tuple[int, int] | None:
        """Gives start and stop of a slice of the channels only."""
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
        if layout is None or (part := self._part(step, layout)) is None:
            return super().want(step, plan)
        channels = layout.channels.within(part[0], step.inputs[0].shape[layout.axis] - part[1])
        return [Layout(layout.axis, channels)]

    def run(self, step, ex):
        (x,), (output,) = step.inputs, step.outputs
        source, layout = ex.plan.layout(x), ex.plan.layout(output)
        if (part := self._part(step, source or layout)) is None:
            return super().run(step, ex)
        before, channels = (source.channels.between(*edge) if source else None for edge in ((0, part[0]), part))
        if before is None or channels is None or (layout and layout.channels != channels):
            return [ex.held(output, step.bind([ex.full(x)])[0])]
        start, fill = before.count(ex.widths), ex.values[x].fill
        stop = start + channels.count(ex.widths)
        result = lax.slice_in_dim(ex.full(x, source), start, stop, axis=source.axis)
        return [Value(result, None if fill is None else fill[slice(*part)])]


class Concatenate(Rule):
    """Joins channels; along another axis, joins arrays of the same channels."""

    def have(self, step, plan):
        axis, layouts = step.params["dimension"], [plan.have.get(ref) for ref in step.inputs]
        there = [layout for layout in layouts if layout]
        if not there:
            return None
        zero = all(layout.absent == "zero" for layout in there)
        if there[0].axis != axis and len({layout and layout[:2] for layout in layouts}) == 1:
            return there[0] if zero else None
        if any(layout.axis != axis for layout in there):
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
        """Gives the channels of each operand."""
        edges = itertools.accumulate((ref.shape[layout.axis] for ref in step.inputs), initial=0)
        return [layout.channels.between(*edge) for edge in itertools.pairwise(edges)]

    def run(self, step, ex):
        axis, layout = step.params["dimension"], ex.plan.layout(step.outputs[0])
        if layout is None:
            return super().run(step, ex)
        parts = self._parts(step, layout) if layout.axis == axis else [layout.channels] * len(step.inputs)
        operands = [
            ex.full(ref, Layout(layout.axis, part)) for ref, part in zip(step.inputs, parts, strict=True) if part
        ]
        if len(operands) < len(parts):
            return super().run(step, ex)
        result = step.bind(operands)[0]
        if layout.absent != "constant":
            return [Value(result)]
        return [Value(result, jnp.concatenate([ex.constants(ref, axis) for ref in step.inputs]))]
