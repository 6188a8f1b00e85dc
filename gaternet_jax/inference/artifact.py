"""Models as single files that need none of this package: a `jax.export` artefact (StableHLO), or ONNX.

    uint8 images [B, H, W, C] -> normalise -> model -> {probabilities [B, K], labels [B], gates [B, G]}

The parameters are constants of the program, B is any number. An artefact is a zip of

    model.stablehlo    what jax.export serialised; lowered for CPU, CUDA and TPU
    metadata.json      format, versions, names of the classes, preprocessing, gate sites
    README.txt         the few lines of JAX that load it
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.config import RunConfig
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.errors import UserError
from gaternet_jax.files import whole_file
from gaternet_jax.inference.engines import OnnxRuntime, choose_engine
from gaternet_jax.inference.network import Network
from gaternet_jax.models.gaternet import GaterNet

FORMAT = 1  # of the artefact; higher where an older load_artifact would misread it
MODEL, METADATA, README = "model.stablehlo", "metadata.json", "README.txt"
NO_FOLDERS = {"jax_hlo_source_file_canonicalization_regex": r".*[\\/]", "jax_traceback_in_locations_limit": 1}
TOLERANCE = 1e-4  # of probabilities, between ONNX Runtime and JAX
MAX_GATES_DIFFERING = 1e-3  # fraction; a score within rounding of the threshold may fall on either side

README_TEXT = """An image classifier as a JAX program (StableHLO), made by gaternet-jax.
To load it: pip install jax flatbuffers numpy

    import json, zipfile
    import jax
    from jax import export

    with zipfile.ZipFile("{name}") as archive:
        model = export.deserialize(archive.read("model.stablehlo"))
        labels = json.loads(archive.read("metadata.json"))["labels"]
    outputs = jax.jit(model.call)(images)
    print([labels[label] for label in outputs["labels"]])

images: uint8 [batch, {image_size}, {image_size}, {channels}], pixels 0 to 255; any batch, each size of it compiled once
outputs["probabilities"]: float32 [batch, classes]
outputs["labels"]: int32 [batch], the most probable class
outputs["gates"]: float32 [batch, gates], 1 where a filter was open
metadata.json, "preprocessing", tells how a picture becomes such an image (resize, eval_crop). The normalisation (mean,
std) is part of the program.
"""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """Holds an exported model; call it with images."""

    metadata: dict[str, Any]  # contents of metadata.json; see `describe`
    _call: Callable[[Any], dict[str, jax.Array]] = dataclasses.field(repr=False)

    @property
    def labels(self) -> list[str]:
        """Gives the names of the classes, by label."""
        return self.metadata["labels"]

    def __call__(self, images: Any) -> dict[str, jax.Array]:
        """Classifies images, uint8 [B, H, W, C] of the model's size, at least one; each new B is compiled once.

        Returns:
            probabilities float32 [B, K]; labels int32 [B], the most probable; gates float32 [B, G], 0 or 1.

        Raises:
            UserError: images of another size, type or number of channels.
        """
        shape, dtype = tuple(getattr(images, "shape", ())), getattr(images, "dtype", None)
        size, channels = (self.metadata["preprocessing"][name] for name in ("image_size", "channels"))
        fits = {
            "give a NumPy or JAX array": dtype is not None,
            "give a batch, of one image as images[None]": len(shape) == 4,
            "give at least one image": shape[:1] != (0,),
            f"convert them to {'grayscale' if channels == 1 else 'RGB'}": shape[3:] == (channels,),
            f"resize them to {size} x {size} pixels": shape[1:3] == (size, size),
            "give pixels from 0 to 255, not normalised ones": dtype == np.uint8,
        }
        if advice := [advice for advice, fit in fits.items() if not fit]:
            given = f"a {type(images).__name__}" if dtype is None else f"{dtype} {list(shape)}"
            expected = f"this model takes uint8 [batch, {size}, {size}, {channels}]"
            raise UserError(f"images are {given}; {expected}: {advice[0]}")
        return self._call(images)


def describe(model: GaterNet, config: RunConfig, labels: list[str]) -> dict[str, Any]:
    """Gives what metadata.json tells about any exported model, of the config of its run.

    Of the preprocessing: `image_size` in pixels, `eval_crop` the side of the central square relative to the shorter
    side, `background` R, G, B that transparent pictures are put on; `mean` and `std`, what the model does itself.

    UserError: there are more or fewer labels than classes.
    """
    data, own = config.data, config.model
    if len(labels) != own.num_classes:
        raise UserError(
            f"{len(labels)} names were given for {own.num_classes} classes; labels.txt of the workdir needs one line "
            "for each class"
        )
    preprocessing = "image_size", "resize", "eval_crop", "background", "mean", "std"
    return {
        "format": FORMAT,
        "made_by": {name: importlib.metadata.version(name) for name in ("gaternet-jax", "jax")},
        "labels": labels,
        "preprocessing": {name: getattr(data, name) for name in preprocessing} | {"channels": own.channels},
        "model": {name: getattr(own, name) for name in ("backbone", "gating", "dtype")} | {"scope": own.gater.scope},
        "gate_sites": [site._asdict() for site in model.gate_sites],
    }


def _inference_function(model: GaterNet, config: RunConfig, engine: str, batch: Any = None) -> Callable[..., Any]:
    """Makes what is exported: uint8 [B, H, W, C] to outputs of `Artifact`."""
    network = Network(model, config.data.image_size, engine, batch)
    program, prepared = network.program("whole"), jax.device_get(network.prepare("whole"))

    def infer(images: jax.Array) -> dict[str, jax.Array]:
        logits, gates, _ = program(prepared, normalize(images, config.data))
        labels = jnp.argmax(logits, -1).astype(jnp.int32)
        return {"probabilities": jax.nn.softmax(logits), "labels": labels, "gates": gates}

    return infer


def export_stablehlo(model: GaterNet, config: RunConfig, labels: list[str], path: str | Path) -> None:
    """Writes an artefact: a model in evaluation mode, with the config of its run and the names of its classes.

    A file that is there is replaced. UserError: it cannot be, labels do not fit, or flatbuffers is not installed.
    """
    _check_flatbuffers("writing")
    metadata, (batch,) = describe(model, config, labels), jax.export.symbolic_shape("batch")
    size, channels = config.data.image_size, config.model.channels
    program = jax.jit(_inference_function(model, config, "xla", batch))
    with contextlib.ExitStack() as stack:  # JAX notes for each operation where it was called from: without the folder
        for name, value in NO_FOLDERS.items():
            stack.callback(jax.config.update, name, getattr(jax.config, name))
            jax.config.update(name, value)
        images = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.uint8)
        exported = jax.export.export(program, platforms=("cpu", "cuda", "tpu"))(images)
    metadata["calling_convention"] = exported.calling_convention_version
    metadata["platforms"] = list(exported.platforms)
    files = {
        MODEL: bytes(exported.serialize()),
        METADATA: json.dumps(metadata, indent=1, ensure_ascii=False) + "\n",
        README: README_TEXT.format(name=Path(path).name, **metadata["preprocessing"]),
    }
    with _new_file(Path(path)) as part, zipfile.ZipFile(part, "w") as archive:
        for name, content in files.items():  # ZipInfo has a fixed date: the same model gives the same bytes
            archive.writestr(zipfile.ZipInfo(name), content)


def export_onnx(model: GaterNet, config: RunConfig, labels: list[str], path: str | Path) -> None:
    """Writes an ONNX file, once ONNX Runtime has computed from it what JAX computes.

    Arguments and outputs are those of an artefact (a plain model has no output "gates"), as are the metadata, each
    entry as JSON. Convolutions are float32, also of a bfloat16 model: ONNX Runtime has no other ones for CPUs.

    Raises:
        UserError: onnx or onnxruntime is missing, or does not do this model; as of `export_stablehlo`.
    """
    choose_engine("onnxruntime")
    from gaternet_jax.inference.onnx_writer import write_onnx

    metadata, model = describe(model, config, labels), nnx.clone(model)
    modules: Any = nnx.iter_modules(model)
    for _, module in modules:
        if hasattr(module, "dtype"):
            module.dtype = jnp.float32
    infer, expected = (_inference_function(model, config, engine) for engine in ("onnxruntime", "xla"))
    names = ["probabilities", "labels", *(["gates"] if model.gate_sites else [])]
    shape = config.data.image_size, config.data.image_size, config.model.channels
    serialized = write_onnx(
        lambda images: [infer(images)[name] for name in names],
        {"images": jax.ShapeDtypeStruct((1, *shape), jnp.uint8)},
        names,
        **{name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()},
    )
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    wanted, outputs = jax.device_get(jax.jit(expected)(images)), OnnxRuntime(serialized, 1)(np.arange(4), images)
    given = wanted | dict(zip(names, outputs, strict=True))
    differing = given["gates"] != wanted["gates"]
    error = np.abs(given["probabilities"] - wanted["probabilities"])[~differing.any(1)].max(initial=0)
    if differing.sum() > MAX_GATES_DIFFERING * differing.size or not error <= TOLERANCE:
        raise UserError(
            f"the ONNX model differs from JAX's: {differing.sum()} of {differing.size} gates, probabilities by "
            f"{error:.1e}. Use --format=stablehlo"
        )
    with _new_file(Path(path)) as part:
        part.write_bytes(serialized)


def _check_flatbuffers(doing: str) -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(f"{doing} an artefact needs flatbuffers, which jax.export uses: pip install flatbuffers")


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            yield part
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; choose another --out") from None


def load_artifact(path: str | Path) -> Artifact:
    """Reads what `export_stablehlo` wrote; UserError: no such file, no artefact, a damaged or a newer one."""
    _check_flatbuffers("reading")
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read(METADATA))
            format, maker = metadata["format"], metadata["made_by"]["jax"]
            serialized = archive.read(MODEL) if format <= FORMAT else None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, LookupError, TypeError, ValueError, EOFError, RuntimeError) as error:
        raise UserError(
            f"{path} is not an artefact of gaternet-jax, or a damaged one ({error}); make one with "
            "python -m gaternet_jax.tools.export"
        ) from None
    if serialized is None:
        raise UserError(
            f"{path} was made by a newer gaternet-jax: format {format}, this one reads {FORMAT}; upgrade gaternet-jax"
        )
    try:
        exported = jax.export.deserialize(bytearray(serialized))
    except Exception as error:  # whatever the deserialiser meets in bytes of another version
        raise UserError(
            f"{path} was made with jax {maker}, and jax {jax.__version__} cannot read it ({error}); export the model "
            "again, or install that version"
        ) from None
    return Artifact(metadata, jax.jit(exported.call))
