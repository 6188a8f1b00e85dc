"""One object over all ways to run a model."""

import copy
import functools
import operator
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.config import DataConfig
from gaternet_jax.data.batches import pad_rows
from gaternet_jax.data.inputs import to_array
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.errors import UserError, check_choice
from gaternet_jax.inference.calibration import read_split
from gaternet_jax.inference.compaction import check_gated, compact_model
from gaternet_jax.inference.engines import Array, choose_engine
from gaternet_jax.inference.modes import Mode, Modes, median_seconds
from gaternet_jax.inference.network import Network
from gaternet_jax.models.gaternet import GaterNet, Outputs
from gaternet_jax.run import Run, load_run

CALIBRATION_IMAGES = 1000  # of a run's training split
MODES = ("dense", "compact", "specialists", "dynamic", "auto")
DYNAMIC_BATCH = 4  # on accelerators "auto" tries dynamic mode up to here: more images open nearly all filters together


class Predictor:
    """Predicts with a model, in the way that suits it and this machine.

    dense: all filters, closed ones masked. compact: without the filters that calibration never opened; an
    approximation for images that would open one. specialists: narrower backbones for groups of images (large batches).
    dynamic: only the open filters, in one of few width profiles: image by image (on accelerators: batches of one).
    auto: for each batch size, the fastest by measurement of dense, dynamic and, with calibration images, specialists.
    All but compact are exact. Gates that are the same for every image (a compacted model's) cost nothing in any mode.

    It may be called from several threads. The first call prepares it; `warm_up` does so ahead. A forked process cannot
    use it: JAX has threads, which a fork does not copy. Start processes with "spawn", and make a Predictor in each.

    Args:
        model: it is copied: outputs are those of its parameters now, in evaluation mode, whatever becomes of it later.
        mode: see above.
        calibration: images like those to come, [N, H, W, C], at least a few per class; for compact and specialists.
            dynamic takes its profiles from them, or else from the first images that it is given.
        batch_sizes: inputs are cut into batches of the largest; XLA pads the last one to the next of these.
        data: the `data` part of the run's config: then images may be uint8, or files. None: normalised floats only.
        tune: measure on this machine how batches are best cut (some seconds; remembered in the user's cache folder),
            and whether profiles are faster than the whole network; otherwise a rule of thumb decides.
        engine: "xla" or "onnxruntime"; "auto": the latter on CPUs, where it is installed and runs the model.

    Raises:
        UserError: no `GaterNet`, an unknown mode, one that the model cannot run in, batch sizes or data that cannot be,
            or calibration images that are missing, none, or of another shape.

    Example:
        >>> model = gx.load_model("runs/digits")
        >>> predict = gx.Predictor(model, "dense", batch_sizes=(4,), tune=False)
        >>> predict(np.zeros((3, 8, 8, 1), np.float32)).logits.shape
        (3, 10)
    """

    def __init__(
        self,
        model: GaterNet,
        mode: str = "auto",
        calibration: np.ndarray | None = None,
        *,
        batch_sizes: Sequence[int] = (1, 64),
        data: DataConfig | None = None,
        tune: bool = True,
        engine: str = "auto",
    ):
        if not isinstance(model, GaterNet):
            raise UserError(f"the model is a {type(model).__name__}; expected a GaterNet, as of load_model(workdir)")
        check_choice("mode", mode, MODES)
        choose_engine(engine)
        if data is not None and not hasattr(data, "image_size"):
            raise UserError("data must be the `data` part of a run's config: data=config.data")
        data = copy.deepcopy(data)
        self.model, self.mode, self.batch_sizes = _copied(model), mode, _checked_sizes(batch_sizes)
        self.chosen: dict[int, str] = {}  # the mode of each batch size
        self.seconds: dict[int, dict[str, float]] = {}  # of "auto": what each mode took
        self._data, self._tune, self._engine, self._calibration = data, tune, engine, None
        self._normalize = jax.jit(lambda images: images if data is None else normalize(images, data))
        self._modes: dict[tuple[int, int], Mode] = {}  # by image size and batch size
        self.modes, self._network = functools.cache(self._make_modes), functools.cache(self._make_network)
        self._lock = threading.Lock()
        if mode in ("compact", "specialists", "dynamic"):
            check_gated(model)
        if mode in ("specialists", "dynamic") and model.gater is None:
            raise UserError(
                "this mode needs all gates before the backbone runs, but this model decides them block by block "
                "(model.gater.scope=local); use mode 'compact' or 'dense'"
            )
        if mode in ("compact", "specialists") and calibration is None:
            raise UserError(f"mode '{mode}' needs calibration images: pass calibration=[N, H, W, C]")
        if calibration is not None:
            self._calibration = self._checked(calibration, "calibration images")

    @classmethod
    def from_run(cls, run: Run | str | Path, mode: str = "auto", **options: Any) -> "Predictor":
        """Makes the predictor of a run (from `load_run`, or its folder), which takes files, PIL images and pixels.

        Without a `calibration` among the options, which are arguments of the class, compact and specialists are
        calibrated on images of the run's training split. UserError: as of `load_run` and of the class; or there are no
        such images.

        Example:
            predictor = Predictor.from_run("runs/cifar10")
            predictor(["cat.png"]).logits
        """
        run = run if isinstance(run, Run) else load_run(run)
        if mode in ("compact", "specialists") and options.get("calibration") is None:
            split = run.config.data.train_split
            options["calibration"], _ = read_split(run.workdir, run.config, split, CALIBRATION_IMAGES)
        return cls(run.model, mode, data=run.config.data, **options)

    def __call__(self, images: Any) -> Outputs:
        """Predicts the logits and gates of images.

        Args:
            images: [B, H, W, C], normalised floats; or, with `data`, uint8 pixels. An array of NumPy or JAX, a tensor
                of PyTorch, or a list of images [H, W, C]. With `data` also image files and PIL images, one or a list,
                of any size: they are read as the run's evaluation images are. UserError: it is none of these.

        Returns:
            Arrays of NumPy, float32: logits [B, K], gates [B, G], gate_scores [B, G].
        """
        return self._in_batches(self._checked(images, "images"), self._mode)

    def _in_batches(self, images: np.ndarray, mode_of: Callable[[np.ndarray, int], Mode]) -> Outputs:
        """Runs images in batches, each in the mode for its images and the size to which it is padded."""
        outputs: list[Any] = []
        for start in range(0, len(images), self.batch_sizes[-1]):
            batch = images[start : start + self.batch_sizes[-1]]
            size = next(size for size in self.batch_sizes if size >= len(batch))
            run = mode_of(batch, size)
            outputs.append(run(self._normalized(pad_rows(batch, size)), len(batch)))  # XLA compiles for few sizes
        joined: list[Array] = [np.concatenate(arrays) for arrays in zip(*outputs, strict=True)]
        return Outputs(*joined)

    def warm_up(self, image_size: int | None = None) -> "Predictor":
        """Prepares and compiles all batch sizes; of images of the calibration's or the config's size, or this one."""
        known = self._calibration.shape[1] if self._calibration is not None else self._data and self._data.image_size
        if not (size := image_size or known):
            raise UserError("warm_up needs the size of the images, pixels: warm_up(32)")
        for batch_size in self.batch_sizes:
            images = self._example((batch_size, size, size, self.model.backbone.channels))
            self._mode(images, batch_size)(self._normalized(images), batch_size)
        return self

    def _checked(self, given: Any, what: str) -> np.ndarray:
        channels = self.model.backbone.channels
        images = np.asarray(to_array(given, self._data, channels))
        kinds = "normalised floats" if self._data is None else "uint8 pixels or normalised floats"
        fits = (images.dtype == np.uint8 and self._data is not None) or jnp.issubdtype(images.dtype, jnp.floating)
        square = images.ndim == 4 and images.shape[-1] == channels and images.shape[1] == images.shape[2]
        if not fits or not square or not len(images):
            raise UserError(
                f"{what} must be {kinds}, square, of shape [batch, size, size, {channels}], channels last, "
                f"at least one; got {images.dtype} {list(images.shape)}"
            )
        calibration = None if self._calibration is None else self._calibration.shape[1]
        known = {"the model's": self._data and self._data.image_size, "the calibration images": calibration}
        for others, size in known.items():
            if size and images.shape[1] != size:
                raise UserError(f"{what} are {images.shape[1]} pixels wide, but {others} are {size}; resize them")
        return images

    def _normalized(self, images: np.ndarray) -> Array:
        """Gives the images normalised, float32, on the device; uint8 crosses as such."""
        if images.dtype == np.uint8:
            return self._normalize(images)
        return jnp.asarray(images, jnp.float32)

    def _example(self, shape: tuple[int, ...]) -> np.ndarray:
        """Gives images to try a program on: calibration images, or noise."""
        if self._calibration is None:
            return np.random.default_rng(0).normal(size=shape).astype(np.float32)
        return np.resize(self._calibration, shape)

    def _mode(self, images: np.ndarray, batch_size: int) -> Mode:
        """Gives the way to run batches of this size; made at the first call, of whose images dynamic mode may learn."""
        with self._lock:
            key = images.shape[1], batch_size
            if key not in self._modes:
                self._modes[key] = self._make(images, batch_size)
            return self._modes[key]

    def _make(self, images: np.ndarray, batch_size: int) -> Mode:
        if self.mode != "auto":
            self.chosen[batch_size] = self.mode
            return self._make_mode(self.mode, images, batch_size)
        modes = ["dense"]
        if self.model.gater is not None:
            if jax.default_backend() == "cpu" or batch_size <= DYNAMIC_BATCH:
                modes.append("dynamic")
            modes += ["specialists"] if self._calibration is not None else []
        made = {mode: self._make_mode(mode, images, batch_size) for mode in modes}
        example = self.modes(images.shape[1], batch_size, False).example
        taken = {mode: median_seconds(lambda run=run: run(example, batch_size)) for mode, run in made.items()}
        self.seconds[batch_size], self.chosen[batch_size] = taken, min(taken, key=lambda mode: taken[mode])
        return made[self.chosen[batch_size]]

    def _make_mode(self, mode: str, images: np.ndarray, batch_size: int) -> Mode:
        modes = self.modes(images.shape[1], batch_size, mode == "compact")
        if mode in ("dense", "compact"):
            return modes.whole()
        if mode == "specialists":
            return modes.specialists(self._gates)
        if self._calibration is not None:
            return modes.dynamic(self._gates)
        return modes.dynamic(modes.gates(self._normalized(images), len(images))[0])

    def _make_modes(self, image_size: int, batch_size: int, compacted: bool) -> Modes:
        """Makes the ways to run batches of this size of the model, or of the compacted one."""
        example = self._example((batch_size, image_size, image_size, self.model.backbone.channels))
        return Modes(self._network(image_size, compacted), self._normalized(example), self._tune)

    def _make_network(self, image_size: int, compacted: bool) -> Network:
        """Makes the programs; by XLA, too, where "auto" is to decide and ONNX Runtime does not run them."""
        model = compact_model(self.model, self._gates) if compacted else self.model
        network = Network(model, image_size, choose_engine(self._engine))
        if self._engine == "auto" and network.engine != "xla":
            try:
                network.make("whole")
            except UserError:  # an operation that ONNX or ONNX Runtime does not have, or a type such as bfloat16
                return Network(model, image_size, "xla")
        return network

    @functools.cached_property
    def _gates(self) -> Array:
        """Computes the gates of the calibration images, [N, G]."""
        assert self._calibration is not None
        size = self._calibration.shape[1]
        whole = functools.cache(lambda batch_size: self.modes(size, batch_size, False).whole())
        return self._in_batches(self._calibration, lambda _, batch_size: whole(batch_size)).gates


def _copied(model: GaterNet) -> GaterNet:
    """Makes a copy with arrays of its own: the model's may be given away to a training step."""
    graphdef, state = nnx.split(model)
    copy = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
    copy.eval()
    return copy


def _checked_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(sorted({operator.index(size) for size in batch_sizes}))
    except TypeError:
        sizes = ()
    if not sizes or sizes[0] < 1:
        raise UserError(f"batch_sizes={batch_sizes} must be whole numbers greater than 0, e.g. (1, 64)")
    return sizes
