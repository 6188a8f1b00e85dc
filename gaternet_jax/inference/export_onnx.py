"""ONNX: the same inputs and outputs as the StableHLO artefact (artifact.py), written directly (onnx_writer.py)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.config import RunConfig
from gaternet_jax.errors import UserError
from gaternet_jax.inference.artifact import describe, inference_function, write_whole
from gaternet_jax.inference.engines import OnnxRuntime, choose_engine
from gaternet_jax.inference.network import Network
from gaternet_jax.models.gaternet import GaterNet

OUTPUTS = ("probabilities", "labels", "gates")
TOLERANCE = 1e-4  # of probabilities, between ONNX Runtime and JAX
MAX_GATES_DIFFERING = 1e-3  # fraction; a score within rounding of the threshold may fall on either side
CHECKED_IMAGES = 4


def export_onnx(model: GaterNet, config: RunConfig, labels: list[str], path: str | Path) -> None:
    """Writes an ONNX file, once ONNX Runtime has computed from it what JAX computes.

    Arguments and outputs are those of an artefact (a plain model has no output "gates"), as are the metadata, each
    entry as JSON. Convolutions are float32, also of a bfloat16 model: ONNX Runtime has no other ones for CPUs.

    Raises:
        UserError: onnx or onnxruntime is missing, or does not do this model; as of `export_stablehlo`.
    """
    choose_engine("onnxruntime")
    from gaternet_jax.inference.onnx_writer import write_onnx

    metadata = describe(model, config, labels)
    model, size = _in_float32(model), config.data.image_size
    images = jax.ShapeDtypeStruct((1, size, size, model.backbone.channels), jnp.uint8)
    names = [name for name in OUTPUTS if name != "gates" or model.gate_sites]
    infer = inference_function(Network(model, size, "onnxruntime"), config.data)
    serialized = write_onnx(
        lambda images: [infer(images)[name] for name in names],
        {"images": images},
        names,
        **{name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()},
    )
    if differences := _compare(serialized, names, inference_function(Network(model, size, "xla"), config.data), images):
        raise UserError(f"the ONNX model differs from JAX's: {differences}. Use --format=stablehlo")
    write_whole(Path(path), serialized)


def _in_float32(model: GaterNet) -> GaterNet:
    model = nnx.clone(model)
    modules: Iterator[tuple[Any, Any]] = nnx.iter_modules(model)
    for _, module in modules:
        if hasattr(module, "dtype"):
            module.dtype = jnp.float32
    return model


def _compare(serialized: bytes, names: list[str], infer: Any, spec: jax.ShapeDtypeStruct) -> str:
    """Says how ONNX Runtime's outputs differ from JAX's on random images; "" where they do not."""
    images = np.random.default_rng(0).integers(0, 256, (CHECKED_IMAGES, *spec.shape[1:]), np.uint8)
    expected = jax.device_get(jax.jit(infer)(images))
    outputs = OnnxRuntime(serialized, threads=1)(np.arange(CHECKED_IMAGES), images)
    actual: dict[str, Any] = dict(zip(names, outputs, strict=True))
    alike = np.ones(len(images), bool)
    if "gates" in actual:
        differing = actual["gates"] != expected["gates"]
        if differing.mean() > MAX_GATES_DIFFERING:
            return f"{differing.mean():.1%} of the gates"
        alike = ~differing.any(1)
    error = np.abs(actual["probabilities"] - expected["probabilities"])[alike].max(initial=0)
    return "" if error <= TOLERANCE else f"probabilities by {error:.1e}"
