"""What is left of each convolution and matrix product without closed channels: counted, and in words.

Counted: convolutions and matrix products of what depends on the inputs, one multiply-accumulate per weight and output
position, padding included; within `scan` for each turn, within `while_loop` for one, of `cond` the largest branch. Not
counted: additions, normalisation, activations, pooling, gates. A closed gate saves what `skip_closed` skips for it: the
channel itself where it is computed for that gate only, and its share of every layer that reads it, also where it comes
as a constant (through BatchNorm and ReLU, in a DenseNet).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from gaternet_jax.errors import UserError
from gaternet_jax.gating.channels import ALL, Channels, Run
from gaternet_jax.gating.gate import GateSite
from gaternet_jax.gating.plan import RULES, WHOLE, Plan, plan_of, rule_of
from gaternet_jax.gating.products import Product
from gaternet_jax.gating.program import Ref, Step


class Layer(NamedTuple):
    """Describes a convolution or a matrix product of values that depend on the inputs."""

    name: str  # the path of its kernel among the parameters, or the line of code
    macs: int  # multiply-accumulates with all channels, of the whole batch that was traced
    inputs: Channels | None  # the channels that are computed with; None: all
    outputs: Channels | None

    def left(self, widths: Sequence[float]) -> float:
        """Gives the fraction of multiply-accumulates that is left when site k keeps widths[k] channels."""
        inputs, outputs = (cut.count(widths) / cut.size if cut else 1.0 for cut in (self.inputs, self.outputs))
        return inputs * outputs


def layers_of(plan: Plan) -> tuple[Layer, ...]:
    """Lists the convolutions and products of a program, but for those of parameters only."""
    layers = []
    for step in plan.program.steps:
        rule = rule_of(step)
        if plan.is_known(step.outputs[0]):
            continue
        if isinstance(rule, Product):
            name = next((plan.names[ref] for ref in step.inputs[::-1] if ref in plan.names), "") or str(step)
            name = name.removesuffix(".value").removesuffix(".kernel")
            layers.append(Layer(name, rule.macs(step), *rule.cuts(step, plan)))
        elif macs := _macs_within(step):
            layers.append(Layer(str(step), macs, None, None))
    return tuple(layers)


def _macs_within(step: Any) -> int:
    """Counts a step of a program, or an equation of a jaxpr, with what its loops and branches compute."""
    if isinstance(rule := RULES.get(step.primitive.name), Product):
        inputs, outputs = ([Ref(end.aval) for end in ends] for ends in (step.invars, step.outvars))
        return rule.macs(Step(step.primitive, step.params, tuple(inputs), tuple(outputs)))
    bodies = [sum(map(_macs_within, jaxpr.eqns)) for jaxpr in core.jaxprs_in_params(step.params)]
    return max(bodies) if step.primitive.name == "cond" else step.params.get("length", 1) * sum(bodies)


class MacCount:
    """Counts multiply-accumulates; `count_macs` makes one.

    Attributes:
        sites: the gates, in order.
        layers: the convolutions and products that are counted.
        dense: multiply-accumulates with all gates open.
    """

    def __init__(self, sites: Sequence[GateSite], layers: Sequence[Layer]):
        self.sites, self.layers = tuple(sites), tuple(layers)
        self.dense = sum(layer.macs for layer in layers)

    def fraction(self, gates: jax.Array) -> jax.Array:
        """Gives the multiply-accumulates with these gates relative to the dense ones, float32 [B]; differentiable.

        `gates` are those of all sites, one behind the other, [B, G] in [0, 1]: an expected number of open gates counts.
        """
        total = max((site.gates.stop for site in self.sites), default=0)  # sites may share gates
        if gates.ndim != 2 or gates.shape[1] != total:
            expected = f"the network has {total} gates, so that gates are [batch, {total}]"
            raise UserError(f"{expected}; got {list(gates.shape)}")
        if not (total and self.dense):
            return jnp.ones(gates.shape[0], jnp.float32)
        cuts = [(layer.inputs, layer.outputs) for layer in self.layers]
        opened = jnp.stack([gates[:, site.gates].astype(jnp.float32).sum(-1) for site in self.sites], -1)
        inputs, outputs = (self._present(own, opened) for own in zip(*cuts, strict=True))
        share = jnp.array([[layer.macs / self.dense for layer in self.layers]], jnp.float32)
        return 1 - (share * (1 - inputs * outputs)).sum(-1)

    @staticmethod
    def _present(cuts: Sequence[Channels | None], opened: jax.Array) -> jax.Array:
        """Gives the fraction of each layer's channels that there is, [B, layers], of open gates counted, [B, sites]."""
        channels, none = [cut or Channels((Run(ALL, 1),)) for cut in cuts], np.zeros(opened.shape[1], np.float32)
        always = np.array([cut.count(none) for cut in channels], np.float32)
        of_gate = np.stack([cut.count(np.eye(len(none))) + none for cut in channels], -1) - always  # [sites, layers]
        there = always[None] + jnp.matmul(opened, of_gate, precision=jax.lax.Precision.HIGHEST)  # whole numbers
        return jnp.divide(there, np.array([[cut.size for cut in channels]], np.float32))

    def count(self, gates: jax.Array) -> jax.Array:
        """Gives the multiply-accumulates with these gates [B, G], float32 [B]."""
        return float(self.dense) * self.fraction(gates)

    def left(self, widths: Sequence[float]) -> float:
        """Gives the multiply-accumulates when site k keeps widths[k] of its channels; as `count`, of numbers."""
        check_widths(self.sites, widths)
        return sum(layer.macs * layer.left(widths) for layer in self.layers)


def count_macs(function: Callable[..., Any], params: Any, *args: Any) -> MacCount:
    """Counts the multiply-accumulates of a function by tracing it; nothing is computed.

    Args:
        function: of (params, *args); see `skip_closed`.
        params: arrays or `jax.ShapeDtypeStruct`s.
        *args: examples of the other arguments, arrays or shapes. The count is of the whole batch: give one image.

    Example:
        >>> def network(kernel, x, gates):
        ...     return gx.gate(x @ kernel, gates) @ kernel.T
        >>> macs = gx.count_macs(network, jnp.ones((2, 4)), jnp.ones((1, 2)), jnp.ones((1, 4)))
        >>> macs.dense, macs.count(jnp.array([[1.0, 0.0, 0.0, 0.0]]))
        (16, Array([4.], dtype=float32))
    """
    plan = plan_of(function, params, *args)
    return MacCount(plan.program.sites, layers_of(plan))


def check_widths(sites: Sequence[GateSite], widths: Sequence[float]) -> None:
    """Raises UserError where these are not numbers of channels that each site keeps."""
    sizes = [site.size for site in sites]
    if len(widths) != len(sizes) or any(not 0 <= width <= size for width, size in zip(widths, sizes, strict=True)):
        raise UserError(f"widths are the numbers of channels that the sites keep, of {sizes}; got {list(widths)}")


class Explanation(NamedTuple):
    """Tells what is skipped of a program; `print` it."""

    layers: tuple[Layer, ...]  # its convolutions and products, in order
    widths: tuple[int, ...]  # channels that each site keeps
    gates: tuple[tuple[str, str], ...]  # of each gate, its name and what it saves, or why it does not
    whole: tuple[str, ...]  # operations without a rule that not all channels came to

    def __str__(self) -> str:
        dense = sum(layer.macs for layer in self.layers)
        left = sum(layer.macs * layer.left(self.widths) for layer in self.layers) / max(dense, 1)
        lines = [f"{'layer':40} {'inputs':>12} {'outputs':>12} {'MACs':>14} {'left':>7}"]
        for layer in self.layers:
            cells = [f"{cut.count(self.widths)}/{cut.size}" if cut else "all" for cut in (layer.inputs, layer.outputs)]
            share = layer.left(self.widths)
            lines.append(f"{layer.name:40} {cells[0]:>12} {cells[1]:>12} {layer.macs:>14,} {share:>7.1%}")
        lines.append(f"{'all':40} {'':>12} {'':>12} {dense:>14,} {left:>7.1%}")
        lines += [f"gate {name}: {text}" for name, text in self.gates]
        lines += [f"no rule: {text}" for text in self.whole]
        return "\n".join(lines)


def explain(plan: Plan, widths: tuple[int, ...]) -> Explanation:
    """Explains a plan; see `Explanation`."""
    check_widths(plan.program.sites, widths)
    layers, program = layers_of(plan), plan.program
    gated = [(step.site, step) for step in program.steps if step.site is not None]
    gates = [(program.sites[site].name, _of_gate(plan, step, layers)) for site, step in gated]
    gates += [(name, f"only masks: {reason}") for name, reason in program.masked]
    late = [step for step in program.steps if rule_of(step) is WHOLE and not plan.is_known(step.outputs[0])]
    whole = [str(step) for step in late if any(map(plan.layout, (*step.inputs, *step.outputs)))]
    return Explanation(layers, widths, tuple(gates), tuple(dict.fromkeys(whole)))


def _of_gate(plan: Plan, step: Step, layers: Sequence[Layer]) -> str:
    outputs = [layer.name for layer in layers if layer.outputs and step.site in layer.outputs.sites]
    inputs = [layer.name for layer in layers if layer.inputs and step.site in layer.inputs.sites]
    parts = [f"skips outputs of {', '.join(outputs)}" if outputs else _before(plan, step.inputs[0])]
    parts += [f"skips inputs of {', '.join(inputs)}" if inputs else _after(plan, step.outputs[0])]
    return ("" if outputs or inputs else "only masks: ") + "; ".join(part for part in parts if part)


def _before(plan: Plan, ref: Ref) -> str:
    """Says why what is gated is computed whole: where the demand for a few channels ends."""
    while (step := plan.makers.get(ref)) is not None:
        if ref in plan.have:
            return "what is gated has the channels that another gate leaves"
        if plan.layout(ref) is None or not any(rule_of(step).want(step, plan)):
            return f"what is gated comes from {step}" + (f", {plan.reasons[ref]}" if ref in plan.reasons else "")
        ref = next((operand for operand in step.inputs if not plan.is_known(operand)), step.inputs[0])
    return "what is gated is an input" if plan.layout(ref) is None or ref not in plan.makers else ""


def _after(plan: Plan, ref: Ref) -> str:
    """Says where the absent channels are filled in again."""
    held = {ref}
    for step in plan.program.steps:
        if held.intersection(step.inputs):
            if step.site is not None:
                return f"then gate {plan.program.sites[step.site].name} decides"
            if not any(output in plan.have for output in step.outputs):
                return f"whole again at {step}"
            held.update(step.outputs)
    return ""
