"""Rules of convolutions and matrix products: where closed channels save work.

A product loses the inputs that are absent. Zeros add nothing. Constants add what depends on parameters only, computed
ahead: f(x) = f(x where it is there, else 0) + f(0 where x is there, else the constants), exact with any padding.
"""

import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from gaternet_jax.gating.channels import Channels, Layout
from gaternet_jax.gating.program import Step
from gaternet_jax.gating.rules import Rule, Scaled

if TYPE_CHECKING:
    from gaternet_jax.gating.execute import Execution
    from gaternet_jax.gating.plan import Plan


class Product(Rule):
    """What convolutions and matrix products have in common."""

    def macs(self, step: Step) -> int:
        """Multiply-accumulates with all channels."""
        raise NotImplementedError

    def cuts(self, step: Step, plan: "Plan") -> tuple[Channels | None, Channels | None]:
        """The inputs and the outputs that are computed with; None: all."""
        raise NotImplementedError

    @staticmethod
    def _product(
        step: Step, ex: "Execution", operands: list[Any], extra: Any, scaling: tuple[int, int] | None, **changed: Any
    ) -> tuple[Any, Scaled | None]:
        """Computes it, and says how to scale it along an axis of the kernel (scaling[0]) and of the result."""
        x, kernel = operands

        def product(kernel: Any, extra: Any) -> Any:
            result = step.bind([x, kernel], **changed)[0]
            return result if extra is None else result + extra.astype(result.dtype)

        def by(scale: Any) -> Any:
            along = jnp.reshape(scale, [-1 if scaling and axis == scaling[0] else 1 for axis in range(kernel.ndim)])
            return product((kernel * along).astype(kernel.dtype), None if extra is None else extra * scale)

        scaled = Scaled(scaling[1], by) if scaling and ex.plan.is_known(step.inputs[1]) else None
        return product(kernel, extra), scaled


class Convolution(Product):
    """Rows of the kernel go for absent inputs, columns for unwanted outputs; a depthwise one keeps the channel."""

    def macs(self, step):
        specs = step.params["dimension_numbers"]
        positions = math.prod(step.outputs[0].shape[axis] for axis in (specs.out_spec[0], *specs.out_spec[2:]))
        return positions * math.prod(step.inputs[1].shape) // step.params["batch_group_count"]

    @staticmethod
    def _kind(step: Step) -> str:
        params, specs = step.params, step.params["dimension_numbers"]
        inputs, outputs = step.inputs[0].shape[specs.lhs_spec[1]], step.outputs[0].shape[specs.out_spec[1]]
        if params["batch_group_count"] > 1:
            return "grouped"
        if params["feature_group_count"] == 1:
            return "full"
        return "depthwise" if params["feature_group_count"] == inputs == outputs else "grouped"

    @staticmethod
    def _is_unpadded(step: Step) -> bool:
        dilated = any(size != 1 for size in step.params["lhs_dilation"])
        return not dilated and all(tuple(padding) == (0, 0) for padding in step.params["padding"])

    def have(self, step, plan):
        (x, kernel), specs = step.inputs, step.params["dimension_numbers"]
        layout = plan.have.get(x)
        if layout is None or layout.axis != specs.lhs_spec[1] or self._kind(step) != "depthwise" or kernel in plan.have:
            return None
        if layout.absent == "constant" and not (plan.is_known(kernel) and self._is_unpadded(step)):
            return None
        return Layout(specs.out_spec[1], layout.channels, layout.absent)

    def want(self, step, plan):
        specs, (_, outputs) = step.params["dimension_numbers"], self.cuts(step, plan)
        if outputs is None:
            return [None, None]
        x = Layout(specs.lhs_spec[1], outputs) if self._kind(step) == "depthwise" else None
        return [x, Layout(specs.rhs_spec[0], outputs)]

    def cuts(self, step, plan):
        (x, kernel), specs, kind = step.inputs, step.params["dimension_numbers"], self._kind(step)
        layout, wanted = plan.layout(x), plan.layout(step.outputs[0])
        inputs = outputs = None
        if wanted and wanted.axis == specs.out_spec[1] and kind != "grouped":
            outputs = wanted.channels
        if layout and layout.axis == specs.lhs_spec[1] and kind == "full":
            inputs = layout.channels if layout.absent == "zero" or plan.is_known(kernel) else None
        return inputs, outputs

    def run(self, step, ex):
        (x, kernel), specs, (inputs, outputs) = step.inputs, step.params["dimension_numbers"], self.cuts(step, ex.plan)
        layout, kind, fill, extra = ex.plan.layout(x), self._kind(step), None, None
        if kind == "grouped":
            return super().run(step, ex)
        columns = {specs.rhs_spec[0]: outputs} if outputs else {}
        rows = {specs.rhs_spec[1]: inputs} if inputs else {}
        there = outputs if kind == "depthwise" else inputs
        maps = ex.full(x, Layout(specs.lhs_spec[1], there) if there else None)
        if layout and layout.absent == "constant" and inputs:
            extra = self._of_constants(step, ex.absent(x), ex.cut(kernel, columns))
        own = ex.plan.have.get(step.outputs[0])
        if own and own.absent == "constant":  # a depthwise convolution of constants
            fill = self._of_constants(step, ex.constants(x, specs.lhs_spec[1]), ex.full(kernel)).reshape(-1)
        groups = maps.shape[specs.lhs_spec[1]] if kind == "depthwise" else 1
        operands, scaling = [maps, ex.cut(kernel, columns | rows)], (specs.rhs_spec[0], specs.out_spec[1])
        result, scaled = self._product(step, ex, operands, extra, scaling, feature_group_count=groups)
        return [ex.held(step.outputs[0], result, outputs, fill, scaled)]

    def _of_constants(self, step: Step, constants: Any, kernel: Any) -> Any:
        """The convolution of constant maps: of one position where all outputs are equal."""
        specs, shape = step.params["dimension_numbers"], list(step.inputs[0].shape)
        shape[specs.lhs_spec[0]] = 1
        if self._is_unpadded(step):
            dilations = step.params["rhs_dilation"]
            for axis, own, dilation in zip(specs.lhs_spec[2:], specs.rhs_spec[2:], dilations, strict=True):
                shape[axis] = (kernel.shape[own] - 1) * dilation + 1
        along = [-1 if axis == specs.lhs_spec[1] else 1 for axis in range(len(shape))]
        return step.bind([jnp.broadcast_to(constants.reshape(along), shape), kernel])[0]


class DotGeneral(Product):
    """Contracts over the channels that are there; other axes keep theirs."""

    def macs(self, step):
        (contracted, _), _ = step.params["dimension_numbers"]
        return math.prod(step.outputs[0].shape) * math.prod(step.inputs[0].shape[axis] for axis in contracted)

    @staticmethod
    def _places(step: Step) -> list[dict[int, int]]:
        """Where the axes of each operand, but for the contracted ones, stand in the result."""
        contracted, batch = step.params["dimension_numbers"]
        places, start = [], len(batch[0])
        for operand, summed, shared in zip(step.inputs, contracted, batch, strict=True):
            free = [axis for axis in range(len(operand.shape)) if axis not in (*summed, *shared)]
            places.append({axis: place for place, axis in enumerate(shared)})
            places[-1] |= {axis: start + place for place, axis in enumerate(free)}
            start += len(free)
        return places

    def have(self, step, plan):
        for operand, places in zip(step.inputs, self._places(step), strict=True):
            layout = plan.have.get(operand)
            if layout is not None and layout.axis in places and layout.absent == "zero":
                return Layout(places[layout.axis], layout.channels, "zero")
        return None

    def want(self, step, plan):
        layout = plan.layout(step.outputs[0])
        axes = [
            [axis for axis, place in places.items() if layout and place == layout.axis] for places in self._places(step)
        ]
        return [Layout(own[0], layout.channels) if own and layout else None for own in axes]

    @staticmethod
    def _source(step: Step, plan: "Plan") -> tuple[int, tuple[int, int]] | None:
        """The operand that decides which inputs there are, and the axes of both that are contracted over them."""
        for number in (0, 1):
            layout, axes = plan.layout(step.inputs[number]), step.params["dimension_numbers"][0]
            if layout is None or layout.axis not in axes[number]:
                continue
            if layout.absent == "zero" or (layout.absent == "constant" and plan.is_known(step.inputs[1 - number])):
                position = list(axes[number]).index(layout.axis)
                return number, (axes[0][position], axes[1][position])
        return None

    def cuts(self, step, plan):
        source, wanted = self._source(step, plan), plan.layout(step.outputs[0])
        layout = plan.layout(step.inputs[source[0]]) if source else None
        return layout and layout.channels, wanted and wanted.channels

    def run(self, step, ex):
        (inputs, outputs), source, extra = self.cuts(step, ex.plan), self._source(step, ex.plan), None
        cuts = [{own.axis: own.channels} if own else {} for own in self.want(step, ex.plan)]
        if source is not None:
            number, axes = source
            if ex.values[step.inputs[number]].fill is not None:
                pair = [self._constants(step, number, ex), ex.cut(step.inputs[1 - number], cuts[1 - number])]
                extra = step.bind(pair if number == 0 else pair[::-1])[0]
            for cut, axis in zip(cuts, axes, strict=True):
                cut |= {axis: inputs} if inputs else {}
        operands = [ex.cut(ref, cut) for ref, cut in zip(step.inputs, cuts, strict=True)]
        batch, places = step.params["dimension_numbers"][1], self._places(step)[1]
        scaling = next(iter(places.items())) if not batch[0] and len(places) == 1 else None  # a layer's [in, out]
        result, scaled = self._product(step, ex, operands, extra, scaling)
        return [ex.held(step.outputs[0], result, outputs, None, scaled)]

    @staticmethod
    def _constants(step: Step, number: int, ex: "Execution") -> Any:
        """An operand's constants where it is absent, zeros elsewhere; of size 1 along its free axes."""
        ref, (contracted, batch) = step.inputs[number], step.params["dimension_numbers"]
        layout, shared = ex.plan.layout(ref), (*contracted[number], *batch[number])
        shape = [size if axis in shared else 1 for axis, size in enumerate(ref.shape)]
        along = [-1 if layout and axis == layout.axis else 1 for axis in range(len(shape))]
        return jnp.broadcast_to(ex.absent(ref).reshape(along), shape)
