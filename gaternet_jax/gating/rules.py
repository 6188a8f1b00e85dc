"""What each primitive does with channels: the rules of gates and of elementwise operations.

A rule says of its primitive which axes of its operands are those of its result (`places`), so that what is wanted of
its result is wanted of them (`want`); what its result has, given what its operands have (`have`); and how to compute it
so (`run`). An operation without a rule computes whole arrays from whole arrays.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gaternet_jax.gating.channels import Layout, Run, join
from gaternet_jax.gating.gate import gate
from gaternet_jax.gating.program import Step

if TYPE_CHECKING:
    from gaternet_jax.gating.execute import Execution
    from gaternet_jax.gating.plan import Plan


class Scaled(NamedTuple):
    """Says how to compute a product times a constant per output channel: by scaling its kernel."""

    axis: int  # of the output channels
    by: Callable[[Any], Any]  # from the constants, a number or an array that varies along `axis`, to the array


class Value(NamedTuple):
    """Holds a value, in the layout of the plan."""

    array: Any  # the channels that are there, in the layout of the plan; of size 1 along axes that it was broadcast to
    fill: jax.Array | None = None  # where absent channels are constants: those, [C], and anything for the others
    scaled: Scaled | None = None  # where BatchNorm can be folded into it


class Rule:
    """Computes whole arrays: for what has no rule."""

    def have(self, step: Step, plan: "Plan") -> Layout | None:
        """Gives the layout of the result; None: whole."""

    def places(self, step: Step) -> Sequence[dict[int, int]]:
        """Says of each operand which of its axes are, channel by channel, which axes of the result."""
        return [{} for _ in step.inputs]

    def want(self, step: Step, plan: "Plan") -> Sequence[Layout | None]:
        """Says what is wanted of each operand; None: all."""
        layout = plan.layout(step.outputs[0])
        axes = [[axis for axis, place in own.items() if layout and place == layout.axis] for own in self.places(step)]
        return [Layout(own[0], layout.channels) if own and layout else None for own in axes]

    def run(self, step: Step, ex: "Execution") -> list[Value]:
        """Computes the results in the layouts of the plan."""
        results = step.bind([ex.full(ref) for ref in step.inputs])
        return [ex.held(ref, result) for ref, result in zip(step.outputs, results, strict=True)]


class Gate(Rule):
    """Leaves the channels of its site; the others are zero. At a site computed whole, it multiplies those by zeros."""

    def have(self, step, plan):
        return None if step.site in plan.whole_sites else self._own(step)

    @staticmethod
    def _own(step: Step) -> Layout:
        assert step.site is not None
        return Layout(len(step.inputs[0].shape) - 1, join([Run(step.site, step.inputs[1].shape[1])]), "zero")

    def places(self, step):
        axes = range(len(step.inputs[0].shape))
        return [dict(zip(axes, axes, strict=True)), {1: axes[-1]}]

    def run(self, step, ex):
        maps, gates = map(ex.thin, step.inputs, self.want(step, ex.plan))
        if step.site in ex.plan.whole_sites and not self._own(step).channels.is_complete(ex.widths):
            maps = self._masked(step, maps, ex)
        if step.site in ex.always_open:
            return [Value(maps)]
        if step.site is not None and maps.shape[:: maps.ndim - 1] == gates.shape:  # a gate for further transforms, too
            return [Value(gate(maps, gates, ex.plan.program.sites[step.site].name))]
        return [Value(maps * lax.expand_dims(gates, range(1, maps.ndim - 1)).astype(maps.dtype))]

    def _masked(self, step: Step, maps: Any, ex: "Execution") -> Any:
        """Puts zeros into the maps for channels that are not kept; into the kernel before, where there is one."""
        layout, scaled = ex.plan.layout(step.outputs[0]), ex.values[step.inputs[0]].scaled
        mask = ex.mask(self._own(step), layout, maps.dtype)
        return scaled.by(mask) if scaled and ex.plan.uses[step.inputs[0]] == 1 else maps * mask


_NAMES = """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos
cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne
neg not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor"""
ELEMENTWISE = frozenset(_NAMES.split())


class Elementwise(Rule):
    """Works on the channels that are there; zero times anything stays zero."""

    def have(self, step, plan):
        operands = [plan.have[ref] for ref in step.inputs if ref in plan.have]
        if not operands:
            return None
        if zero := self._annihilates(step, plan):
            return zero
        (axis, channels, _), *others = operands
        if any(other[:2] != (axis, channels) for other in others):
            return None
        if not all(ref in plan.have or plan.is_per_channel(ref, axis) for ref in step.inputs):
            return None
        numbers = [0.0 if plan.is_zero(ref) else plan.number(ref) for ref in step.inputs]
        return Layout(axis, channels, "zero" if self._is_zero(step, numbers) else "constant")

    @staticmethod
    def _annihilates(step: Step, plan: "Plan") -> Layout | None:
        """Finds the layout of a zero operand that makes the result zero whatever the others are."""
        deciding = {"mul": step.inputs, "and": step.inputs, "div": step.inputs[:1], "rem": step.inputs[:1]}
        if all(map(plan.is_zero, step.inputs[1:])):
            deciding["select_n"] = step.inputs[1:]
        zeros = (ref for ref in deciding.get(step.name, ()) if ref in plan.have and plan.is_zero(ref))
        return next((plan.have[ref] for ref in zeros), None)

    @staticmethod
    def _is_zero(step: Step, numbers: list[Any]) -> bool:
        """Tells whether the operation makes 0 of these numbers; None stands for one that is not known."""
        if any(number is None for number in numbers):
            return False
        operands = [np.asarray(number, ref.aval.dtype) for number, ref in zip(numbers, step.inputs, strict=True)]
        with jax.ensure_compile_time_eval(), jax.debug_nans(False):
            return bool(step.bind(operands)[0] == 0)

    def places(self, step):
        sizes = step.outputs[0].shape
        return [{axis: axis for axis, size in enumerate(ref.shape) if size == sizes[axis]} for ref in step.inputs]

    def run(self, step, ex):
        layout = ex.plan.layout(step.outputs[0])
        operands = [ex.thin(ref, layout) for ref in step.inputs]
        scaled, fill = self._scaled(step, operands, ex), None
        result = scaled.by(1) if scaled and step.name in ("mul", "div") else self._bind(step, operands)
        if layout is not None and layout.absent == "constant":
            constants = self._bind(step, [ex.fill(ref, layout) for ref in step.inputs])
            fill = jnp.broadcast_to(jnp.reshape(constants, -1), (layout.channels.size,))
        return [Value(result, fill, scaled)]

    @staticmethod
    def _bind(step: Step, operands: list[Any]) -> Any:
        if step.name in ("select_n", "clamp"):  # others broadcast axes of size 1 by themselves
            shape = jnp.broadcast_shapes(*map(np.shape, operands))
            operands = [x if np.ndim(x) == 0 else jnp.broadcast_to(x, shape) for x in operands]
        return step.bind(operands)[0]

    @staticmethod
    def _scaled(step: Step, operands: list[Any], ex: "Execution") -> Scaled | None:
        """Says how to compute the result times a constant per channel; None where it takes more than another kernel."""
        products = ((i, ex.values[ref].scaled) for i, ref in enumerate(step.inputs) if ref.literal is None)
        at, scaled = next((pair for pair in products if pair[1]), (0, None))
        if scaled is None or ex.plan.uses[step.inputs[at]] > 1 or len(operands) > 2:
            return None
        axis, by = scaled
        if not all(ex.plan.is_per_channel(ref, axis) for i, ref in enumerate(step.inputs) if i != at):
            return None
        other, dtype = operands[1 - at] if len(operands) == 2 else None, step.outputs[0].aval.dtype
        match step.name, at:
            case "mul", _:
                return Scaled(axis, lambda scale: by(scale * other))
            case "div", 0:
                return Scaled(axis, lambda scale: by(scale / other))
            case "add", _:
                return Scaled(axis, lambda scale: by(scale) + scale * other)
            case "sub", 0:
                return Scaled(axis, lambda scale: by(scale) - scale * other)
            case "convert_element_type", _ if jnp.issubdtype(dtype, jnp.floating):
                return Scaled(axis, lambda scale: by(scale).astype(dtype))
        return None
