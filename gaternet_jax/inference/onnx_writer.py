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
from typing import Any, NoReturn

import jax
import numpy as np
from onnx import checker, helper

from gaternet_jax.errors import UserError
from gaternet_jax.gating.program import Ref, Step, flatten
from gaternet_jax.gating.shapes import spread
from gaternet_jax.inference.onnx_graph import BATCH, Graph, Tensor, Value, dtype_of, is_of_batch, known, sizes_of

OPSET, IR_VERSION = 18, 10  # ONNX Runtime 1.18 and later


def write_onnx(
    function: Callable[..., Any], inputs: dict[str, jax.ShapeDtypeStruct], outputs: Sequence[str], **metadata: str
) -> bytes:
    """Writes a function of arrays as a serialised ONNX model.

    Args:
        function: of the inputs, in order; its result has as many leaves as there are outputs.
        inputs: name, shape and type of each. The first axis is the batch, whose size does not matter.
        outputs: names of the leaves. No two names may be the same, nor begin with "/", as those of the nodes do.
        **metadata: entries of the model.

    Raises:
        UserError: an operation that is not written, and the line of the network; names that cannot be, or too few.

    Example:
        >>> images = jax.ShapeDtypeStruct((1, 8), np.float32)
        >>> model = gx.write_onnx(lambda images: jax.nn.relu(images), {"images": images}, ["maps"])
        >>> isinstance(model, bytes)  # what a .onnx file holds
        True
    """
    batches = (jax.ShapeDtypeStruct((BATCH, *given.shape[1:]), given.dtype) for given in inputs.values())
    program = flatten(function, *batches)
    names, count = [*inputs, *outputs], len(program.outputs)
    if len({*names}) < len(names) or any(name.startswith("/") for name in names) or len(outputs) != count:
        raise UserError(f"{names} must be different names, none beginning with '/', the last {count} for outputs")
    ends = [dict(zip(*end, strict=True)) for end in ((inputs, program.inputs), (outputs, program.outputs))]
    graph = Graph(ends[0], program.constants)
    for step in program.steps:
        _add(graph, step)
    for name, ref in ends[1].items():
        graph.node("Identity", graph.whole(ref), output=name)
    entries, results = (
        [helper.make_tensor_value_info(name, dtype_of(ref), sizes_of(ref.shape, "batch")) for name, ref in end.items()]
        for end in ends
    )
    written = helper.make_graph(graph.nodes, "function", entries, results, list(graph.initializers.values()))
    model = helper.make_model(written, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(model, metadata)
    checker.check_model(model)
    return model.SerializeToString()


def _add(graph: Graph, step: Step) -> None:
    """Writes an operation, or computes it where it does not depend on the inputs."""
    name, output = "gate" if step.site is not None else step.name, step.outputs[0]
    if any(ref.literal is not None and is_of_batch(ref.literal) for ref in step.inputs):
        _refuse(step, "a number that depends on the size of the batch")
    *before, after = (sum(map(is_of_batch, ref.shape)) for ref in (*step.inputs, output))
    if after > 1 or after < max(before, default=0):
        _refuse(step, "the images of a batch together")
    values = [graph.thin(ref) for ref in step.inputs]
    tensors, shapes = [value.tensor for value in values], [value.shape for value in values]
    if name == "broadcast_in_dim":
        shape = tuple(spread(step, shapes[0]))
        graph.values[output] = Value(graph.reshape(tensors[0], shape), shape)
    elif not after and not any(isinstance(tensor, str) for tensor in tensors):
        with jax.ensure_compile_time_eval():
            results = step.bind([graph.whole(ref) for ref in step.inputs])
        graph.values.update(zip(step.outputs, map(known, results), strict=True))
    elif name in ELEMENTWISE:
        write = ELEMENTWISE[name]
        tensor = graph.node(write, *tensors) if isinstance(write, str) else write(graph, step, *tensors)
        graph.values[output] = Value(tensor, np.broadcast_shapes(*shapes))
    elif name in OPERATIONS:
        graph.values[output] = Value(OPERATIONS[name](graph, step, *step.inputs), output.shape)
    else:
        _refuse(step)


def _refuse(step: Step, what: str = "") -> NoReturn:
    """Raises a UserError that says what is not written."""
    raise UserError(f"{step}{what and f' with {what}'} is not written as ONNX; use --format=stablehlo")


def _max(graph: Graph, step: Step, *operands: Tensor) -> str:
    for zero, other in (operands, operands[::-1]):
        if isinstance(zero, np.ndarray) and zero.dtype.kind == "f" and zero.size == 1 and zero == 0:
            return graph.node("Relu", other)
    return graph.node("Max", *operands)


def _gate(graph: Graph, step: Step, maps: Ref, gates: Ref) -> str:
    spatial = range(2, len(maps.shape))
    tensor = graph.reshape(graph.whole(gates), [*gates.shape, *(1 for _ in spatial)])
    tensor = tensor if maps.aval.dtype == gates.aval.dtype else graph.node("Cast", tensor, to=dtype_of(maps))
    return graph.node("Mul", graph.whole(maps), graph.transpose(tensor, [0, *spatial, 1]))


def _pads(step: Step, padding: Sequence[Sequence[int]]) -> list[int]:
    if min((size for pair in padding for size in pair), default=0) < 0:
        _refuse(step, "negative padding")
    return [pair[side] for side in (0, 1) for pair in padding]


def _conv_general_dilated(graph: Graph, step: Step, *operands: Ref) -> Tensor:
    params, orders = step.params, step.params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(size != 1 for size in params["lhs_dilation"]):
        _refuse(step, "groups of the batch, or holes in its input,")
    tensors = (graph.transpose(graph.whole(ref), order) for ref, order in zip(operands, orders, strict=False))
    options = dict(group=params["feature_group_count"], pads=_pads(step, params["padding"]))
    options |= dict(strides=params["window_strides"], dilations=params["rhs_dilation"])
    return graph.transpose(graph.node("Conv", *tensors, **options), np.argsort(orders.out_spec))


def _pool(graph: Graph, step: Step, maps: Ref) -> Tensor:
    """Writes pooling of the axes with a window; two others come first."""
    params, axes = step.params, range(len(maps.shape))
    single = [axis for axis in axes if params["window_dimensions"][axis] == params["window_strides"][axis] == 1]
    order = sorted(axes, key=lambda axis: axis not in single[:1] + single[-1:])
    kinds = "window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation"
    shape, strides, padding, *dilations = ([params[kind][axis] for axis in order[2:]] for kind in kinds)
    if len(single) < 2 or not 3 <= len(order) <= 5 or any(size != 1 for sizes in dilations for size in sizes):
        _refuse(step, f"windows {params['window_dimensions']}, dilations {dilations}")
    tensor = graph.transpose(graph.whole(maps), order)
    options: dict[str, Any] = dict(kernel_shape=shape, strides=strides, pads=_pads(step, padding))
    if step.name == "reduce_window_max":
        tensor = graph.node("MaxPool", tensor, **options)
    else:
        tensor = graph.node("AveragePool", tensor, count_include_pad=1, **options)
        tensor = graph.node("Mul", tensor, np.array(math.prod(shape), maps.aval.dtype))
    return graph.transpose(tensor, np.argsort(order))


def _dot_general(graph: Graph, step: Step, x: Ref, y: Ref) -> str:
    (contracted, batch), rank = step.params["dimension_numbers"], len(x.shape)
    if not batch[0] and contracted == ((rank - 1,), (0,)) and len(y.shape) == 2:
        return graph.node("MatMul", graph.whole(x), graph.whole(y))
    ours, theirs = list(string.ascii_lowercase[:rank]), list(string.ascii_uppercase[: len(y.shape)])
    for axis, other in zip((*batch[0], *contracted[0]), (*batch[1], *contracted[1]), strict=True):
        theirs[other] = ours[axis]
    result = [ours[axis] for axis in batch[0]] + [axis for axis in ours + theirs if (ours + theirs).count(axis) == 1]
    equation = f"{''.join(ours)},{''.join(theirs)}->{''.join(result)}"
    return graph.node("Einsum", graph.whole(x), graph.whole(y), equation=equation)


def _reduce(graph: Graph, step: Step, x: Ref) -> str:
    axes, tensor, last = list(step.params["axes"]), graph.whole(x), len(x.shape) - 1
    if axes == list(range(1, last)):  # over space: with channels first, as convolutions and pooling leave them
        tensor, axes = graph.transpose(tensor, [0, last, *axes]), list(range(2, last + 1))
    if step.name == "argmax":
        return graph.node("Cast", graph.node("ArgMax", tensor, axis=axes[0], keepdims=0), to=dtype_of(step.outputs[0]))
    kind = "".join(map(str.capitalize, step.name.split("_")))  # reduce_sum: ReduceSum
    return graph.node(kind, tensor, axes, keepdims=0, noop_with_empty_axes=1)


def _slice(graph: Graph, step: Step, x: Ref) -> str:
    params, after = step.params, step.outputs[0].shape
    if step.name == "rev":
        axes = params["dimensions"]
        starts, limits, strides = [-1] * len(axes), [np.iinfo(np.int64).min] * len(axes), [-1] * len(axes)
    else:
        axes = [axis for axis, size in enumerate(x.shape) if size != after[axis]]
        numbers = params["start_indices"], params["limit_indices"], params["strides"] or [1] * len(after)
        starts, limits, strides = ([own[axis] for axis in axes] for own in numbers)
    return graph.node("Slice", graph.whole(x), starts, limits, axes, strides)


def _pad(graph: Graph, step: Step, x: Ref, value: Ref) -> str:
    low, high, holes = zip(*step.params["padding_config"], strict=True)
    if any(holes):
        _refuse(step, "holes")
    return graph.node("Pad", graph.whole(x), [*low, *high], graph.whole(value))


def _channels(graph: Graph, step: Step) -> tuple[list[int], np.ndarray]:
    """Finds an order of axes with those of a gather or a scatter second, and the positions, int [n, 1]."""
    (windows, dropped, axes, *batching), shape = step.params["dimension_numbers"], step.inputs[0].shape
    others, positions = [axis for axis in range(len(shape)) if axis not in axes], graph.thin(step.inputs[1]).tensor
    fits = len(axes) == 1 and dropped == axes and list(windows) == others and not any(batching)
    if not fits or isinstance(positions, str) or positions.ndim != 2 or is_of_batch(shape[axes[0]]):
        _refuse(step, "other than channels that are known")
    return [others[0], *axes, *others[1:]], positions


def _gather(graph: Graph, step: Step, x: Ref, index: Ref) -> str:
    order, positions = _channels(graph, step)
    return graph.node("Gather", graph.whole(x), positions[:, 0], axis=order[1])


def _scatter(graph: Graph, step: Step, wide: Ref, index: Ref, narrow: Ref) -> Tensor:
    """Adds channels into wider maps, or puts them in place of those of a known array; by a product with ones."""
    (order, positions), before = _channels(graph, step), graph.thin(wide).tensor
    ones = (positions == np.arange(wide.shape[order[1]])).astype(narrow.aval.dtype)  # [narrow, wide]
    tensor = graph.transpose(graph.whole(narrow), order)
    if len(order) == 2:
        tensor = graph.node("MatMul", tensor, ones)
    else:
        tensor = graph.node("Conv", tensor, np.expand_dims(ones.T, tuple(range(2, len(order)))))
    tensor = graph.transpose(tensor, np.argsort(order))
    if step.name == "scatter":
        if isinstance(before, str):
            _refuse(step, "maps that are not known")
        before = np.where(np.expand_dims(ones.any(0), (order[0], *order[2:])), 0, before)
        if not before.any():
            return tensor
    return graph.node("Add", before, tensor)


def _one(step: Step) -> np.ndarray:
    return np.ones((), step.outputs[0].aval.dtype)


_CAPITALISED = """abs add and ceil cos div erf exp floor log min mul neg not or pow round sign sin sqrt sub tanh
xor"""
ELEMENTWISE: dict[str, Any] = {  # nodes, or functions of the graph, the step, and operands that broadcast
    **{name: name.capitalize() for name in _CAPITALISED.split()},
    **dict(add_any="Add", copy="Identity", eq="Equal", ge="GreaterOrEqual", gt="Greater", le="LessOrEqual"),
    **dict(logistic="Sigmoid", lt="Less", stop_gradient="Identity"),
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
    **dict.fromkeys(["reduce_window_max", "reduce_window_sum"], _pool),
    **dict.fromkeys(["scatter", "scatter-add"], _scatter),
    **dict(gate=_gate, conv_general_dilated=_conv_general_dilated, dot_general=_dot_general),
    **dict(slice=_slice, rev=_slice, pad=_pad, gather=_gather),
    **dict.fromkeys(
        ["reshape", "squeeze", "expand_dims"],
        lambda graph, step, x: graph.reshape(graph.whole(x), step.outputs[0].shape),
    ),
    "transpose": lambda graph, step, x: graph.transpose(graph.whole(x), step.params["permutation"]),
    "concatenate": lambda graph, step, *x: graph.node("Concat", *map(graph.whole, x), axis=step.params["dimension"]),
}
