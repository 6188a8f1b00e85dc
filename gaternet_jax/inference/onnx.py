"""ONNX, through jax2onnx: the same inputs and outputs as the StableHLO artefact (inference/export.py).

jax2onnx replaces Flax's and jax.numpy's functions by its own while it traces, which fails for layers that subclass
Flax's. So the model is traced before, and jax2onnx sees plain primitives only. Of these it converts two wrongly, or not
for a batch of any size (jax2onnx 0.13); `_replay` puts others in their place.
"""

import contextlib
import functools
import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.extend import core

from gaternet_jax.config import Config
from gaternet_jax.errors import UserError
from gaternet_jax.inference.export import describe, images_spec, inference_function, write_whole
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.layers import Conv

OUTPUTS = ("probabilities", "labels", "gates")
OPSET = 18  # the oldest that jax2onnx writes well; onnxruntime 1.19 knows up to 21
IR_VERSION = 10  # of the file's form; the newest that onnxruntime 1.19 reads
TOLERANCE = 1e-4  # of probabilities, between ONNX Runtime and JAX
MAX_GATES_DIFFERING = 1e-3  # fraction; a score within rounding of the threshold may fall on either side
CHECKED_IMAGES = 4


def export_onnx(model: GaterNet, config: Config, labels: list[str], path: str | Path, *, opset: int = OPSET) -> None:
    """Writes an ONNX file, once ONNX Runtime has computed from it what JAX computes.

    Input: images, uint8 [batch, H, W, C]. Outputs: as of `Artifact`; a plain model has no output "gates". Convolutions
    are float32, those of a bfloat16 model too: ONNX Runtime has no bfloat16 ones for CPUs. The metadata are
    those of an artefact, each entry as JSON.

    Args:
        model: in evaluation mode.
        config: of its run.
        labels: names of the classes.
        path: of the file; one that is there is replaced.
        opset: version of ONNX's operations, at least OPSET; programs that read the file must know it.

    Raises:
        UserError: jax2onnx or onnxruntime is missing, or does not do this model or this opset; the file cannot be
            written; labels do not fit.
    """
    if opset < OPSET:
        raise UserError(f"opset {opset} must be at least {OPSET}, the oldest that jax2onnx writes correctly")
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}: pip install -e '.[onnx]'") from None
    metadata = describe(model, config, labels)
    model = _in_float32(model)
    infer = inference_function(model, config.data)
    names = [name for name in OUTPUTS if name != "gates" or model.gate_sites]
    spec = images_spec(model, config.data)

    def listed(images: jax.Array) -> list[jax.Array]:
        outputs = infer(images)
        return [outputs[name] for name in names]

    closed = jax.make_jaxpr(listed)(spec)

    def replay(images: jax.Array) -> tuple[Any, ...]:
        return tuple(_replay(closed.jaxpr, closed.consts, [images]))

    try:
        with _quiet():
            proto: Any = jax2onnx.to_onnx(replay, [spec], input_names=["images"], output_names=names, opset=opset)
            proto.ir_version = min(proto.ir_version, IR_VERSION)
            for name, value in metadata.items():
                entry = proto.metadata_props.add()
                entry.key, entry.value = name, json.dumps(value, ensure_ascii=False)
            serialized = proto.SerializeToString()
    except Exception as error:  # jax2onnx raises anything for what it does not know
        raise UserError(
            f"jax2onnx does not convert this model to opset {opset}: {_first_line(error)}. Use another --opset "
            f"(default: {OPSET}), or --format=stablehlo"
        ) from error
    try:
        differences = _compare(serialized, infer, (CHECKED_IMAGES, *spec.shape[1:]))
    except Exception as error:  # of ONNX Runtime, likewise
        reason = _first_line(error)
        if known := re.search(r"till opset \d+|max supported IR version: \d+", reason):
            raise UserError(
                f"onnxruntime {onnxruntime.__version__} is too old for opset {opset} (it reads files {known[0]}); "
                f"upgrade it, or give a lower --opset (default: {OPSET})"
            ) from error
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} does not run this model (opset {opset}): {reason}. Use "
            "--format=stablehlo"
        ) from error
    if differences:
        raise UserError(f"the ONNX model differs from JAX's: {differences}. Use --format=stablehlo")
    write_whole(Path(path), lambda part: part.write_bytes(serialized))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _in_float32(model: GaterNet) -> GaterNet:
    model = nnx.clone(model)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Conv):
            module.dtype = jnp.float32
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what jax2onnx logs and warns of: plugins for libraries that are not here, and its own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _compare(serialized: bytes, infer: Any, shape: tuple[int, ...]) -> str:
    """How ONNX Runtime's outputs differ from JAX's on random images; "" where they do not."""
    import onnxruntime

    session = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = jax.device_get(jax.jit(infer)(images))
    names = [output.name for output in session.get_outputs()]
    actual = dict(zip(names, session.run(names, {"images": images}), strict=True))
    alike = np.ones(len(images), bool)
    if "gates" in actual:
        differing = actual["gates"] != expected["gates"]
        if differing.mean() > MAX_GATES_DIFFERING:
            return f"{differing.mean():.1%} of the gates"
        alike = ~differing.any(1)
    error = np.abs(actual["probabilities"] - expected["probabilities"])[alike].max(initial=0)
    return "" if error <= TOLERANCE else f"probabilities by {error:.1e}"


INLINED = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call")  # calls; gradients are not exported


def _replay(jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """Traces a jaxpr anew, without calls, with constants folded, and some operations by other means."""
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        primitive, params = equation.primitive, equation.params
        operands = [read(variable) for variable in equation.invars]
        if primitive.name in INLINED:
            inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
            results = _replay(inner.jaxpr, inner.consts, operands)
        elif _is_constant(equation, operands):
            with jax.ensure_compile_time_eval():
                results = primitive.bind(*operands, **params)
        elif primitive.name == "pad":
            results = _pad(operands[0], operands[1], params["padding_config"])
        elif primitive.name == "scatter-add":
            results = _add_at(operands[0], operands[1], operands[2], params["dimension_numbers"])
        elif primitive.name == "reduce_window_max":
            results = _max_pool(operands[0], **params)
        else:
            results = primitive.bind(*operands, **params)
        several = primitive.multiple_results or primitive.name in INLINED
        values.update(zip(equation.outvars, results if several else [results], strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _is_constant(equation: Any, operands: list[Any]) -> bool:
    """Whether the result depends neither on the images nor on how many there are."""
    sizes = [size for variable in equation.outvars for size in variable.aval.shape]
    return all(isinstance(size, int) for size in sizes) and not any(isinstance(x, Tracer) for x in operands)


def _pad(x: Any, value: Any, config: Sequence[tuple[int, int, int]]) -> Any:
    """`pad` as a concatenation."""
    for axis, (low, high, interior) in enumerate(config):
        if interior or low < 0 or high < 0:
            raise ValueError(f"padding {(low, high, interior)}")

        def block(size: int, axis: int = axis, x: Any = x) -> list[Any]:
            shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
            return [jax.lax.broadcast_in_dim(value, shape, ())] if size else []

        parts = [*block(low), x, *block(high)]
        x = parts[0] if len(parts) == 1 else jax.lax.concatenate(parts, axis)
    return x


def _max_pool(x: Any, window_dimensions: Any, window_strides: Any, padding: Any, **dilations: Any) -> Any:
    """Max-pooling as the maximum of slices, one for each place in the window."""
    if any(size != 1 for name in ("base_dilation", "window_dilation") for size in dilations[name]):
        raise ValueError("max-pooling with dilation")
    x = _pad(x, jnp.asarray(-jnp.inf, x.dtype), [(low, high, 0) for low, high in padding])
    for axis, (window, stride) in enumerate(zip(window_dimensions, window_strides, strict=True)):
        if window == stride == 1:
            continue
        places = (x.shape[axis] - window) // stride + 1
        slices = [
            jax.lax.slice_in_dim(x, start, start + stride * (places - 1) + 1, stride, axis) for start in range(window)
        ]
        x = functools.reduce(jax.lax.max, slices)
    return x


def _add_at(x: Any, places: Any, narrow: Any, dimensions: Any) -> Any:
    """x.at[..., places].add(narrow), by a 1x1 convolution with ones at (i, places[i]): exact, each sum has one term."""
    last = x.ndim - 1
    if isinstance(places, Tracer) or x.ndim != 4 or dimensions.scatter_dims_to_operand_dims != (last,):
        raise ValueError("scatter-add other than of channels into a wider map")
    places = np.asarray(places).reshape(-1)
    kernel = np.zeros((1, 1, len(places), x.shape[last]), x.dtype)
    kernel[0, 0, np.arange(len(places)), places] = 1
    layout = ("NHWC", "HWIO", "NHWC")
    spread: Any = jax.lax.conv_general_dilated(narrow, jnp.asarray(kernel), (1, 1), "VALID", dimension_numbers=layout)
    return x + spread
