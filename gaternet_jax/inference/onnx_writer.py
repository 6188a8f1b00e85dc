"""Writes a function as an ONNX model, operation by operation.

The function is traced and flattened (gating/program.py), so that what is written are some sixty primitives. With a
prepared program of `skip_closed` in it, its kernels are the initialisers:

    write_onnx(lambda images, gates: program(prepared, images, gates), {"images": ..., "gates": ...}, ["logits"])

Relu is written as Relu, so that ONNX Runtime fuses it with the convolution before and the sum of a residual block.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from onnx import checker, helper

from gaternet_jax.gating.program import Step, flatten
from gaternet_jax.gating.shapes import spread
from gaternet_jax.inference.onnx_graph import BATCH, Graph, Stored, is_of_batch, natural
from gaternet_jax.inference.onnx_operations import OPERATIONS, write_gate


def write_onnx(
    function: Callable[..., Any], inputs: dict[str, jax.ShapeDtypeStruct], outputs: Sequence[str], **metadata: str
) -> bytes:
    """Writes a function of arrays as a serialised ONNX model.

    Args:
        function: of the inputs, in order; its result has as many leaves as there are outputs.
        inputs: name, shape and type of each. The first axis is the batch, whose size does not matter.
        outputs: names of the leaves.
        **metadata: entries of the model.

    Raises:
        UserError: an operation that is not written; it names the line of the network.

    Example:
        >>> images = jax.ShapeDtypeStruct((1, 8), np.float32)
        >>> model = gx.write_onnx(lambda images: jax.nn.relu(images), {"images": images}, ["maps"])
        >>> isinstance(model, bytes)  # what a .onnx file holds
        True
    """
    batches = (jax.ShapeDtypeStruct((BATCH, *given.shape[1:]), given.dtype) for given in inputs.values())
    program = flatten(function, *batches)
    graph = Graph(list(inputs), program.constants)
    graph.values |= {ref: Stored(name, natural(ref)) for name, ref in zip(inputs, program.inputs, strict=True)}
    for step in program.steps:
        _add(graph, step)
    for name, ref in zip(outputs, program.outputs, strict=True):
        graph.node("Identity", [graph.read(ref, natural(ref), full=True)], name)
    ends = (inputs, program.inputs), (outputs, program.outputs)
    model = graph.model(*(dict(zip(*end, strict=True)) for end in ends))
    helper.set_model_props(model, metadata)
    checker.check_model(model)
    return model.SerializeToString()


def _add(graph: Graph, step: Step) -> None:
    """Writes an operation, or computes it where it does not depend on the inputs."""
    if any(ref.literal is not None and is_of_batch(ref.literal) for ref in step.inputs):
        graph.refuse(step, "a number that depends on the size of the batch")
    arrays = [array for ref in step.inputs if (array := graph.known(ref)) is not None]
    if arrays and step.name == "broadcast_in_dim":
        graph.arrays[step.outputs[0]] = arrays[0].reshape(spread(step, arrays[0].shape))
    elif len(arrays) == len(step.inputs) and not any(is_of_batch(size) for ref in step.outputs for size in ref.shape):
        full = [np.broadcast_to(array, ref.shape) for array, ref in zip(arrays, step.inputs, strict=True)]
        with jax.ensure_compile_time_eval():
            graph.arrays |= {ref: np.asarray(x) for ref, x in zip(step.outputs, step.bind(full), strict=True)}
    elif step.site is not None:
        graph.values[step.outputs[0]] = write_gate(graph, step)
    elif step.name in OPERATIONS:
        graph.values[step.outputs[0]] = OPERATIONS[step.name](graph, step)
    else:
        graph.refuse(step)
