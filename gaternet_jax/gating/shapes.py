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
    """Works on each channel by itself, and may move the axis: shapes, slices, windows, reductions over other axes."""

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
        if channels is None or not channels.sites:
            return None
        stays = layout.absent == "zero" and all(map(plan.is_zero, step.inputs[1:]))  # what it is padded with
        if step.name in ("reduce_window_max", "reduce_window_min"):  # a window of padding only is infinite
            params = step.params
            seen = [max(pad) < size for pad, size in zip(params["padding"], params["window_dimensions"], strict=True)]
            stays = stays and all(seen) and {*params["base_dilation"], *params["window_dilation"]} == {1}
        return Layout(axis, channels, "zero" if stays else "constant")

    def bind(self, step, operands):
        x, params = operands[0], step.params
        if step.name == "broadcast_in_dim":
            return [lax.reshape(x, spread(step, x.shape))]
        if step.name == "slice":  # not along an axis of which it has what is wanted already
            own = zip(params["start_indices"], params["limit_indices"], x.shape, step.inputs[0].shape, strict=True)
            bounds = [(start, stop) if size == whole else (0, size) for start, stop, size, whole in own]
            starts, limits = zip(*bounds, strict=True)
            if limits == x.shape and not any(starts) and not params["strides"]:
                return operands
            return step.bind(operands, start_indices=starts, limit_indices=limits)
        return step.bind(operands)


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

    def bind(self, step, operands):
        (x,), sizes = operands, list(step.params["new_sizes"])
        for axis, size in enumerate(step.inputs[0].shape):
            if x.shape[axis] != size and (moved := self._moved(step, axis)):
                place, outer, inner = moved
                sizes[place] = outer * x.shape[axis] * inner
        return step.bind(operands, new_sizes=tuple(sizes))


class Concatenate(Rule):
    """Joins channels; along another axis, joins arrays of the same channels."""

    def places(self, step):
        return [{axis: axis for axis in range(len(ref.shape))} for ref in step.inputs]

    def shift(self, step, number, axis):
        joined = step.params["dimension"]
        return sum(ref.shape[axis] for ref in step.inputs[:number]) if axis == joined else 0

    def least(self, step):
        axis = step.params["dimension"]
        return [[size if axis == own else 1 for own, size in enumerate(ref.shape)] for ref in step.inputs]

    def bind(self, step, operands):
        axis = step.params["dimension"]
        others = [(*x.shape[:axis], 1, *x.shape[axis + 1 :]) for x in operands]
        others = jnp.broadcast_shapes(*others)
        return step.bind([jnp.broadcast_to(x, (*others[:axis], x.shape[axis], *others[axis + 1 :])) for x in operands])

    def have(self, step, plan):
        axis, layouts = step.params["dimension"], [plan.have.get(ref) for ref in step.inputs]
        there = [layout for layout in layouts if layout]
        if not there:
            return None
        absent = "zero" if all(layout.absent == "zero" for layout in there) else "constant"
        if there[0].axis != axis and len({layout and layout[:2] for layout in layouts}) == 1:
            return there[0]._replace(absent=absent)
        if any(layout.axis != axis for layout in there):
            return None
        own = zip(step.inputs, layouts, strict=True)
        runs = [run for ref, layout in own for run in (layout.channels.runs if layout else [Run(ALL, ref.shape[axis])])]
        return Layout(axis, join(runs), absent)
