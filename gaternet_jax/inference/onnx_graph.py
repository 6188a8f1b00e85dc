"""The graph of an ONNX model while it is written (onnx_writer.py): its nodes, and where the values are."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from onnx import helper, numpy_helper

from gaternet_jax.gating.program import Ref

BATCH = 10_007  # images that are traced: a prime, so that sizes that depend on the batch are those it divides
Tensor = str | np.ndarray  # the name of what a node computes, or an array that does not depend on the inputs


class Value(NamedTuple):
    """Holds a value, of size 1 along axes that it was broadcast to."""

    tensor: Tensor
    shape: tuple[int, ...]


def is_of_batch(number: Any) -> bool:
    """Tells whether a size, or a number that was computed from one, depends on the batch."""
    return bool(number) and math.isfinite(number) and number % BATCH == 0


def sizes_of(shape: Sequence[int], batch: Any = -1) -> list[Any]:
    """Gives sizes as ONNX has them, with something else for those that depend on the batch."""
    return [batch if is_of_batch(size) else size for size in shape]


def dtype_of(ref: Ref) -> int:
    """Gives the type of a value, as ONNX numbers types."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(ref.aval.dtype))


class Graph:
    """Holds the graph so far; `inputs` are the names and values of its inputs, which have the batch first."""

    def __init__(self, inputs: dict[str, Ref], constants: dict[Ref, Any]):
        self.nodes, self.initializers, self._batch = [], {}, next(iter(inputs))
        self.values = {ref: Value(name, ref.shape) for name, ref in inputs.items()}
        self.values |= {ref: known(array) for ref, array in constants.items()}

    def node(self, kind: str, *operands: Tensor | Sequence[int], output: str = "", **attributes: Any) -> str:
        """Writes a node and gives the name of its result; operands may be numbers: axes, sizes, positions."""
        output = output or f"/{kind.lower()}_{len(self.nodes)}"
        names = [operand if isinstance(operand, str) else self._initializer(operand) for operand in operands]
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def _initializer(self, given: np.ndarray | Sequence[int]) -> str:
        """Adds an array, once, and gives its name."""
        array = np.asarray(given, getattr(given, "dtype", np.int64), order="C")
        tensor = numpy_helper.from_array(array)
        tensor = self.initializers.setdefault(tensor.SerializeToString(), tensor)
        tensor.name = tensor.name or f"/constant_{len(self.initializers)}"
        return tensor.name

    def transpose(self, tensor: Tensor, order: Sequence[int] | np.ndarray) -> Tensor:
        """Gives a tensor whose axis i is axis order[i] of this one."""
        if isinstance(tensor, np.ndarray):
            return tensor.transpose(order)
        perm = [int(axis) for axis in order]
        return tensor if perm == sorted(perm) else self.node("Transpose", tensor, perm=perm)

    def reshape(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """Gives a tensor in another shape, of which one size may depend on the batch."""
        if isinstance(tensor, np.ndarray):
            return tensor.reshape(shape)
        return self.node("Reshape", tensor, sizes_of(shape))

    def thin(self, ref: Ref) -> Value:
        """Gives a value, of size 1 along axes that it was broadcast to."""
        return self.values[ref] if ref.literal is None else known(np.asarray(ref.literal, ref.aval.dtype))

    def whole(self, ref: Ref) -> Tensor:
        """Gives a value in its whole shape."""
        (tensor, shape), sizes = self.thin(ref), sizes_of(ref.shape, 0)
        if shape == ref.shape:
            return tensor
        if isinstance(tensor, np.ndarray) and 0 not in sizes:
            return np.broadcast_to(tensor, sizes)
        batches = [size // BATCH if is_of_batch(size) else 0 for size in ref.shape]
        batches = self.node("Mul", self.node("Shape", self._batch, start=0, end=1), batches)
        return self.node("Expand", tensor, self.node("Add", batches, sizes))


def known(array: Any) -> Value:
    """Makes the value of an array that does not depend on the inputs; PRNG keys, which NumPy has not, stay JAX's."""
    array = array if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else np.asarray(array)
    return Value(array, array.shape)
