"""What each primitive does with channels: the rules of gates and of elementwise operations.

A rule says of its primitive which axes of its operands are those of its result (`places`), so that what is wanted of
its result is wanted of them (`want`); what its result has, given what its operands have (`have`); and how to compute it
so (`run`). An operation without a rule computes whole arrays from whole arrays.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gaternet_jax.gating.channels import Layout, Run, join
from gaternet_jax.gating.gate import gate
from gaternet_jax.gating.program import Ref, Step

if TYPE_CHECKING:
    from gaternet_jax.gating.execute import Execution
    from gaternet_jax.gating.plan import Plan


class Value(NamedTuple):
    """Holds a value: the channels that are there, in the layout of the plan, and constants in place of the others.

    Both are of size 1 along axes that they were broadcast to. `fill`, if any, has all channels: those that are there
    may be anything in it.
    """

    array: Any
    fill: Any = None


class Rule:
    """Computes whole arrays: for what has no rule."""

    broadcasts = False  # whether operands may be of size 1 where others are not

    def places(self, step: Step) -> Sequence[dict[int, int]]:
        """Says of each operand which of its axes are, channel by channel, which axes of the result."""
        return [{} for _ in step.inputs]

    def shift(self, step: Step, number: int, axis: int) -> int:
        """Says where a channel of an operand is in the result: so much further along the axis."""
        return 0

    def least(self, step: Step) -> list[list[Any]]:
        """Gives of each operand the least shape, for a result of size 1 along the same axes."""
        own = zip(step.inputs, self.places(step), strict=True)
        return [[1 if axis in places else size for axis, size in enumerate(ref.shape)] for ref, places in own]

    def have(self, step: Step, plan: "Plan") -> Layout | None:
        """Gives the layout of the result that follows from those of the operands; None: whole."""

    def want(self, step: Step, plan: "Plan") -> Sequence[Layout | None]:
        """Says what is wanted of each operand for what is wanted of the result; None: all."""
        wanted: list[Layout | None] = [None] * len(step.inputs)
        if layout := plan.layout(step.outputs[0]):
            for number, places in enumerate(self.places(step)):
                for axis in [axis for axis, place in places.items() if place == layout.axis][:1]:
                    start, size = self.shift(step, number, axis), step.inputs[number].shape[axis]
                    if (channels := layout.channels.window(start, size)) is None:
                        return [None] * len(step.inputs)
                    wanted[number] = Layout(axis, channels)
        return wanted

    def bind(self, step: Step, operands: list[Any]) -> Any:
        """Computes the operation, of operands of which some channels are there."""
        return step.bind(operands)

    def run(self, step: Step, ex: "Execution") -> list[Value]:
        """Computes the results in the layouts of the plan."""
        wanted, layout, results = self.want(step, ex.plan), ex.plan.layout(step.outputs[0]), ex.folded(step)
        if results is None:
            results = self.bind(step, list(map(ex.thin if self.broadcasts else ex.full, step.inputs, wanted)))
        channels = layout.channels if layout and any(wanted) else None
        return [ex.held(ref, result, channels) for ref, result in zip(step.outputs, results, strict=True)]

    def affine(self, step: Step, ex: "Execution") -> Ref | None:
        """Gives the operand of which the operation is an affine function, by `follow`; None: there is none."""

    def follow(self, step: Step, maps: Any, ex: "Execution") -> Any:
        """Computes the operation of other maps in place of that operand."""


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
        if step.site in ex.plan.whole_sites:
            (maps,) = ex.folded(step) or [self.follow(step, maps, ex)]
        if step.site in ex.always_open:
            return [Value(maps)]
        if step.site is not None and maps.shape[:: maps.ndim - 1] == gates.shape:  # a gate for further transforms, too
            return [Value(gate(maps, gates, ex.plan.program.sites[step.site].name))]
        return [Value(maps * lax.expand_dims(gates, range(1, maps.ndim - 1)).astype(maps.dtype))]

    def affine(self, step, ex):
        return step.inputs[0] if step.site in ex.plan.whole_sites else None

    def follow(self, step, maps, ex):
        own = self._own(step)
        if own.channels.is_complete(ex.widths):
            return maps
        return maps * ex.mask(own, ex.plan.layout(step.outputs[0]), maps.dtype)


_NAMES = """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos
cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne
neg not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor"""
ELEMENTWISE = frozenset(_NAMES.split())
_AFFINE = frozenset(["add", "add_any", "convert_element_type", "div", "mul", "neg", "sub"])


class Elementwise(Rule):
    """Works on the channels that are there; zero times anything stays zero."""

    broadcasts = True

    def have(self, step, plan):
        operands = [plan.have[ref] for ref in step.inputs if ref in plan.have]
        if not operands:
            return None
        if zero := self._annihilates(step, plan):
            return zero
        (axis, channels, _), *others = operands
        if any(other[:2] != (axis, channels) for other in others):
            return None
        if not all(ref in plan.have or plan.is_known(ref) for ref in step.inputs):
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

    def bind(self, step, operands):
        if step.name in ("select_n", "clamp"):  # others broadcast axes of size 1 by themselves
            shape = jnp.broadcast_shapes(*map(np.shape, operands))
            operands = [x if np.ndim(x) == 0 else jnp.broadcast_to(x, shape) for x in operands]
        return step.bind(operands)

    def affine(self, step, ex):
        unknown = [ref for ref in step.inputs if not ex.plan.is_known(ref)]
        if (
            step.name not in _AFFINE
            or len(unknown) != 1
            or not jnp.issubdtype(step.outputs[0].aval.dtype, jnp.floating)
        ):
            return None
        return unknown[0] if step.name != "div" or unknown[0] is step.inputs[0] else None

    def follow(self, step, maps, ex):
        if step.name == "convert_element_type":
            return maps  # the widest type is that of the maps
        known = zip(step.inputs, map(ex.thin, step.inputs, self.want(step, ex.plan)), strict=True)
        return self.bind(step, [jnp.asarray(x, maps.dtype) if ex.plan.is_known(ref) else maps for ref, x in known])[0]
