"""Which channels of which values are there, and which are wanted: decided once, from the program alone.

Forward: a gate leaves the channels of its site, the others are zero; what per-channel operations make of them is known
too. Backward: of a value that only goes to a gate, only the channels of its site are wanted. Both ask the rule of each
primitive (rules.py); where there is none, all channels are there and all are wanted.
"""

import collections
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from gaternet_jax.gating.channels import ALL, Channels, Layout
from gaternet_jax.gating.products import Convolution, DotGeneral, Product
from gaternet_jax.gating.program import Program, Ref, Step, flatten, leaves_of
from gaternet_jax.gating.rules import ELEMENTWISE, Elementwise, Gate, Rule
from gaternet_jax.gating.shapes import PER_CHANNEL, Concatenate, PerChannel, Reshape

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, Elementwise()),
    **dict.fromkeys(PER_CHANNEL, PerChannel()),
    "reshape": Reshape(),
    "concatenate": Concatenate(),
    "conv_general_dilated": Convolution(),
    "dot_general": DotGeneral(),
}
GATE, WHOLE = Gate(), Rule()


def rule_of(step: Step) -> Rule:
    """Gives the rule of an operation; WHOLE where there is none."""
    return GATE if step.site is not None else RULES.get(step.name, WHOLE)


class Plan:
    """Decides how each value of a program is held.

    Args:
        program: with gates.
        parameters: paths of those of its inputs that are known before the images come; constants are known besides.
        whole_sites: gates whose maps are computed whole, in kernels with zeros for the channels that are not kept.
    """

    def __init__(self, program: Program, parameters: dict[Ref, str], whole_sites: Collection[int] = ()):
        self.program, self.parameters, self.whole_sites = program, parameters, whole_sites
        self.names = dict(parameters)  # of known values that are parameters, or made of one: its path
        self.makers = {ref: step for step in program.steps for ref in step.outputs}
        self.readers = {ref: step for step in program.steps for ref in step.inputs}  # one of them
        self.uses = collections.Counter(ref for step in program.steps for ref in step.inputs)
        self.uses.update(program.outputs)
        self.have: dict[Ref, Layout] = {}  # what follows from closed gates
        self.want: dict[Ref, Layout | None] = dict.fromkeys(program.outputs)  # from what reads a value; None: all
        self.reasons: dict[Ref, str] = dict.fromkeys(program.outputs, "read whole: it is a result")
        self._known = {*parameters, *program.constants}
        self._numbers: dict[Ref, Any] = {}
        late = []
        for step in program.steps:
            if all(self.is_known(ref) for ref in step.inputs):
                self._learn(step)
                continue
            late.append(step)
            if layout := rule_of(step).have(step, self):
                self.have[step.outputs[0]] = layout
        for step in reversed(late):
            for ref, layout in zip(step.inputs, rule_of(step).want(step, self), strict=True):
                if not self.is_known(ref):
                    self._demand(ref, layout, step)

    def layout(self, ref: Ref) -> Layout | None:
        """Tells how a value is held; None: all channels are there."""
        return self.have.get(ref) or self.want.get(ref)

    def held(self, ref: Ref) -> tuple[int, Channels] | None:
        """Tells which channels of a value there are, along which axis; None: all are."""
        layout = self.layout(ref)
        return layout and layout[:2]

    def is_known(self, ref: Ref) -> bool:
        """Tells whether a value depends on parameters and numbers only."""
        return ref.literal is not None or ref in self._known

    def number(self, ref: Ref) -> Any:
        """Gives the number that all elements are, where the program says so; else None."""
        return self._numbers.get(ref) if ref.literal is None or np.ndim(ref.literal) else ref.literal

    def is_zero(self, ref: Ref) -> bool:
        """Tells whether a value is the number zero, or has absent channels that are zero."""
        if ref in self.have:
            return self.have[ref].absent == "zero"
        number = self.number(ref)
        return number is not None and number == 0

    def _learn(self, step: Step) -> None:
        """Learns of a known value its name and its number."""
        self._known.update(step.outputs)
        output, named = step.outputs[0], [self.names[ref] for ref in step.inputs if ref in self.names]
        if len(named) == 1:
            self.names[output] = named[0]
        if step.name in ("reshape", "broadcast_in_dim", "convert_element_type"):
            self._numbers[output] = self.number(step.inputs[0])

    def _demand(self, ref: Ref, layout: Layout | None, step: Step) -> None:
        """Notes what one more reader wants: a value is held so that all find what they want."""
        if layout is None or not layout.channels.sites:
            self.reasons.setdefault(ref, f"read whole by {step}")
            self.want[ref] = None
        elif ref not in self.want:
            self.want[ref] = Layout(layout.axis, layout.channels)
        elif (before := self.want[ref]) is not None:
            both = before.channels.union(layout.channels) if before.axis == layout.axis else None
            if both is None:
                self.reasons.setdefault(ref, "read with other channels, by several gates")
            self.want[ref] = Layout(layout.axis, both) if both and {run.site for run in both.runs} != {ALL} else None


def plan_of(function: Callable[..., Any], params: Any, *args: Any) -> Plan:
    """Traces a function and decides which of its channels are there; arguments as of `skip_closed`."""
    program = flatten(function, params, *args)
    return Plan(program, dict(zip(program.inputs, leaves_of(params), strict=False)))


def with_whole_sums(plan: Plan) -> Plan:
    """Decides again: what is added to whole maps, and no product reads, has all channels."""
    summed, read = set(), set()
    for step in plan.program.steps:
        sites = {site for ref in step.inputs if ref in plan.have for site in plan.have[ref].channels.sites}
        if isinstance(rule_of(step), Product):
            read |= sites
        elif step.name in ("add", "add_any", "sub") and step.outputs[0] not in plan.have:
            summed |= sites
    return Plan(plan.program, plan.parameters, summed - read)
