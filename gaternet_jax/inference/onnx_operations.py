"""How each operation of a flat program is written as ONNX (onnx_writer.py)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gaternet_jax.gating.program import Step
from gaternet_jax.inference.onnx_graph import Graph, Placed, Stored, dtype_of, is_of_batch, natural, sizes_of

_CAPITALISED = """abs add and ceil cos div erf exp floor log max min mul neg not or pow round sign sin sqrt sub tanh
xor"""
_PLAIN = {  # elementwise, of the same meaning
    **{name: name.capitalize() for name in _CAPITALISED.split()},
    **dict(add_any="Add", copy="Identity", eq="Equal", ge="GreaterOrEqual", gt="Greater", le="LessOrEqual"),
    **dict(logistic="Sigmoid", lt="Less", stop_gradient="Identity"),
}
_REDUCTIONS = dict(reduce_sum="ReduceSum", reduce_max="ReduceMax", reduce_min="ReduceMin", reduce_prod="ReduceProd")


def _broadcast(graph: Graph, step: Step) -> Placed:
    return Placed(step.inputs[0], tuple(step.params["broadcast_dimensions"]))


def _elementwise(graph: Graph, step: Step) -> Stored:
    output = step.outputs[0]
    orders = [graph.order(ref) for ref in step.inputs if len(ref.shape) == len(output.shape)]
    order = next((order for order in orders if order), natural(output))
    zeros = [array is not None and array.shape == () and array == 0 for array in map(graph.known, step.inputs)]
    if step.name == "max" and any(zeros) and np.issubdtype(output.aval.dtype, np.floating):
        return Stored(graph.node("Relu", [graph.read(step.inputs[zeros.index(False)], order)]), order)
    names = [graph.read(ref, order if ref.shape else ()) for ref in step.inputs]
    composed = _COMPOSED.get(step.name)
    return Stored(composed(graph, step, names) if composed else graph.node(_PLAIN[step.name], names), order)


def write_gate(graph: Graph, step: Step) -> Stored:
    """Writes the product of maps and gates [batch, channels]."""
    maps, gates = step.inputs
    order, last = graph.order(maps) or natural(maps), len(maps.shape) - 1
    name = graph.read(gates, tuple(sorted((0, 1), key=lambda axis: order.index(last * axis))), full=True)
    name = graph.unsqueeze(name, [place for place, axis in enumerate(order) if axis not in (0, last)])
    name = name if maps.aval.dtype == gates.aval.dtype else graph.node("Cast", [name], to=dtype_of(maps))
    return Stored(graph.node("Mul", [graph.read(maps, order), name]), order)


def _conv_general_dilated(graph: Graph, step: Step) -> Stored:
    params, specs = step.params, step.params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(size != 1 for size in params["lhs_dilation"]):
        graph.refuse(step, "groups of the batch, or holes in its input,")
    low, high = zip(*params["padding"], strict=True) if params["padding"] else ((), ())
    if min((*low, *high), default=0) < 0:
        graph.refuse(step, "negative padding")
    name = graph.node(
        "Conv",
        [graph.read(ref, tuple(spec), full=True) for ref, spec in zip(step.inputs, specs, strict=False)],
        group=params["feature_group_count"],
        strides=list(params["window_strides"]),
        pads=[*low, *high],
        dilations=list(params["rhs_dilation"]),
    )
    return Stored(name, tuple(specs.out_spec))


def _dot_general(graph: Graph, step: Step) -> Stored:
    (contracted, batch), (x, y) = step.params["dimension_numbers"], step.inputs
    names = [graph.read(ref, natural(ref), full=True) for ref in step.inputs]
    order = natural(step.outputs[0])
    if batch == ((), ()) and contracted == ((len(x.shape) - 1,), (0,)) and len(y.shape) == 2:
        return Stored(graph.node("MatMul", names), order)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    ours = {axis: next(letters) for axis in range(len(x.shape))}
    shared = dict(zip((*contracted[1], *batch[1]), (*contracted[0], *batch[0]), strict=True))
    theirs = {axis: ours[shared[axis]] if axis in shared else next(letters) for axis in range(len(y.shape))}
    free = [ours[axis] for axis in ours if axis not in shared.values()]
    free += [theirs[axis] for axis in theirs if axis not in shared]
    operands, result = ("".join(own.values()) for own in (ours, theirs)), [ours[axis] for axis in batch[0]] + free
    return Stored(graph.node("Einsum", names, equation=f"{','.join(operands)}->{''.join(result)}"), order)


def _stored(graph: Graph, step: Step) -> Stored:
    """Reads the first operand, in whatever order it is stored."""
    x = step.inputs[0]
    order = graph.order(x) or natural(x)
    return Stored(graph.read(x, order, full=True), order)


def _reduce(graph: Graph, step: Step) -> Stored:
    (name, order), axes = _stored(graph, step), step.params["axes"]
    if any(is_of_batch(step.inputs[0].shape[axis]) for axis in axes):
        graph.refuse(step, "the images of a batch together")
    places, left = [order.index(axis) for axis in axes], [axis for axis in order if axis not in axes]
    if step.name == "argmax":
        name = graph.node("ArgMax", [name], axis=places[0], keepdims=0)
        name = graph.node("Cast", [name], to=dtype_of(step.outputs[0]))
    else:
        name = graph.node(_REDUCTIONS[step.name], [name, graph.integers(*places)], keepdims=0)
    return Stored(name, tuple(sorted(left).index(axis) for axis in left))


def _pool(graph: Graph, step: Step) -> Stored:
    """Writes pooling of the axes with a window; two others come first."""
    params, x = step.params, step.inputs[0]
    windows = params["window_dimensions"]
    if any(size != 1 for size in (*params["base_dilation"], *params["window_dilation"])):
        graph.refuse(step, "dilation")
    single = [axis for axis, size in enumerate(windows) if size == params["window_strides"][axis] == 1]
    order = graph.order(x)
    if order is None or any(axis not in single for axis in order[:2]):
        first = single[:1] + single[-1:]
        order = (*first, *(axis for axis in range(len(windows)) if axis not in first))
    if len(single) < 2 or not 3 <= len(order) <= 5:
        graph.refuse(step, f"windows {tuple(windows)}")
    low, high = zip(*(params["padding"][axis] for axis in order[2:]), strict=True)
    shape, strides = ([params[kind][axis] for axis in order[2:]] for kind in ("window_dimensions", "window_strides"))
    options: dict[str, Any] = dict(kernel_shape=shape, strides=strides, pads=[*low, *high])
    maps = graph.read(x, order, full=True)
    if step.name == "reduce_window_max":
        return Stored(graph.node("MaxPool", [maps], **options), order)
    mean = graph.node("AveragePool", [maps], count_include_pad=1, **options)
    size = graph.constant(np.array(math.prod(windows), step.outputs[0].aval.dtype))
    return Stored(graph.node("Mul", [mean, size]), order)


def _concatenate(graph: Graph, step: Step) -> Stored:
    orders = [graph.order(ref) for ref in step.inputs]
    order = next((order for order in orders if order), natural(step.outputs[0]))
    names = [graph.read(ref, order, full=True) for ref in step.inputs]
    return Stored(graph.node("Concat", names, axis=order.index(step.params["dimension"])), order)


def _slice(graph: Graph, step: Step) -> Stored:
    params, shape = step.params, step.inputs[0].shape
    cut = [axis for axis, size in enumerate(shape) if size != step.outputs[0].shape[axis]]
    numbers = params["start_indices"], params["limit_indices"], params["strides"] or (1,) * len(shape)
    return _sliced(graph, step, cut, *([own[axis] for axis in cut] for own in numbers))


def _rev(graph: Graph, step: Step) -> Stored:
    axes = step.params["dimensions"]
    last, before_first = [-1] * len(axes), [np.iinfo(np.int64).min] * len(axes)
    return _sliced(graph, step, axes, last, before_first, last)


def _sliced(
    graph: Graph, step: Step, axes: Sequence[int], starts: list[int], ends: list[int], strides: list[int]
) -> Stored:
    name, order = _stored(graph, step)
    numbers = starts, ends, [order.index(axis) for axis in axes], strides
    return Stored(graph.node("Slice", [name, *(graph.integers(*own) for own in numbers)]), order)


def _pad(graph: Graph, step: Step) -> Stored:
    (name, order), config = _stored(graph, step), step.params["padding_config"]
    if any(interior for *_, interior in config):
        graph.refuse(step, "holes")
    pads = graph.integers(*(int(config[axis][side]) for side in (0, 1) for axis in order))
    return Stored(graph.node("Pad", [name, pads, graph.read(step.inputs[1], ())]), order)


def _transpose(graph: Graph, step: Step) -> Stored:
    name, order = _stored(graph, step)
    return Stored(name, tuple(step.params["permutation"].index(axis) for axis in order))


def _reshape(graph: Graph, step: Step) -> Stored:
    x, output = step.inputs[0], step.outputs[0]
    sizes = sizes_of(output.shape)
    if sizes.count(-1) > 1:
        graph.refuse(step, "several sizes that are not known")
    name = graph.node("Reshape", [graph.read(x, natural(x), full=True), graph.integers(*sizes)])
    return Stored(name, natural(output))


def _channels(graph: Graph, step: Step) -> tuple[int, np.ndarray]:
    """Finds the axis and the positions of a gather or a scatter of channels."""
    numbers, positions = step.params["dimension_numbers"], graph.known(step.inputs[1])
    if step.name == "gather":
        axes, dropped, windows = numbers.start_index_map, numbers.collapsed_slice_dims, numbers.offset_dims
    else:
        axes, dropped = numbers.scatter_dims_to_operand_dims, numbers.inserted_window_dims
        windows = numbers.update_window_dims
    others = tuple(axis for axis in range(len(step.outputs[0].shape)) if axis not in axes)
    if len(axes) != 1 or dropped != axes or windows != others or positions is None or positions.ndim != 2:
        return graph.refuse(step, "other than channels that are known")
    return axes[0], positions.reshape(-1).astype(np.int64)


def _gather(graph: Graph, step: Step) -> Stored:
    (axis, positions), (name, order) = _channels(graph, step), _stored(graph, step)
    return Stored(graph.node("Gather", [name, graph.integers(*positions.tolist())], axis=order.index(axis)), order)


def _scatter(graph: Graph, step: Step) -> Stored:
    """Adds channels into wider maps, or puts them in place of those of a known array; by a product with ones."""
    (axis, positions), (wide, _, narrow) = _channels(graph, step), step.inputs
    size, known, order = wide.shape[axis], graph.known(wide), graph.order(narrow) or natural(narrow)
    ones = (positions[:, None] == np.arange(size)).astype(narrow.aval.dtype)
    if len(order) == 4 and order[1] == axis:
        name = graph.node("Conv", [graph.read(narrow, order), graph.constant(ones.T[:, :, None, None])])
    else:
        order = (*(other for other in order if other != axis), axis)
        name = graph.node("MatMul", [graph.read(narrow, order, full=True), graph.constant(ones)])
    if step.name == "scatter-add":
        return Stored(graph.node("Add", [graph.read(wide, order), name]), order)
    if known is None:
        return graph.refuse(step, "maps that are not known")
    kept = ones.any(0).reshape([-1 if other == axis else 1 for other in range(len(order))])
    others = np.where(kept, np.zeros((), step.outputs[0].aval.dtype), known)
    if not others.any():
        return Stored(name, order)
    return Stored(graph.node("Add", [name, graph.constant(others.transpose(order))]), order)


def _one(graph: Graph, step: Step) -> str:
    return graph.constant(np.ones((), step.outputs[0].aval.dtype))


_COMPOSED: dict[str, Callable[[Graph, Step, list[str]], str]] = {
    "convert_element_type": lambda g, s, x: g.node("Cast", x, to=dtype_of(s.outputs[0])),
    "square": lambda g, s, x: g.node("Mul", [x[0], x[0]]),
    "integer_pow": lambda g, s, x: g.node("Pow", [x[0], g.constant(np.array(s.params["y"], s.outputs[0].aval.dtype))]),
    "rsqrt": lambda g, s, x: g.node("Reciprocal", [g.node("Sqrt", x)]),
    "log1p": lambda g, s, x: g.node("Log", [g.node("Add", [x[0], _one(g, s)])]),
    "expm1": lambda g, s, x: g.node("Sub", [g.node("Exp", x), _one(g, s)]),
    "ne": lambda g, s, x: g.node("Not", [g.node("Equal", x)]),
    "clamp": lambda g, s, x: g.node("Min", [g.node("Max", [x[1], x[0]]), x[2]]),
    "select_n": lambda g, s, x: g.node("Where", [x[0], x[2], x[1]]),
}

OPERATIONS: dict[str, Callable[[Graph, Step], Stored | Placed]] = {
    **dict.fromkeys([*_PLAIN, *_COMPOSED], _elementwise),
    **dict.fromkeys([*_REDUCTIONS, "argmax"], _reduce),
    **dict.fromkeys(["reshape", "squeeze", "expand_dims"], _reshape),
    **dict.fromkeys(["reduce_window_max", "reduce_window_sum"], _pool),
    **dict.fromkeys(["scatter", "scatter-add"], _scatter),
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _conv_general_dilated,
    "dot_general": _dot_general,
    "concatenate": _concatenate,
    "slice": _slice,
    "rev": _rev,
    "pad": _pad,
    "transpose": _transpose,
    "gather": _gather,
}
