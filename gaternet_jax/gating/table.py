"""The rule of each primitive."""

from gaternet_jax.gating.products import Convolution, DotGeneral
from gaternet_jax.gating.program import Step
from gaternet_jax.gating.rules import ELEMENTWISE, Elementwise, Gate, Rule
from gaternet_jax.gating.shapes import PER_CHANNEL, Concatenate, PerChannel, Reshape, Slice

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, Elementwise()),
    **dict.fromkeys(PER_CHANNEL, PerChannel()),
    "reshape": Reshape(),
    "slice": Slice(),
    "concatenate": Concatenate(),
    "conv_general_dilated": Convolution(),
    "dot_general": DotGeneral(),
}
GATE, WHOLE = Gate(), Rule()


def rule_of(step: Step) -> Rule:
    """The rule of an operation; WHOLE where there is none."""
    return GATE if step.site is not None else RULES.get(step.name, WHOLE)
