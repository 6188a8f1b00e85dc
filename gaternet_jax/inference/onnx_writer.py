"""Writes a function as an ONNX model, operation by operation.

The function is traced and flattened (gating/program.py), so that what is written are some sixty primitives. With a
prepared program of `skip_closed` in it, its kernels are the initialisers:

    write_onnx(lambda images, gates: program(prepared, images, gates), {"images": ..., "gates": ...}, ["logits"])

Relu is written as Relu, so that ONNX Runtime fuses it with the convolution before and the sum of a residual block. ONNX
has channels first: a convolution stands between two transpositions, of which ONNX Runtime leaves one, of the images.
"""

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from onnx import checker, helper

from gaternet_jax.gating.program import Ref, Step, flatten
from gaternet_jax.gating.shapes import spread
from gaternet_jax.inference.onnx_graph import (
    BATCH,
    IR_VERSION,
    OPSET,
    Graph,
    Tensor,
    Value,
    constant,
    dtype_of,
    is_of_batch,
    refuse,
    sizes_of,
)


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
    ends = [dict(zip(*end, strict=True)) for end in ((inputs, program.inputs), (outputs, program.outputs))]
    graph = Graph(ends[0], program.constants)
    for step in program.steps:
        _add(graph, step)
    for name, ref in ends[1].items():
        graph.node("Identity", graph.whole(ref), output=name)
    infos = (
        [helper.make_tensor_value_info(name, dtype_of(ref), sizes_of(ref.shape, "batch")) for name, ref in end.items()]
        for end in ends
    )
    written = helper.make_graph(graph.nodes, "function", *infos, list(graph.initializers.values()))
    model = helper.make_model(written, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(model, metadata)
    checker.check_model(model)
    return model.SerializeToString()


def _add(graph: Graph, step: Step) -> None:
    """Writes an operation, or computes it where it does not depend on the inputs."""
    name, output = "gate" if step.site is not None else step.name, step.outputs[0]
    if any(ref.literal is not None and is_of_batch(ref.literal) for ref in step.inputs):
        refuse(step, "a number that depends on the size of the batch")
    *before, after = (sum(map(is_of_batch, ref.shape)) for ref in (*step.inputs, output))
    if after < max(before, default=0):
        refuse(step, "the images of a batch together")
    values = [graph.thin(ref) for ref in step.inputs]
    if name == "broadcast_in_dim":
        axes = [axis for axis in range(len(output.shape)) if axis not in step.params["broadcast_dimensions"]]
        tensor = graph.unsqueeze(values[0].tensor, axes)
        graph.values[output] = Value(tensor, tuple(spread(step, values[0].shape)))
    elif not after and all(isinstance(value.tensor, np.ndarray) for value in values):
        with jax.ensure_compile_time_eval():
            results = step.bind([graph.whole(ref) for ref in step.inputs])
        graph.values.update(zip(step.outputs, map(constant, results), strict=True))
    elif name in ELEMENTWISE:
        tensor = ELEMENTWISE[name](graph, step, *(value.tensor for value in values))
        graph.values[output] = Value(tensor, np.broadcast_shapes(*(value.shape for value in values)))
    elif name in OPERATIONS:
        graph.values[output] = Value(OPERATIONS[name](graph, step, *step.inputs), output.shape)
    else:
        refuse(step)


def _max(graph: Graph, step: Step, *operands: Tensor) -> str:
    for zero, other in (operands, operands[::-1]):
        if isinstance(zero, np.ndarray) and zero.dtype.kind == "f" and zero.size == 1 and zero == 0:
            return graph.node("Relu", other)
    return graph.node("Max", *operands)


def _gate(graph: Graph, step: Step, maps: Ref, gates: Ref) -> str:
    spatial = range(2, len(maps.shape))
    tensor = graph.transpose(graph.unsqueeze(graph.whole(gates), spatial), [0, *spatial, 1])
    tensor = tensor if maps.aval.dtype == gates.aval.dtype else graph.node("Cast", tensor, to=dtype_of(maps))
    return graph.node("Mul", graph.whole(maps), tensor)


def _pads(step: Step, padding: Sequence[Sequence[int]]) -> list[int]:
    if min((size for pair in padding for size in pair), default=0) < 0:
        refuse(step, "negative padding")
    return [int(pair[side]) for side in (0, 1) for pair in padding]


def _conv_general_dilated(graph: Graph, step: Step, maps: Ref, kernel: Ref) -> Tensor:
    params, (ours, theirs, result) = step.params, step.params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(size != 1 for size in params["lhs_dilation"]):
        refuse(step, "groups of the batch, or holes in its input,")
    name = graph.node(
        "Conv",
        graph.transpose(graph.whole(maps), ours),
        graph.transpose(graph.whole(kernel), theirs),
        group=params["feature_group_count"],
        strides=list(params["window_strides"]),
        pads=_pads(step, params["padding"]),
        dilations=list(params["rhs_dilation"]),
    )
    return graph.transpose(name, np.argsort(result))


def _pool(graph: Graph, step: Step, maps: Ref) -> Tensor:
    """Writes pooling of the axes with a window; two others come first."""
    kinds = "window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation"
    windows, strides, padding, *dilations = (step.params[kind] for kind in kinds)
    single = [axis for axis, sizes in enumerate(zip(windows, strides, strict=True)) if sizes == (1, 1)]
    first = single[:1] + single[-1:]
    spatial = [axis for axis in range(len(windows)) if axis not in first]
    if len(single) < 2 or not 1 <= len(spatial) <= 3 or {*dilations[0], *dilations[1]} != {1}:
        refuse(step, f"windows {windows} and dilations {dilations}")
    options: dict[str, Any] = dict(
        kernel_shape=[windows[axis] for axis in spatial], strides=[strides[axis] for axis in spatial]
    )
    options["pads"] = _pads(step, [padding[axis] for axis in spatial])
    order = [*first, *spatial]
    tensor = graph.transpose(graph.whole(maps), order)
    if step.name == "reduce_window_max":
        name = graph.node("MaxPool", tensor, **options)
    else:
        name = graph.node("AveragePool", tensor, count_include_pad=1, **options)
        name = graph.node("Mul", name, np.array(math.prod(windows), maps.aval.dtype))
    return graph.transpose(name, np.argsort(order))


def _dot_general(graph: Graph, step: Step, x: Ref, y: Ref) -> str:
    (contracted, batch), (rank, other) = step.params["dimension_numbers"], (len(x.shape), len(y.shape))
    if (contracted, batch, other) == (((rank - 1,), (0,)), ((), ()), 2):
        return graph.node("MatMul", graph.whole(x), graph.whole(y))
    ours, theirs = list(string.ascii_lowercase[:rank]), list(string.ascii_uppercase[:other])
    for axis, place in zip((*contracted[0], *batch[0]), (*contracted[1], *batch[1]), strict=True):
        theirs[place] = ours[axis]
    free = [letter for letter in ours + theirs if (ours + theirs).count(letter) == 1]
    equation = "".join([*ours, ",", *theirs, "->", *(ours[axis] for axis in batch[0]), *free])
    return graph.node("Einsum", graph.whole(x), graph.whole(y), equation=equation)


def _reduce(graph: Graph, step: Step, x: Ref) -> str:
    axes, tensor, last = list(step.params["axes"]), graph.whole(x), len(x.shape) - 1
    if axes == list(range(1, last)):  # over space: with channels first, as convolutions and pooling leave them
        tensor, axes = graph.transpose(tensor, [0, last, *axes]), list(range(2, last + 1))
    if step.name == "argmax":
        return graph.node("Cast", graph.node("ArgMax", tensor, axis=axes[0], keepdims=0), to=dtype_of(step.outputs[0]))
    kind = "".join(map(str.capitalize, step.name.split("_")))  # reduce_sum: ReduceSum
    return graph.node(kind, tensor, axes, keepdims=0, noop_with_empty_axes=1)


def _concatenate(graph: Graph, step: Step, *parts: Ref) -> str:
    return graph.node("Concat", *map(graph.whole, parts), axis=step.params["dimension"])


def _slice(graph: Graph, step: Step, x: Ref) -> str:
    params, before, after = step.params, x.shape, step.outputs[0].shape
    if step.name == "rev":
        axes = params["dimensions"]
        starts, ends, strides = [-1] * len(axes), [np.iinfo(np.int64).min] * len(axes), [-1] * len(axes)
    else:
        axes = [axis for axis, size in enumerate(before) if size != after[axis]]
        numbers = params["start_indices"], params["limit_indices"], params["strides"] or [1] * len(before)
        starts, ends, strides = ([own[axis] for axis in axes] for own in numbers)
    return graph.node("Slice", graph.whole(x), starts, ends, axes, strides)


def _pad(graph: Graph, step: Step, x: Ref, value: Ref) -> str:
    low, high, holes = zip(*step.params["padding_config"], strict=True)
    if any(holes):
        refuse(step, "holes")
    return graph.node("Pad", graph.whole(x), [*low, *high], graph.whole(value))


def _reshape(graph: Graph, step: Step, x: Ref) -> str:
    sizes = sizes_of(step.outputs[0].shape)
    if sizes.count(-1) > 1:
        refuse(step, "several sizes that are not known")
    return graph.node("Reshape", graph.whole(x), sizes)


def _channels(graph: Graph, step: Step) -> tuple[int, list[int], np.ndarray]:
    """Finds the axis of a gather or a scatter of channels, the others, and the positions, int [n, 1]."""
    (windows, dropped, axes, *batching), shape = step.params["dimension_numbers"], step.inputs[0].shape
    others, positions = [axis for axis in range(len(shape)) if axis not in axes], graph.thin(step.inputs[1]).tensor
    fits = len(axes) == 1 and dropped == axes and list(windows) == others and not any(batching)
    if not fits or isinstance(positions, str) or positions.ndim != 2 or is_of_batch(shape[axes[0]]):
        refuse(step, "other than channels that are known")
    return axes[0], others, positions


def _gather(graph: Graph, step: Step, x: Ref, _: Ref) -> str:
    axis, others, positions = _channels(graph, step)
    return graph.node("Gather", graph.whole(x), positions.ravel(), axis=axis)


def _scatter(graph: Graph, step: Step, wide: Ref, _: Ref, narrow: Ref) -> Tensor:
    """Adds channels into wider maps, or puts them in place of those of a known array; by a product with ones."""
    (axis, others, positions), before = _channels(graph, step), graph.thin(wide).tensor
    ones = (np.arange(wide.shape[axis])[:, None] == positions.ravel()).astype(narrow.aval.dtype)  # [wide, narrow]
    order = [others[0], axis, *others[1:]]
    tensor = graph.transpose(graph.whole(narrow), order)
    if len(order) == 2:
        tensor = graph.node("MatMul", tensor, ones.T)
    else:
        tensor = graph.node("Conv", tensor, np.expand_dims(ones, tuple(range(2, len(order)))))
    tensor = graph.transpose(tensor, np.argsort(order))
    if step.name == "scatter":
        if isinstance(before, str):
            refuse(step, "maps that are not known")
        before = np.where(np.expand_dims(ones.any(1), others), np.zeros((), ones.dtype), before)
        if not before.any():
            return tensor
    return graph.node("Add", before, tensor)


def _one(step: Step) -> np.ndarray:
    return np.ones((), step.outputs[0].aval.dtype)


def _plain(kind: str) -> Callable[..., str]:
    return lambda graph, step, *operands: graph.node(kind, *operands)


_CAPITALISED = """abs add and ceil cos div erf exp floor log min mul neg not or pow round sign sin sqrt sub tanh
xor"""
_PLAIN = {
    **{name: name.capitalize() for name in _CAPITALISED.split()},
    **dict(add_any="Add", copy="Identity", eq="Equal", ge="GreaterOrEqual", gt="Greater", le="LessOrEqual"),
    **dict(logistic="Sigmoid", lt="Less", stop_gradient="Identity"),
}
ELEMENTWISE: dict[str, Callable[..., str]] = {  # of the graph, the step, and operands that broadcast
    **{name: _plain(kind) for name, kind in _PLAIN.items()},
    "max": _max,
    "convert_element_type": lambda graph, step, x: graph.node("Cast", x, to=dtype_of(step.outputs[0])),
    "square": lambda graph, step, x: graph.node("Mul", x, x),
    "integer_pow": lambda graph, step, x: graph.node("Pow", x, _one(step) * step.params["y"]),
    "rsqrt": lambda graph, step, x: graph.node("Reciprocal", graph.node("Sqrt", x)),
    "log1p": lambda graph, step, x: graph.node("Log", graph.node("Add", x, _one(step))),
    "expm1": lambda graph, step, x: graph.node("Sub", graph.node("Exp", x), _one(step)),
    "ne": lambda graph, step, x, y: graph.node("Not", graph.node("Equal", x, y)),
    "clamp": lambda graph, step, low, x, high: graph.node("Min", graph.node("Max", x, low), high),
    "select_n": lambda graph, step, which, x, y: graph.node("Where", which, y, x),
}
OPERATIONS: dict[str, Callable[..., Tensor]] = {  # of the graph, the step, and its inputs
    **dict.fromkeys(["reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax"], _reduce),
    **dict.fromkeys(["reshape", "squeeze", "expand_dims"], _reshape),
    **dict.fromkeys(["reduce_window_max", "reduce_window_sum"], _pool),
    **dict.fromkeys(["scatter", "scatter-add"], _scatter),
    **dict.fromkeys(["slice", "rev"], _slice),
    **dict(gate=_gate, conv_general_dilated=_conv_general_dilated, dot_general=_dot_general, gather=_gather),
    **dict(concatenate=_concatenate, pad=_pad),
    "transpose": lambda graph, step, x: graph.transpose(graph.whole(x), step.params["permutation"]),
}
