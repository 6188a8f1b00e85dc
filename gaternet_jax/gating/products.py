"""Rules of convolutions and matrix products: where closed channels save work.

A product loses the inputs that are absent. Zeros add nothing. Constants add what depends on parameters only, computed
ahead: f(x) = f(x where it is there, else 0) + f(0 where x is there, else the constants), exact with any padding.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from gaternet_jax.gating.channels import Channels, Layout, along
from gaternet_jax.gating.program import Step
from gaternet_jax.gating.rules import Rule

if TYPE_CHECKING:
    from gaternet_jax.gating.plan import Plan


class Product(Rule):
    """Computes a sum of products of two operands."""

    def macs(self, step: Step) -> int:
        """Counts the multiply-accumulates with all channels."""
        raise NotImplementedError

    def summed(self, step: Step) -> Sequence[tuple[int, int]]:
        """Gives the axes of both operands over which it sums."""
        raise NotImplementedError

    def shape_of_constants(self, step: Step, number: int) -> list[int]:
        """Gives the least shape of an operand that varies by channel only, for which the result can be broadcast."""
        raise NotImplementedError

    def have(self, step, plan):
        for operand, places in zip(step.inputs, self.places(step), strict=True):
            layout = plan.have.get(operand)
            if layout and layout.axis in places and layout.absent == "zero":
                return Layout(places[layout.axis], layout.channels, "zero")
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

    def run(self, step, ex, follow: Callable[[Any], Any] | None = None):
        """Computes the product; with `follow`, which is affine and elementwise, of it."""
        (x, kernel), (output,), wanted = step.inputs, step.outputs, self.want(step, ex.plan)
        (number, present), fill, extra = self._present(step, ex.plan), None, None
        if (inputs := present[number]) and ex.plan.have[step.inputs[number]].absent == "constant":
            pair = list(map(ex.full, step.inputs, wanted))
            pair[number] = self._constants(step, number, inputs.axis, ex.absent(step.inputs[number]))
            extra = step.bind(pair)[0]
        own = ex.plan.have.get(output)
        if own and own.absent == "constant":  # each channel has its own kernel
            axis = ex.plan.have[x].axis
            fill = step.bind([self._constants(step, 0, axis, ex.constants(x, axis)), ex.full(kernel)])[0].reshape(-1)
        operands, dtype = list(map(ex.full, step.inputs, wanted, present)), output.aval.dtype
        if follow is not None:  # a scale, which goes into the kernel, and a shift
            ((axis, place),) = self.places(step)[1].items()
            zeros = along(jnp.zeros(operands[1].shape[axis], dtype), place, len(output.shape))
            shift, scale = jax.jvp(follow, (zeros,), (jnp.ones_like(zeros),))
            scaled = operands[1] * along(scale, axis, len(kernel.shape))
            operands[1], dtype = scaled.astype(kernel.aval.dtype), shift.dtype
            extra = shift if extra is None else extra * scale + shift
        result = self.bind(step, operands, wanted).astype(dtype)
        result = result if extra is None else result + extra.astype(dtype)
        return [ex.held(output, result, self.cuts(step, ex.plan)[1], fill)]

    def bind(self, step, operands, wanted):
        return step.bind(operands)[0]

    def _constants(self, step: Step, number: int, axis: int, constants: Any) -> Any:
        shape = self.shape_of_constants(step, number)
        return jnp.broadcast_to(along(constants, axis, len(shape)), shape)


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
        (_, inputs, *_), (features, *_), (_, outputs, *_) = step.params["dimension_numbers"]
        if self._is_depthwise(step):
            return [{inputs: outputs}, {features: outputs}]
        return [{}, {} if self._is_grouped(step) else {features: outputs}]

    def have(self, step, plan):
        (x, kernel), specs = step.inputs, step.params["dimension_numbers"]
        layout = plan.have.get(x)
        if not layout or layout.axis != specs.lhs_spec[1] or layout.absent != "constant":
            return super().have(step, plan)
        if self._is_depthwise(step) and plan.is_known(kernel) and self._is_unpadded(step):
            return Layout(specs.out_spec[1], layout.channels, "constant")
        return None

    @staticmethod
    def _is_unpadded(step: Step) -> bool:
        dilated = any(size != 1 for size in step.params["lhs_dilation"])
        return not dilated and all(tuple(padding) == (0, 0) for padding in step.params["padding"])

    def bind(self, step, operands, wanted):
        axis = step.params["dimension_numbers"].lhs_spec[1]
        groups = operands[0].shape[axis] if self._is_depthwise(step) else step.params["feature_group_count"]
        return step.bind(operands, feature_group_count=groups)[0]

    def shape_of_constants(self, step, number):
        """Gives the shape for one image; for one position where all outputs are equal."""
        specs, shape = step.params["dimension_numbers"], list(step.inputs[number].shape)
        if number == 0:
            shape[specs.lhs_spec[0]] = 1
        if number == 0 and self._is_unpadded(step):
            dilations = step.params["rhs_dilation"]
            for axis, own, dilation in zip(specs.lhs_spec[2:], specs.rhs_spec[2:], dilations, strict=True):
                shape[axis] = (step.inputs[1].shape[own] - 1) * dilation + 1
        return shape


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

    def shape_of_constants(self, step, number):
        contracted, batch = step.params["dimension_numbers"]
        shared = (*contracted[number], *batch[number])
        return [size if axis in shared else 1 for axis, size in enumerate(step.inputs[number].shape)]
