"""How each operation of a flat program is written as ONNX (onnx_writer.py)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gaternet_jax.gating.program import Ref, Step
from gaternet_jax.inference.onnx_graph import Graph, Order, Placed, Stored, dtype_of, is_of_batch, natural, sizes_of

_PLAIN = {  # elementwise, of the same meaning
    **dict(add="Add", add_any="Add", sub="Sub", mul="Mul", div="Div", neg="Neg", abs="Abs", sign="Sign", pow="Pow"),
    **dict(max="Max", min="Min", exp="Exp", log="Log", tanh="Tanh", logistic="Sigmoid", sqrt="Sqrt", erf="Erf"),
    **dict(floor="Floor", ceil="Ceil", sin="Sin", cos="Cos", gt="Greater", lt="Less", ge="GreaterOrEqual"),
    **dict(le="LessOrEqual", eq="Equal", stop_gradient="Identity", copy="Identity"),
    "and": "And",
    "or": "Or",
    "not": "Not",
    "xor": "Xor",
}
_REDUCTIONS = dict(reduce_sum="ReduceSum", reduce_max="ReduceMax", reduce_min="ReduceMin", reduce_prod="ReduceProd")


def _broadcast(graph: Graph, step: Step) -> Placed:
    return Placed(step.inputs[0], tuple(step.params["broadcast_dimensions"]))


def _elementwise(graph: Graph, step: Step) -> Stored:
    output = step.outputs[0]
    orders = [graph.order(ref) for ref in step.inputs if len(ref.shape) == len(output.shape)]
    order = next((order for order in orders if order), natural(output))
    names = [graph.read(ref, order if ref.shape else ()) for ref in step.inputs]
    zeros = [array is not None and array.shape == () and array == 0 for array in map(graph.known, step.inputs)]
    if step.name == "max" and any(zeros) and np.issubdtype(output.aval.dtype, np.floating):
        name = graph.node("Relu", [names[zeros.index(False)]])
    elif step.name in _PLAIN:
        name = graph.node(_PLAIN[step.name], names)
    else:
        name = _COMPOSED[step.name](graph, step, names)
    return Stored(name, order)


def write_gate(graph: Graph, step: Step) -> Stored:
    """Maps times gates [batch, channels]."""
    maps, gates = step.inputs
    order, last = graph.order(maps) or natural(maps), len(maps.shape) - 1
    name = graph.read(gates, tuple(sorted((0, 1), key=lambda axis: order.index(last * axis))), full=True)
    others = [place for place, axis in enumerate(order) if axis not in (0, last)]
    name = graph.node("Unsqueeze", [name, graph.integers(*others)]) if others else name
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
    letters = [[""] * len(ref.shape) for ref in step.inputs]
    fresh = iter("abcdefghijklmnopqrstuvwxyz")
    result = []
    for pairs, kept in ((batch, True), (contracted, False)):
        for one, two in zip(*pairs, strict=True):
            letters[0][one] = letters[1][two] = next(fresh)
            result += [letters[0][one]] if kept else []
    for own in letters:
        free = [axis for axis, letter in enumerate(own) if not letter]
        for axis in free:
            own[axis] = next(fresh)
            result.append(own[axis])
    equation = f"{''.join(letters[0])},{''.join(letters[1])}->{''.join(result)}"
    return Stored(graph.node("Einsum", names, equation=equation), order)


def _stored(graph: Graph, step: Step) -> Stored:
    """The first operand, in whatever order it is stored."""
    x = step.inputs[0]
    order = graph.order(x) or natural(x)
    return Stored(graph.read(x, order, full=True), order)


def _refuse_batch(graph: Graph, step: Step) -> None:
    if any(is_of_batch(step.inputs[0].shape[axis]) for axis in step.params["axes"]):
        graph.refuse(step, "the images of a batch together")


def _without(order: Order, axes: Sequence[int]) -> Order:
    left = sorted(axis for axis in order if axis not in axes)
    return tuple(left.index(axis) for axis in order if axis not in axes)


def _reduce(graph: Graph, step: Step) -> Stored:
    _refuse_batch(graph, step)
    (name, order), axes = _stored(graph, step), step.params["axes"]
    places = graph.integers(*(order.index(axis) for axis in axes))
    return Stored(graph.node(_REDUCTIONS[step.name], [name, places], keepdims=0), _without(order, axes))


def _argmax(graph: Graph, step: Step) -> Stored:
    _refuse_batch(graph, step)
    (name, order), (axis,) = _stored(graph, step), step.params["axes"]
    name = graph.node("ArgMax", [name], axis=order.index(axis), keepdims=0)
    return Stored(graph.node("Cast", [name], to=dtype_of(step.outputs[0])), _without(order, [axis]))


def _pool(graph: Graph, step: Step, kind: str, **attributes: Any) -> Stored:
    """Pooling of the axes with a window; two others come first."""
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
    strides = [params["window_strides"][axis] for axis in order[2:]]
    shape = [windows[axis] for axis in order[2:]]
    operands = [graph.read(x, order, full=True)]
    name = graph.node(kind, operands, kernel_shape=shape, strides=strides, pads=[*low, *high], **attributes)
    return Stored(name, order)


def _reduce_window_max(graph: Graph, step: Step) -> Stored:
    return _pool(graph, step, "MaxPool")


def _reduce_window_sum(graph: Graph, step: Step) -> Stored:
    name, order = _pool(graph, step, "AveragePool", count_include_pad=1)
    size = np.array(math.prod(step.params["window_dimensions"]), step.outputs[0].aval.dtype)
    return Stored(graph.node("Mul", [name, graph.constant(size)]), order)


def _concatenate(graph: Graph, step: Step) -> Stored:
    orders = [graph.order(ref) for ref in step.inputs]
    order = next((order for order in orders if order), natural(step.outputs[0]))
    names = [graph.read(ref, order, full=True) for ref in step.inputs]
    return Stored(graph.node("Concat", names, axis=order.index(step.params["dimension"])), order)


def _slice(graph: Graph, step: Step) -> Stored:
    (name, order), params, shape = _stored(graph, step), step.params, step.inputs[0].shape
    cut = [axis for axis, size in enumerate(shape) if size != step.outputs[0].shape[axis]]
    strides = params["strides"] or (1,) * len(shape)
    numbers = [
        [params["start_indices"][axis] for axis in cut],
        [params["limit_indices"][axis] for axis in cut],
        [order.index(axis) for axis in cut],
        [strides[axis] for axis in cut],
    ]
    return Stored(graph.node("Slice", [name, *(graph.integers(*own) for own in numbers)]), order)


def _rev(graph: Graph, step: Step) -> Stored:
    (name, order), axes = _stored(graph, step), step.params["dimensions"]
    last, first, places = (
        [-1] * len(axes),
        [np.iinfo(np.int64).min] * len(axes),
        [order.index(axis) for axis in axes],
    )
    numbers = (graph.integers(*own) for own in (last, first, places, last))
    return Stored(graph.node("Slice", [name, *numbers]), order)


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
    return Stored(
        graph.node("Reshape", [graph.read(x, natural(x), full=True), graph.integers(*sizes)]), natural(output)
    )


def _channels(graph: Graph, step: Step) -> tuple[int, np.ndarray]:
    """The axis and the positions of a gather or a scatter of channels."""
    numbers, positions = step.params["dimension_numbers"], graph.known(step.inputs[1])
    scatter = hasattr(numbers, "inserted_window_dims")
    axes = numbers.scatter_dims_to_operand_dims if scatter else numbers.start_index_map
    dropped = numbers.inserted_window_dims if scatter else numbers.collapsed_slice_dims
    windows = numbers.update_window_dims if scatter else numbers.offset_dims
    narrow = step.inputs[2] if scatter else step.outputs[0]
    others = tuple(axis for axis in range(len(narrow.shape)) if axis not in axes)
    if len(axes) != 1 or dropped != axes or windows != others or positions is None or positions.ndim != 2:
        graph.refuse(step, "other than channels that are known")
    assert positions is not None
    return axes[0], positions.reshape(-1).astype(np.int64)


def _gather(graph: Graph, step: Step) -> Stored:
    (axis, positions), (name, order) = _channels(graph, step), _stored(graph, step)
    return Stored(graph.node("Gather", [name, graph.integers(*positions.tolist())], axis=order.index(axis)), order)


def _scatter_add(graph: Graph, step: Step) -> Stored:
    """Adds channels into wider maps, by a product with ones."""
    (axis, positions), wide, narrow = _channels(graph, step), step.inputs[0], step.inputs[2]
    size = wide.shape[axis]
    spread = _spread(graph, narrow, axis, positions, size)
    return Stored(graph.node("Add", [graph.read(wide, spread.order), spread.name]), spread.order)


def _scatter(graph: Graph, step: Step) -> Stored:
    """Channels in place of those of a wider array that is known."""
    (axis, positions), wide = _channels(graph, step), graph.known(step.inputs[0])
    if wide is None:
        return graph.refuse(step, "maps that are not known")
    size = step.inputs[0].shape[axis]
    spread = _spread(graph, step.inputs[2], axis, positions, size)
    kept = np.isin(np.arange(size), positions).reshape([-1 if a == axis else 1 for a in range(len(spread.order))])
    others = np.where(kept, np.zeros((), step.outputs[0].aval.dtype), wide)
    return Stored(graph.node("Add", [spread.name, graph.constant(others.transpose(spread.order))]), spread.order)


def _spread(graph: Graph, narrow: Ref, axis: int, positions: np.ndarray, size: int) -> Stored:
    ones = np.zeros((len(positions), size), narrow.aval.dtype)
    ones[np.arange(len(positions)), positions] = 1
    order = graph.order(narrow) or natural(narrow)
    if len(order) == 4 and order[1] == axis:
        return Stored(graph.node("Conv", [graph.read(narrow, order), graph.constant(ones.T[:, :, None, None])]), order)
    order = (*(other for other in order if other != axis), axis)
    return Stored(graph.node("MatMul", [graph.read(narrow, order, full=True), graph.constant(ones)]), order)


def _cast(graph: Graph, step: Step, names: list[str]) -> str:
    return graph.node("Cast", names, to=dtype_of(step.outputs[0]))


def _one(graph: Graph, step: Step) -> str:
    return graph.constant(np.ones((), step.outputs[0].aval.dtype))


_COMPOSED: dict[str, Callable[[Graph, Step, list[str]], str]] = {
    "convert_element_type": _cast,
    "square": lambda g, s, x: g.node("Mul", [x[0], x[0]]),
    "integer_pow": lambda g, s, x: g.node("Pow", [x[0], g.constant(np.array(s.params["y"], s.outputs[0].aval.dtype))]),
    "rsqrt": lambda g, s, x: g.node("Reciprocal", [g.node("Sqrt", x)]),
    "log1p": lambda g, s, x: g.node("Log", [g.node("Add", [x[0], _one(g, s)])]),
    "expm1": lambda g, s, x: g.node("Sub", [g.node("Exp", x), _one(g, s)]),
    "ne": lambda g, s, x: g.node("Not", [g.node("Equal", x)]),
    "round": lambda g, s, x: g.node("Round", x),
    "clamp": lambda g, s, x: g.node("Min", [g.node("Max", [x[1], x[0]]), x[2]]),
    "select_n": lambda g, s, x: g.node("Where", [x[0], x[2], x[1]]),
}

OPERATIONS: dict[str, Callable[[Graph, Step], Stored | Placed]] = {
    **dict.fromkeys([*_PLAIN, *_COMPOSED], _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(["reshape", "squeeze", "expand_dims"], _reshape),
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _conv_general_dilated,
    "dot_general": _dot_general,
    "argmax": _argmax,
    "reduce_window_max": _reduce_window_max,
    "reduce_window_sum": _reduce_window_sum,
    "concatenate": _concatenate,
    "slice": _slice,
    "rev": _rev,
    "pad": _pad,
    "transpose": _transpose,
    "gather": _gather,
    "scatter-add": _scatter_add,
    "scatter": _scatter,
}
