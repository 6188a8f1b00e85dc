"""A function as one flat list of primitive operations: calls inlined, gates kept.

Only jaxprs are looked at, so that it does not matter what a network is written in. `split` cuts such a list in two:
what can be computed before the images come, and the rest.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core, source_info_util

from gaternet_jax.gating.gate import GateSite, marked

REPLAYED = "_skip_closed"  # the call of what was transformed: its operations stand in the network
CALLS = ("jit", "call", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")


@dataclasses.dataclass(eq=False, slots=True)
class Ref:
    """Stands for a value of a program: the result of a step, an input, or (with `literal`) a number written in it."""

    aval: Any
    literal: Any = None

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.aval.shape


@dataclasses.dataclass(eq=False, slots=True)
class Step:
    """Describes one primitive operation."""

    primitive: core.Primitive
    params: dict[str, Any]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    site: int | None = None  # of a `gate` call, the number of its gates
    traceback: Any = None  # of the call in the network that it comes from, where JAX says it

    @property
    def name(self) -> str:
        return self.primitive.name

    def __str__(self) -> str:
        """Gives its name and the line of the network's code, for people."""
        for frame in getattr(self.traceback, "frames", ()):
            if not any(part in frame.file_name for part in ("/jax/_src/", "/flax/", "/gating/gate.py")):
                return f"{self.name} ({frame.file_name.rpartition('/')[2]}:{frame.line_num})"
        return self.name

    def bind(self, operands: Sequence[Any], **changed: Any) -> list[Any]:
        """Computes (or traces) the operation, with other params where given."""
        params = self.primitive.get_bind_params({**self.params, **changed})
        with source_info_util.user_context(self.traceback):
            results = self.primitive.bind(*operands, **params)
        return list(results) if self.primitive.multiple_results else [results]


class Program(NamedTuple):
    """Holds a flat program."""

    steps: list[Step]  # in an order in which they can be computed
    inputs: list[Ref]  # the leaves of the function's arguments
    outputs: list[Ref]  # the leaves of its result
    tree: Any  # the structure of the result
    constants: dict[Ref, Any]  # arrays that the function captured
    sites: list[GateSite]
    masked: list[tuple[str, str]]  # gates that are multiplications and nothing more, and why


def flatten(function: Callable[..., Any], *args: Any) -> Program:
    """Traces a function; superfluous operations are left out."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    inputs = [Ref(variable.aval) for variable in closed.jaxpr.invars]
    program = Program([], inputs, [], jax.tree.structure(shape), {}, [], [])
    outputs = _inline(program, closed.jaxpr, closed.consts, inputs, None)
    return program._replace(steps=needed(program.steps, outputs), outputs=outputs)


def _inline(program: Program, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Ref], traceback: Any) -> list[Ref]:
    """Appends the steps of a jaxpr; those of a call have the traceback of the call."""
    refs: dict[Any, Ref] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, constant in zip(jaxpr.constvars, consts, strict=True):
        refs[variable] = Ref(variable.aval)
        program.constants[refs[variable]] = constant

    def read(atom: Any) -> Ref:
        return Ref(atom.aval, atom.val) if isinstance(atom, core.Literal) else refs[atom]

    for equation in jaxpr.eqns:
        operands = tuple([read(atom) for atom in equation.invars])
        results = _append(program, equation, operands, traceback or equation.source_info.traceback)
        refs.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _append(program: Program, equation: Any, operands: tuple[Ref, ...], traceback: Any) -> Sequence[Ref]:
    name, params, site = equation.primitive.name, equation.params, None
    gate, is_as_written = marked(equation) or (None, False)
    if is_as_written:
        site, offset = len(program.sites), program.sites[-1].gates.stop if program.sites else 0
        program.sites.append(GateSite(gate or f"gate{site}", offset, operands[1].shape[1]))
    elif name in CALLS:
        if gate is not None:
            program.masked.append((gate or "a gate", "it was changed by vmap or by a gradient"))
        (inner,) = core.jaxprs_in_params(params)
        consts = next((closed.consts for closed in params.values() if hasattr(closed, "consts")), ())
        return _inline(program, inner, consts, operands, None if params.get("name") == REPLAYED else traceback)
    elif name == "split":

        def slices(x: jax.Array) -> list[jax.Array]:
            edges = itertools.accumulate(params["sizes"], initial=0)
            return [jax.lax.slice_in_dim(x, *edge, axis=params["axis"]) for edge in itertools.pairwise(edges)]

        return _inline(program, jax.make_jaxpr(slices)(operands[0].aval).jaxpr, (), operands, traceback)
    else:
        program.masked.extend((gate or "a gate", f"it stands within {name}") for gate in _gates_within(params))
    outputs = tuple([Ref(variable.aval) for variable in equation.outvars])
    program.steps.append(Step(equation.primitive, params, operands, outputs, site, traceback))
    return outputs


def _gates_within(params: dict[str, Any]) -> Iterator[str]:
    for jaxpr in core.jaxprs_in_params(params):
        for equation in jaxpr.eqns:
            if mark := marked(equation):
                yield mark[0]
            yield from _gates_within(equation.params)


def needed(steps: Iterable[Step], outputs: Iterable[Ref]) -> list[Step]:
    """Finds the steps that the outputs depend on."""
    wanted, kept = set(outputs), []
    for step in reversed(list(steps)):
        if not wanted.isdisjoint(step.outputs):
            kept.append(step)
            wanted.update(step.inputs)
    return kept[::-1]


def split(program: Program, count: int) -> tuple[Callable[..., list[Any]], Callable[..., list[Any]]]:
    """Cuts a program in two functions of lists of arrays: of so many inputs; of what that gives, and the other inputs.

    Broadcasts, and what depends on nothing, are computed where they are used: they cost nothing there, have no place in
    memory, and may depend on the size of the batch.
    """
    ready = dict.fromkeys([*program.inputs[:count], *program.constants])  # in order
    numbers: set[Ref] = set()  # depend on nothing
    ahead, late, cheap = [], [], []
    for step in program.steps:
        if not all(ref in ready or ref.literal is not None for ref in step.inputs):
            late.append(step)
            continue
        ahead.append(step)
        if all(ref in numbers or ref.literal is not None for ref in step.inputs):
            numbers.update(step.outputs)
        if step.name == "broadcast_in_dim" or not numbers.isdisjoint(step.outputs):
            cheap.append(step)
        ready |= dict.fromkeys(step.outputs)
    late = [*needed(cheap, [*_read_by(late), *program.outputs]), *late]
    wanted = {*_read_by(late), *program.outputs} - {ref for step in late for ref in step.outputs}
    handed_over = [ref for ref in ready if ref in wanted]
    ahead = needed(ahead, handed_over)

    def evaluate(steps: list[Step], outputs: list[Ref], given: dict[Ref, Any]) -> list[Any]:
        values = program.constants | given
        read = lambda ref: values[ref] if ref.literal is None else ref.literal  # noqa: E731
        for step in steps:
            values.update(zip(step.outputs, step.bind(list(map(read, step.inputs))), strict=True))
        return list(map(read, outputs))

    def prepare(first: Sequence[Any]) -> list[Any]:
        return evaluate(ahead, handed_over, dict(zip(program.inputs, first, strict=False)))

    def run(prepared: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
        given = zip((*handed_over, *program.inputs[count:]), (*prepared, *rest), strict=True)
        return evaluate(late, program.outputs, dict(given))

    return prepare, run


def _read_by(steps: Iterable[Step]) -> list[Ref]:
    return [ref for step in steps for ref in step.inputs]


def shaped(tree: Any) -> Any:
    """Puts shapes and types in place of arrays."""
    return jax.eval_shape(lambda leaves: leaves, tree)


def leaves_of(tree: Any) -> dict[str, Any]:
    """Gives the leaves of a tree by their paths: "stage1.conv.kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def find_sites(function: Callable[..., Any], *args: Any) -> tuple[GateSite, ...]:
    """Lists the gates of a function, in the order in which they are computed, by tracing it: nothing is computed.

    Gates within `jax.lax.scan`, `while_loop` and `cond`, or changed by `vmap`, are no sites: they are multiplications
    and nothing more.

    Args:
        function: any function that calls `gate`.
        *args: arrays, or `jax.ShapeDtypeStruct`s in their place.

    Example:
        >>> gx.find_sites(lambda x, gates: gx.gate(x, gates, "input"), jnp.ones((1, 8, 8, 3)), jnp.ones((1, 3)))
        (GateSite(name='input', offset=0, size=3),)
    """
    return tuple(flatten(function, *args).sites)
