"""A function as one flat list of primitive operations: calls inlined, gates kept.

Only jaxprs are looked at, so that it does not matter what a network is written in. `split` cuts such a list in two:
what can be computed before the images come, and the rest.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from gaternet_jax.gating.gate import GateSite, is_site, marked_name

CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat",
    "remat2",
    "checkpoint",
)


@dataclasses.dataclass(eq=False, frozen=True)
class Ref:
    """A value of a program: the result of a step, an input, or (with `literal`) a number written in it."""

    aval: Any
    literal: Any = None

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.aval.shape


@dataclasses.dataclass(eq=False, frozen=True)
class Step:
    """One primitive operation.

    Attributes:
        primitive, params: what is computed.
        inputs, outputs: of what, and to what.
        site: the number of the gates that a `gate` call multiplies by; None for every other operation.
        where: the line of the network that it comes from.
    """

    primitive: core.Primitive
    params: dict[str, Any]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    site: int | None = None
    where: str = ""

    @property
    def name(self) -> str:
        return self.primitive.name

    def __str__(self) -> str:
        """Its name and the line of code, for people."""
        return f"{self.name} ({self.where})" if self.where else self.name

    def bind(self, operands: Sequence[Any], **changed: Any) -> list[Any]:
        """Computes (or traces) it, with other params where given."""
        params = self.primitive.get_bind_params({**self.params, **changed})
        results = self.primitive.bind(*operands, **params)
        return list(results) if self.primitive.multiple_results else [results]


class Program(NamedTuple):
    """A flat program.

    Attributes:
        steps: in an order in which they can be computed.
        inputs, outputs: the leaves of the function's arguments and of its result.
        constants: arrays that the function captured.
        sites: its gates.
        masked: gates that are multiplications and nothing more, and why.
        numbers: of values all of whose elements are one number that the program says.
        tree: the structure of the result.
    """

    steps: list[Step]
    inputs: list[Ref]
    outputs: list[Ref]
    constants: dict[Ref, Any]
    sites: tuple[GateSite, ...]
    masked: list[tuple[str, str]]
    numbers: dict[Ref, Any]
    tree: Any


def flatten(function: Callable[..., Any], *args: Any) -> Program:
    """Traces a function; superfluous operations are left out."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    return _Flattening().program(closed, jax.tree.structure(shape))


class _Flattening:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.constants: dict[Ref, Any] = {}
        self.sites: list[GateSite] = []
        self.masked: list[tuple[str, str]] = []
        self.numbers: dict[Ref, Any] = {}  # values that are one number

    def program(self, closed: core.ClosedJaxpr, tree: Any) -> Program:
        inputs = [Ref(variable.aval) for variable in closed.jaxpr.invars]
        outputs = self.inline(closed.jaxpr, closed.consts, inputs)
        steps = needed(self.steps, outputs)
        return Program(steps, inputs, outputs, self.constants, tuple(self.sites), self.masked, self.numbers, tree)

    def inline(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Ref], where: str = "") -> list[Ref]:
        refs: dict[Any, Ref] = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, constant in zip(jaxpr.constvars, consts, strict=True):
            refs[variable] = Ref(variable.aval)
            self.constants[refs[variable]] = constant

        def read(atom: Any) -> Ref:
            return Ref(atom.aval, atom.val) if isinstance(atom, core.Literal) else refs[atom]

        for equation in jaxpr.eqns:
            operands = tuple(read(atom) for atom in equation.invars)
            refs.update(zip(equation.outvars, self.add(equation, operands, where), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def add(self, equation: Any, operands: tuple[Ref, ...], where: str) -> Sequence[Ref]:
        where = where or _line(equation)
        name, marked = equation.primitive.name, marked_name(equation)
        site = None
        if marked is not None and is_site(equation):
            site = len(self.sites)
            offset = self.sites[-1].offset + self.sites[-1].size if self.sites else 0
            self.sites.append(GateSite(marked or f"gate{site}", offset, operands[1].shape[1]))
        elif name in CALLS:
            if marked is not None:
                self.masked.append((marked or "a gate", "it was changed by vmap or by a gradient"))
            (inner,) = core.jaxprs_in_params(equation.params)
            closed = [value for value in equation.params.values() if isinstance(value, core.ClosedJaxpr)]
            return self.inline(inner, closed[0].consts if closed else (), operands, where)
        else:
            for inner in core.jaxprs_in_params(equation.params):
                self.masked += [(gate or "a gate", f"it stands within {name}") for gate in _gates_within(inner)]
        outputs = tuple(Ref(variable.aval) for variable in equation.outvars)
        if name in ("reshape", "broadcast_in_dim", "convert_element_type"):
            (first, *_), numbers = operands, self.numbers
            if first in numbers or (first.literal is not None and np.ndim(first.literal) == 0):
                numbers[outputs[0]] = numbers.get(first, first.literal)
        if name == "split":
            starts = np.cumsum([0, *equation.params["sizes"]]).tolist()
            for start, output in zip(starts, outputs, strict=False):
                self.add_slice(operands[0], output, equation.params["axis"], start, where)
        else:
            self.steps.append(Step(equation.primitive, equation.params, operands, outputs, site, where))
        return outputs

    def add_slice(self, operand: Ref, output: Ref, axis: int, start: int, where: str) -> None:
        starts, limits = [0] * len(output.shape), list(operand.shape)
        starts[axis], limits[axis] = start, start + output.shape[axis]
        params = dict(start_indices=tuple(starts), limit_indices=tuple(limits), strides=None)
        self.steps.append(Step(jax.lax.slice_p, params, (operand,), (output,), None, where))


def _gates_within(jaxpr: Any) -> list[str]:
    found = []
    for equation in jaxpr.eqns:
        if (marked := marked_name(equation)) is not None:
            found.append(marked)
        for inner in core.jaxprs_in_params(equation.params):
            found += _gates_within(inner)
    return found


def _line(equation: Any) -> str:
    """The line of the network's code, as file:line; "" where JAX does not say."""
    frames = getattr(equation.source_info.traceback, "frames", ())
    for frame in frames:
        if not any(part in frame.file_name for part in ("/jax/_src/", "/flax/", "/gating/gate.py")):
            return f"{frame.file_name.rpartition('/')[2]}:{frame.line_num}"
    return ""


def needed(steps: Iterable[Step], outputs: Iterable[Ref]) -> list[Step]:
    """The steps that the outputs depend on."""
    wanted, kept = set(outputs), []
    for step in reversed(list(steps)):
        if wanted.intersection(step.outputs):
            kept.append(step)
            wanted.update(step.inputs)
    return kept[::-1]


def evaluate(steps: Iterable[Step], values: dict[Ref, Any], outputs: Sequence[Ref]) -> list[Any]:
    """Computes the outputs from the values of what the steps need; adds to `values`."""

    def read(ref: Ref) -> Any:
        return values[ref] if ref.literal is None else ref.literal

    for step in steps:
        values.update(zip(step.outputs, step.bind([read(ref) for ref in step.inputs]), strict=True))
    return [read(ref) for ref in outputs]


def split(program: Program, known: Iterable[Ref]) -> tuple[list[Step], list[Ref], list[Step]]:
    """Cuts a program in two.

    Broadcasts, and what depends on nothing, are computed where they are used: they cost nothing there, have no place in
    memory, and may depend on the size of the batch.

    Args:
        program: any.
        known: inputs that come first; the constants are known besides.

    Returns:
        The steps that need known values only; what they hand over; the remaining steps.
    """
    ahead, cheap, late = [], {}, []
    ready = {*known, *program.constants}
    for step in program.steps:
        if all(ref in ready or ref.literal is not None for ref in step.inputs):
            ready.update(step.outputs)
            ahead.append(step)
            if step.name == "broadcast_in_dim" or not any(ref.literal is None for ref in step.inputs):
                cheap.update(dict.fromkeys(step.outputs, step))
        else:
            late.append(step)
    handed_over: dict[Ref, None] = {}
    again: dict[Step, None] = {}

    def demand(ref: Ref) -> None:
        if ref not in ready or ref.literal is not None:
            return
        if (step := cheap.get(ref)) is None:
            handed_over[ref] = None
            return
        for operand in step.inputs:
            demand(operand)
        again[step] = None

    for step in late:
        for ref in step.inputs:
            demand(ref)
    for ref in program.outputs:
        demand(ref)
    handed = list(handed_over)
    return needed(ahead, handed), handed, [*again, *late]


def signature(steps: Iterable[Step], inputs: Iterable[Ref], outputs: Iterable[Ref]) -> list[Any]:
    """What is computed, in a form that can be compared: equal ones compute the same of the same inputs."""
    numbers = {ref: number for number, ref in enumerate(inputs)}

    def number(ref: Ref) -> Any:
        return numbers.setdefault(ref, len(numbers)) if ref.literal is None else str(ref.literal)

    lines: list[Any] = []
    for step in steps:
        refs = [number(ref) for ref in (*step.inputs, *step.outputs)]
        lines.append((step.name, refs, [ref.shape for ref in step.outputs], str(step.params)))
    return [*lines, [number(ref) for ref in outputs]]


def shaped(tree: Any) -> Any:
    """Shapes and types in place of arrays."""
    return jax.eval_shape(lambda leaves: leaves, tree)


def find_sites(function: Callable[..., Any], *args: Any) -> tuple[GateSite, ...]:
    """Lists the gates of a function by tracing it: nothing is computed.

    Gates within `jax.lax.scan`, `while_loop` and `cond`, or changed by `vmap`, are no sites: they are multiplications
    and nothing more.

    Args:
        function: any function that calls `gate`.
        *args: arrays, or `jax.ShapeDtypeStruct`s in their place.

    Returns:
        Sites in the order in which they are computed.

    Example:
        >>> gx.find_sites(lambda x, gates: gx.gate(x, gates, "input"), jnp.ones((1, 8, 8, 3)), jnp.ones((1, 3)))
        (GateSite(name='input', offset=0, size=3),)
    """
    return flatten(function, *args).sites
