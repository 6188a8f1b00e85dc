"""Rules of convolutions and matrix products: where closed channels save work.

A product loses the inputs that are absent. Zeros add nothing. Constants add what depends on parameters only, computed
ahead: f(x) = f(x where it is there, else 0) + f(0 where x is there, else the constants), exact with any padding.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gaternet_jax.gating.channels import Channels, Layout
from gaternet_jax.gating.program import Step
from gaternet_jax.gating.rules import Rule

if TYPE_CHECKING:
    from gaternet_jax.gating.execute import Execution
    from gaternet_jax.gating.plan import Plan


class Product(Rule):
    """Computes a sum of products of two operands."""

    def macs(self, step: Step) -> int:
        """Counts the multiply-accumulates with all channels."""
        raise NotImplementedError

    def summed(self, step: Step) -> Sequence[tuple[int, int]]:
        """Gives the axes of both operands over which it sums."""
        raise NotImplementedError

    def have(self, step, plan):
        for number, places in enumerate(self.places(step)):
            layout, other = plan.have.get(step.inputs[number]), step.inputs[1 - number]
            if layout and layout.axis in places and (layout.absent == "zero" or plan.is_known(other)):
                return layout._replace(axis=places[layout.axis])
        return None

    def cuts(self, step: Step, plan: "Plan") -> tuple[Channels | None, Channels | None]:
        """Gives the inputs and the outputs that are computed with; None: all."""
        present, wanted = self._present(step, plan)[1][0], [own for own in self.want(step, plan) if own]
        return present and present.channels, wanted[0].channels if wanted else None

    def _present(self, step: Step, plan: "Plan") -> tuple[int, Sequence[Layout | None]]:
        """Finds the operand that decides which inputs there are; and which inputs of both operands these are."""
        for axes in self.summed(step):
            for number, axis in enumerate(axes):
                layout, other = plan.layout(step.inputs[number]), step.inputs[1 - number]
                if layout is None or layout.axis != axis:
                    continue
                if layout.absent == "zero" or (layout.absent == "constant" and plan.is_known(other)):
                    return number, [Layout(axis, layout.channels) for axis in axes]
        return 0, [None, None]

    def run(self, step, ex):
        result, extra = self.product(step, ex)
        result = result if extra is None else result + extra.astype(result.dtype)
        return [ex.held(step.outputs[0], result, self.cuts(step, ex.plan)[1])]

    def product(self, step: Step, ex: "Execution", scale: Any = None) -> tuple[Any, Any]:
        """Computes the product of what is there, and what comes of absent inputs: constants, or None."""
        wanted, (number, present), extra = self.want(step, ex.plan), self._present(step, ex.plan), None
        ref = step.inputs[number]
        if present[number] and ex.plan.have[ref].absent == "constant":
            pair = list(map(ex.full, step.inputs, wanted))
            pair[number] = ex.constants(ref, self.least(step)[number], absent_only=True)
            (extra,) = self.bind(step, pair)
        x, kernel = map(ex.full, step.inputs, wanted, present)
        if scale is not None:
            kernel = (kernel * scale).astype(kernel.dtype)
        return self.bind(step, [x, kernel])[0], extra


class Convolution(Product):
    """Drops rows of the kernel for absent inputs, columns for unwanted outputs; a depthwise one keeps the channel."""

    def macs(self, step):
        specs = step.params["dimension_numbers"]
        positions = math.prod(step.outputs[0].shape[axis] for axis in (specs.out_spec[0], *specs.out_spec[2:]))
        return positions * math.prod(step.inputs[1].shape) // step.params["batch_group_count"]

    @staticmethod
    def _is_depthwise(step: Step) -> bool:
        specs, groups = step.params["dimension_numbers"], step.params["feature_group_count"]
        inputs, outputs = step.inputs[0].shape[specs.lhs_spec[1]], step.outputs[0].shape[specs.out_spec[1]]
        return 1 < groups == inputs == outputs and step.params["batch_group_count"] == 1

    @staticmethod
    def _is_grouped(step: Step) -> bool:
        return step.params["feature_group_count"] > 1 or step.params["batch_group_count"] > 1

    def summed(self, step):
        (_, inputs, *_), (_, rows, *_), _ = step.params["dimension_numbers"]
        return [] if self._is_grouped(step) else [(inputs, rows)]

    def places(self, step):
        (images, inputs, *_), (features, *_), (batch, outputs, *_) = step.params["dimension_numbers"]
        images = {images: batch} if step.params["batch_group_count"] == 1 else {}
        if self._is_depthwise(step):
            return [images | {inputs: outputs}, {features: outputs}]
        return [images, {} if self._is_grouped(step) else {features: outputs}]

    @staticmethod
    def _is_unpadded(step: Step) -> bool:
        dilated = any(size != 1 for size in step.params["lhs_dilation"])
        return not dilated and all(tuple(padding) == (0, 0) for padding in step.params["padding"])

    def bind(self, step, operands):
        axis = step.params["dimension_numbers"].lhs_spec[1]
        groups = operands[0].shape[axis] if self._is_depthwise(step) else step.params["feature_group_count"]
        return step.bind(operands, feature_group_count=groups)

    def least(self, step):
        """Asks of maps for one position only, where nothing is padded: all outputs are equal."""
        specs, shapes = step.params["dimension_numbers"], super().least(step)
        if self._is_unpadded(step):
            dilations = step.params["rhs_dilation"]
            for axis, own, dilation in zip(specs.lhs_spec[2:], specs.rhs_spec[2:], dilations, strict=True):
                shapes[0][axis] = (step.inputs[1].shape[own] - 1) * dilation + 1
        return shapes


class DotGeneral(Product):
    """Contracts over the channels that are there; other axes keep theirs."""

    def macs(self, step):
        (contracted, _), _ = step.params["dimension_numbers"]
        return math.prod(step.outputs[0].shape) * math.prod(step.inputs[0].shape[axis] for axis in contracted)

    def summed(self, step):
        return list(zip(*step.params["dimension_numbers"][0], strict=True))

    def places(self, step):
        contracted, batch = step.params["dimension_numbers"]
        places, start = [], len(batch[0])
        for operand, summed, shared in zip(step.inputs, contracted, batch, strict=True):
            free = [axis for axis in range(len(operand.shape)) if axis not in (*summed, *shared)]
            places.append({axis: place for place, axis in enumerate(shared)})
            places[-1] |= {axis: start + place for place, axis in enumerate(free)}
            start += len(free)
        return places

    def least(self, step):
        _, batch = step.params["dimension_numbers"]
        shapes = super().least(step)
        for ref, shape, shared in zip(step.inputs, shapes, batch, strict=True):
            for axis in shared:
                shape[axis] = ref.shape[axis]
        return shapes
