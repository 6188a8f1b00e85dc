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
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from gaternet_jax.config import DataConfig, RunConfig
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.errors import UserError
from gaternet_jax.files import whole_file
from gaternet_jax.inference.network import Network
from gaternet_jax.models.gaternet import GaterNet

FORMAT = 1  # of the artefact; higher where an older load_artifact would misread it
PLATFORMS = ("cpu", "cuda", "tpu")
MODEL, METADATA, README = "model.stablehlo", "metadata.json", "README.txt"

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

images: uint8 [batch, {size}, {size}, {channels}], pixels from 0 to 255; any batch, each size of it is compiled once
outputs["probabilities"]: float32 [batch, {classes}]
outputs["labels"]: int32 [batch], the most probable class
outputs["gates"]: float32 [batch, {gates}], 1 where a filter was open
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
        _check_images(images, self.metadata["preprocessing"])
        return self._call(images)


def _check_images(images: Any, preprocessing: dict[str, Any]) -> None:
    size, channels = preprocessing["image_size"], preprocessing["channels"]
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
    expected = f"this model takes uint8 [batch, {size}, {size}, {channels}]"
    if shape is None or dtype is None:
        raise UserError(f"images are a {type(images).__name__}; {expected}: give a NumPy or JAX array")
    if len(shape) != 4:
        advice = "give a batch, of one image as images[None]"
    elif shape[0] < 1:
        advice = "give at least one image"
    elif shape[3] != channels:
        advice = f"convert them to {'grayscale' if channels == 1 else 'RGB'}"
    elif tuple(shape[1:3]) != (size, size):
        advice = f"resize them to {size} x {size} pixels"
    elif dtype != np.uint8:
        advice = "give pixels from 0 to 255, not normalised ones"
    else:
        return
    raise UserError(f"images are {dtype} {list(shape)}; {expected}: {advice}")


def inference_function(network: Network, config: DataConfig) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Makes what is exported: uint8 [B, H, W, C] to outputs of `Artifact`; `config` is the `data` part of the run's."""
    program, prepared = network.program("whole"), jax.device_get(network.prepare("whole"))

    def infer(images: jax.Array) -> dict[str, jax.Array]:
        logits, gates, _ = program(prepared, normalize(images, config))
        labels = jnp.argmax(logits, -1).astype(jnp.int32)
        return {"probabilities": jax.nn.softmax(logits), "labels": labels, "gates": gates}

    return infer


def describe(model: GaterNet, config: RunConfig, labels: list[str]) -> dict[str, Any]:
    """Gives what metadata.json tells about any exported model, of the config of its run.

    UserError: there are more or fewer labels than classes.
    """
    if len(labels) != config.model.num_classes:
        raise UserError(
            f"{len(labels)} names were given for {config.model.num_classes} classes; labels.txt of the workdir needs "
            "one line for each class"
        )
    data = config.data
    return {
        "format": FORMAT,
        "made_by": {name: importlib.metadata.version(name) for name in ("gaternet-jax", "jax")},
        "labels": labels,
        "preprocessing": {
            "image_size": data.image_size,  # pixels, height and width
            "channels": config.model.channels,
            "resize": data.resize,
            "eval_crop": data.eval_crop,  # side of the central square, relative to the shorter side
            "background": list(data.background),  # R, G, B that transparent pictures are put on
            "mean": list(data.mean),  # this and std: for information, the model does it
            "std": list(data.std),
        },
        "model": {
            "backbone": config.model.backbone,
            "gating": config.model.gating,
            "scope": config.model.gater.scope,
            "dtype": config.model.dtype,
        },
        "gate_sites": [{"name": site.name, "offset": site.offset, "size": site.size} for site in model.gate_sites],
    }


def export_stablehlo(model: GaterNet, config: RunConfig, labels: list[str], path: str | Path) -> None:
    """Writes an artefact: a model in evaluation mode, with the config of its run and the names of its classes.

    A file that is there is replaced. UserError: it cannot be, labels do not fit, or flatbuffers is not installed.
    """
    metadata, size, channels = describe(model, config, labels), config.data.image_size, config.model.channels
    (batch,) = jax.export.symbolic_shape("batch")
    program = jax.jit(inference_function(Network(model, size, "xla", batch), config.data))
    with _without_paths():
        images = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.uint8)
        exported = jax.export.export(program, platforms=PLATFORMS)(images)
    metadata["calling_convention"] = exported.calling_convention_version
    metadata["platforms"] = list(exported.platforms)
    readme = README_TEXT.format(
        name=Path(path).name,
        size=size,
        channels=channels,
        classes=config.model.num_classes,
        gates=sum(site.size for site in model.gate_sites),
    )
    try:
        serialized = bytes(exported.serialize())
    except ImportError:
        raise UserError(_NO_FLATBUFFERS.format("writing")) from None

    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        # ZipInfo has a fixed date: the same model gives the same bytes. Parameters hardly compress.
        archive.writestr(zipfile.ZipInfo(MODEL), serialized)
        archive.writestr(zipfile.ZipInfo(METADATA), json.dumps(metadata, indent=1, ensure_ascii=False) + "\n")
        archive.writestr(zipfile.ZipInfo(README), readme)
    write_whole(Path(path), whole.getvalue())


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Keeps folders, and the caller, out of what is exported: JAX notes for each operation where it was called from."""
    settings = {"jax_hlo_source_file_canonicalization_regex": r".*[\\/]", "jax_traceback_in_locations_limit": 1}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


_NO_FLATBUFFERS = "{} an artefact needs flatbuffers, which jax.export uses: pip install flatbuffers"


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all; UserError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; choose another --out") from None


def load_artifact(path: str | Path) -> Artifact:
    """Reads what `export_stablehlo` wrote; UserError: no such file, no artefact, a damaged or a newer one."""
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read(METADATA))
            newer = metadata["format"] > FORMAT
            serialized = b"" if newer else archive.read(MODEL)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} is not an artefact of gaternet-jax, or a damaged one ({error}); make one with "
            "python -m gaternet_jax.tools.export"
        ) from None
    if newer:
        raise UserError(
            f"{path} was made by a newer gaternet-jax: format {metadata['format']}, this one reads {FORMAT}; upgrade "
            "gaternet-jax"
        )
    try:
        exported = jax.export.deserialize(bytearray(serialized))
    except ImportError:
        raise UserError(_NO_FLATBUFFERS.format("reading")) from None
    except Exception as error:  # whatever the deserialiser meets in bytes of another version
        raise UserError(
            f"{path} was made with jax {metadata['made_by']['jax']}, and jax {jax.__version__} cannot read it "
            f"({error}); export the model again, or install that version"
        ) from None
    return Artifact(metadata, jax.jit(exported.call))
