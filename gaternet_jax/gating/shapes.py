"""Rules of operations that leave channels what they are, and move, join or part them."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from gaternet_jax.gating.channels import ALL, Layout, Run, join
from gaternet_jax.gating.program import Step
from gaternet_jax.gating.rules import Rule

_NAMES = """broadcast_in_dim squeeze expand_dims transpose rev pad slice reduce_sum reduce_max reduce_min reduce_and
reduce_or reduce_prod reduce_window_sum reduce_window_max reduce_window_min cumsum cummax cummin cumprod"""
PER_CHANNEL = frozenset(_NAMES.split())


class PerChannel(Rule):
    """Works on each channel by itself, and may move the axis: shapes, slices, windows and reductions over other axes."""

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
                stays = params["strides"] is None or params["strides"][axis] == 1
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

    def places(self, step):
        axes = {axis: self.axis(step, axis) for axis in range(len(step.inputs[0].shape))}
        return [{axis: place for axis, place in axes.items() if place is not None}, *[{}] * (len(step.inputs) - 1)]

    def shift(self, step, number, axis):
        return -step.params["start_indices"][axis] if step.name == "slice" else 0

    def have(self, step, plan):
        layout = plan.have.get(step.inputs[0])
        if layout is None or (axis := self.axis(step, layout.axis)) is None:
            return None
        channels = layout.channels.window(-self.shift(step, 0, layout.axis), step.outputs[0].shape[axis])
        absent = self.absent(step, layout, plan)
        return Layout(axis, channels, absent) if absent and channels and channels.sites else None

    def bind(self, step, operands, wanted):
        x, params = operands[0], step.params
        if step.name == "broadcast_in_dim":
            return [lax.reshape(x, spread(step, x.shape))]
        if step.name == "slice" and wanted[0]:  # it has the channels of the slice already
            starts, limits = list(params["start_indices"]), list(params["limit_indices"])
            starts[wanted[0].axis], limits[wanted[0].axis] = 0, x.shape[wanted[0].axis]
            return step.bind(operands, start_indices=tuple(starts), limit_indices=tuple(limits))
        return step.bind(operands)

    def fill(self, step, ex, layout):
        (x, *_), axis, repeats = step.inputs, ex.plan.have[step.inputs[0]].axis, 1  # how many equal numbers a sum adds
        if step.name == "reduce_sum":
            repeats = math.prod(x.shape[axis] for axis in step.params["axes"])
        if step.name == "reduce_window_sum":
            repeats = math.prod(step.params["window_dimensions"])
        start = -self.shift(step, 0, axis)
        return ex.constants(x, axis)[start : start + layout.channels.size] * repeats


def spread(step: Step, shape: Sequence[int]) -> list[int]:
    """Gives the shape of an operand of `broadcast_in_dim` with all axes of the result: size 1 where it had them not."""
    spread = [1] * len(step.outputs[0].shape)
    for place, size in zip(step.params["broadcast_dimensions"], shape, strict=True):
        spread[place] = size
    return spread


class Reshape(PerChannel):
    """Keeps the axis of the channels, or merges others into it: [B, H, W, C] to [B, H * W * C]."""

    def _moved(self, step: Step, axis: int) -> Any:
        """Tells where an axis goes, and the sizes of those before and behind that are merged into it; None: nowhere."""
        if (place := self.axis(step, axis)) is not None:
            return place, 1, 1
        before, after = step.inputs[0].shape, step.outputs[0].shape
        for first, last in itertools.product(range(1, axis + 1), range(axis, len(before))):  # never the batch
            if after == (*before[:first], math.prod(before[first : last + 1]), *before[last + 1 :]):
                return first, math.prod(before[first:axis]), math.prod(before[axis + 1 : last + 1])
        return None

    def have(self, step, plan):
        layout = plan.have.get(step.inputs[0])
        if layout is None or (moved := self._moved(step, layout.axis)) is None:
            return None
        place, outer, inner = moved
        runs = [run._replace(copies=run.copies * inner) for run in layout.channels.runs]
        return Layout(place, join(runs * outer), layout.absent)

    def want(self, step, plan):
        layout = plan.have.get(step.inputs[0])
        return [layout] if layout and step.outputs[0] in plan.have else super().want(step, plan)

    def bind(self, step, operands, wanted):
        (x,), sizes = operands, list(step.params["new_sizes"])
        if wanted[0]:
            place, outer, inner = self._moved(step, wanted[0].axis)
            sizes[place] = outer * x.shape[wanted[0].axis] * inner
        return step.bind(operands, new_sizes=tuple(sizes))

    def fill(self, step, ex, layout):
        axis = ex.plan.have[step.inputs[0]].axis
        constants, (_, outer, inner) = ex.constants(step.inputs[0], axis), self._moved(step, axis)
        return jnp.broadcast_to(constants[None, :, None], (outer, constants.size, inner)).reshape(-1)


class Concatenate(Rule):
    """Joins channels; along another axis, joins arrays of the same channels."""

    def places(self, step):
        return [{axis: axis for axis in range(len(ref.shape))} for ref in step.inputs]

    def shift(self, step, number, axis):
        joined = step.params["dimension"]
        return sum(ref.shape[axis] for ref in step.inputs[:number]) if axis == joined else 0

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

    def fill(self, step, ex, layout):
        return jnp.concatenate([ex.constants(ref, layout.axis) for ref in step.inputs])
