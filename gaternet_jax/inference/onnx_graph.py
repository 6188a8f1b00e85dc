"""The graph of an ONNX model while it is written (onnx_writer.py): nodes, constants, and how axes are stored.

ONNX has channels first. Each value remembers in which order its axes are stored; a transposition is written only where
two values of different order meet.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import helper, numpy_helper

from gaternet_jax.errors import UserError
from gaternet_jax.gating.program import Ref, Step

BATCH = 10_007  # images that are traced: a prime, so that sizes that depend on the batch are those it divides
OPSET, IR_VERSION = 18, 10  # ONNX Runtime 1.18 and later
Order = tuple[int, ...]  # axis i of what is stored is axis order[i] of the value


class Stored(NamedTuple):
    """Names a tensor of the model that holds a value, in an order of its axes."""

    name: str
    order: Order


class Placed(NamedTuple):
    """Describes a broadcast that is not written yet: axis i of `source` is axis places[i]."""

    source: Ref
    places: tuple[int, ...]


def natural(ref: Ref) -> Order:
    """Gives the order of a value's own axes."""
    return tuple(range(len(ref.shape)))


def sizes_of(shape: Sequence[int], batch: Any = -1) -> list[Any]:
    """Gives sizes as ONNX has them, with something else for those that depend on the batch."""
    return [batch if is_of_batch(size) else size for size in shape]


def is_of_batch(number: Any) -> bool:
    """Tells whether a size, or a number that was computed from one, depends on the batch."""
    return bool(number) and math.isfinite(number) and number % BATCH == 0


def dtype_of(ref: Ref) -> int:
    """Gives the type of a value, as ONNX numbers types."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(ref.aval.dtype))


class Graph:
    """Holds the graph so far.

    Attributes:
        inputs: names of the inputs, which have the batch first.
        arrays: values that are known, possibly of size 1 where they are broadcast.
        values: the others.
    """

    def __init__(self, inputs: Sequence[str], arrays: dict[Ref, Any]):
        self.inputs = list(inputs)
        self.arrays = {ref: np.asarray(array) for ref, array in arrays.items()}
        self.values: dict[Ref, Stored | Placed] = {}
        self.nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self.read, self.integers = functools.cache(self._read), functools.cache(self._integers)

    def node(self, kind: str, operands: Sequence[str], name: str = "", **attributes: Any) -> str:
        """Writes a node and gives the name of its result."""
        name = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, operands, [name], **attributes))
        return name

    def constant(self, array: Any) -> str:
        """Adds an initialiser and gives its name."""
        name = f"constant_{len(self._initializers)}"
        self._initializers[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def _integers(self, *numbers: int) -> str:
        """Gives the name of a list of numbers: axes, sizes, positions."""
        return self.constant(np.array(numbers, np.int64))

    def unsqueeze(self, name: str, axes: Sequence[int]) -> str:
        """Inserts axes of size 1."""
        return self.node("Unsqueeze", [name, self.integers(*axes)]) if axes else name

    def model(self, inputs: dict[str, Ref], outputs: dict[str, Ref]) -> Any:
        """Makes the model."""
        entries, results = (
            [helper.make_tensor_value_info(name, dtype_of(ref), sizes_of(ref.shape, "batch")) for name, ref in named]
            for named in (inputs.items(), outputs.items())
        )
        graph = helper.make_graph(self.nodes, "function", entries, results, list(self._initializers.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def known(self, ref: Ref) -> np.ndarray | None:
        """Gives the array that a value is, where it does not depend on the inputs."""
        if ref.literal is not None:
            return np.asarray(ref.literal, ref.aval.dtype)
        return self.arrays.get(ref)

    def order(self, ref: Ref) -> Order | None:
        """Gives the order in which a value is stored; None where any is as good."""
        value = self.values.get(ref)
        return value.order if isinstance(value, Stored) else None

    def _read(self, ref: Ref, order: Order, full: bool = False) -> str:
        """Gives the name of a value in an order; of its whole shape, or else of size 1 where it is broadcast."""
        if (array := self.known(ref)) is not None:
            name = self.constant(array if array.ndim == 0 else array.transpose(order))
            return self._expand(name, ref, order, array.shape) if full else name
        value = self.values[ref]
        if isinstance(value, Stored):
            if value.order == order:
                return value.name
            return self.node("Transpose", [value.name], perm=[value.order.index(axis) for axis in order])
        rows = sorted(range(len(value.places)), key=lambda axis: order.index(value.places[axis]))
        name = self.read(value.source, tuple(rows))
        name = self.unsqueeze(name, [place for place, axis in enumerate(order) if axis not in value.places])
        own = [
            value.source.shape[value.places.index(axis)] if axis in value.places else 1 for axis in range(len(order))
        ]
        return self._expand(name, ref, order, own) if full else name

    def _expand(self, name: str, ref: Ref, order: Order, own: Sequence[Any]) -> str:
        if tuple(own) == tuple(ref.shape):
            return name
        sizes = [ref.shape[axis] if ref.shape[axis] != own[axis] else 1 for axis in order]
        if BATCH not in sizes:
            return self.node("Expand", [name, self.integers(*sizes)])
        batch = self.node("Shape", [self.inputs[0]], start=0, end=1)
        parts = [batch if size == BATCH else self.integers(size) for size in sizes]
        return self.node("Expand", [name, self.node("Concat", parts, axis=0)])

    @staticmethod
    def refuse(step: Step, what: str = "") -> Any:
        """Raises a UserError that says what is not written."""
        raise UserError(f"{step}{what and f' with {what}'} is not written as ONNX; use --format=stablehlo")
