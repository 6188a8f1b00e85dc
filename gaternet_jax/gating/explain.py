"""What is skipped, and what is not, in words."""

from collections.abc import Sequence
from typing import NamedTuple

from gaternet_jax.gating.channels import Channels
from gaternet_jax.gating.plan import WHOLE, Plan, rule_of
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


def layers_of(plan: Plan) -> tuple[Layer, ...]:
    """Lists the convolutions and products of a program, but for those of parameters only."""
    layers = []
    for step in plan.program.steps:
        rule = rule_of(step)
        if isinstance(rule, Product) and not plan.is_known(step.outputs[0]):
            name = next((plan.names[ref] for ref in step.inputs[::-1] if ref in plan.names), "") or str(step)
            name = name.removesuffix(".value").removesuffix(".kernel")
            layers.append(Layer(name, rule.macs(step), *rule.cuts(step, plan)))
    return tuple(layers)


def explain(plan: Plan, widths: tuple[int, ...]) -> Explanation:
    """Explains a plan; see `Explanation`."""
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
    producers = {output: step for step in plan.program.steps for output in step.outputs}
    while (step := producers.get(ref)) is not None:
        if ref in plan.have:
            return "what is gated has the channels that another gate leaves"
        if plan.layout(ref) is None or rule_of(step) is WHOLE:
            return f"what is gated comes from {step}" + (f", {plan.reasons[ref]}" if ref in plan.reasons else "")
        ref = next((operand for operand in step.inputs if not plan.is_known(operand)), step.inputs[0])
    return "what is gated is an input" if plan.layout(ref) is None or ref not in producers else ""


def _after(plan: Plan, ref: Ref) -> str:
    """Says where the absent channels are filled in again."""
    held = {ref}
    for step in plan.program.steps:
        if held.intersection(step.inputs):
            if not any(plan.layout(output) for output in step.outputs):
                return f"whole again at {step}"
            held.update(step.outputs)
    return ""
