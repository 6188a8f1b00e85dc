"""One object over all ways to run a model."""

import copy
import functools
import operator
import threading
from collections.abc import Iterator, Sequence
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
from gaternet_jax.inference.batching import best_seconds
from gaternet_jax.inference.calibration import read_split
from gaternet_jax.inference.compaction import check_gated, compact_model
from gaternet_jax.inference.engines import Array, choose_engine
from gaternet_jax.inference.modes import Mode, Modes
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
        if mode in ("compact", "specialists", "dynamic"):
            check_gated(model)
        if mode in ("specialists", "dynamic") and model.gater is None:
            raise UserError(
                "this mode needs all gates before the backbone runs, but this model decides them block by block "
                "(model.gater.scope=local); use mode 'compact' or 'dense'"
            )
        if mode in ("compact", "specialists") and calibration is None:
            raise UserError(f"mode '{mode}' needs calibration images: pass calibration=[N, H, W, C]")
        try:
            sizes = sorted({operator.index(size) for size in batch_sizes})
        except TypeError:
            sizes = []
        if not sizes or sizes[0] < 1:
            raise UserError(f"batch_sizes={batch_sizes} must be whole numbers greater than 0, e.g. (1, 64)")
        graphdef, state = nnx.split(model)
        self.model = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))  # the model's may be given to a training step
        self.model.eval()
        self.mode, self.batch_sizes = mode, tuple(sizes)
        self.chosen: dict[int, str] = {}  # the mode of each batch size
        self.seconds: dict[int, dict[str, float]] = {}  # of "auto": what each mode took, of those that differ
        self._data: Any = copy.deepcopy(data)
        self._tune, self._engine, self._calibration, self._gates = tune, engine, None, None
        self._image_size = data and data.image_size  # pixels; None: any
        if calibration is not None:
            self._calibration = self._checked(calibration, "calibration images")
            self._image_size = self._calibration.shape[1]
        self._network = functools.cache(self._make_network)
        self._modes: dict[tuple[int, ...], Mode] = {}  # by batch size and image size
        self._lock = threading.Lock()
        # uint8 crosses to the device as such.
        self._normalize = jax.jit(lambda x: normalize(x, self._data) if x.dtype == jnp.uint8 else x.astype(jnp.float32))

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
        checked = self._checked(images, "images")
        outputs = [self._mode(len(batch), checked)(batch, count) for batch, count in self._batches(checked)]
        joined: list[Any] = [np.concatenate(arrays) for arrays in zip(*outputs, strict=True)]
        return Outputs(*joined)

    def warm_up(self, image_size: int | None = None) -> "Predictor":
        """Prepares and compiles all batch sizes; of images of the calibration's or the config's size, or this one."""
        if not (size := image_size or self._image_size):
            raise UserError("warm_up needs the size of the images, pixels: warm_up(32)")
        shape = size, size, self.model.backbone.channels
        noise = np.random.default_rng(0).normal(size=(self.batch_sizes[-1], *shape)).astype(np.float32)
        images = noise if self._calibration is None else self._calibration
        for batch_size in self.batch_sizes:
            self(np.resize(images, (batch_size, *shape)))
        return self

    def _checked(self, given: Any, what: str) -> np.ndarray:
        channels = self.model.backbone.channels
        images = np.asarray(to_array(given, self._data, channels))
        kinds = "normalised floats" if self._data is None else "uint8 pixels or normalised floats"
        fits = (images.dtype == np.uint8 and self._data is not None) or jnp.issubdtype(images.dtype, jnp.floating)
        size = self._image_size or (images.shape[1] if images.ndim > 1 else 0)
        if not fits or images.shape[1:] != (size, size, channels) or not images.size:
            shape = f"[batch, {self._image_size or 'size'}, {self._image_size or 'size'}, {channels}]"
            raise UserError(
                f"{what} must be {kinds}, square, of shape {shape}, channels last, at least one; "
                f"got {images.dtype} {list(images.shape)}: resize or convert them"
            )
        return images

    def _batches(self, images: np.ndarray) -> Iterator[tuple[Array, int]]:
        """Cuts images into normalised batches, padded to the next of the sizes, and says how many of each count."""
        for start in range(0, len(images), self.batch_sizes[-1]):
            batch = images[start : start + self.batch_sizes[-1]]
            size = next(size for size in self.batch_sizes if size >= len(batch))
            yield self._normalize(pad_rows(batch, size)), len(batch)  # XLA compiles for few sizes

    def _mode(self, size: int, images: np.ndarray) -> Mode:
        """Gives the way to run batches of a size; made at the first, of whose images it learns without calibration."""
        with self._lock:
            key = size, images.shape[1]
            if key not in self._modes:
                known = images[: self.batch_sizes[-1]] if self._calibration is None else self._calibration
                self._modes[key] = self._make(size, known)
            return self._modes[key]

    def _make(self, size: int, known: np.ndarray) -> Mode:
        example = self._normalize(np.resize(known, (size, *known.shape[1:])))
        modes, names = Modes(self._network(known.shape[1]), example, self._tune), [self.mode]
        if self.mode == "auto":
            names = ["dense"]
            if self.model.gater is not None:
                names += ["dynamic"] if jax.default_backend() == "cpu" or size <= DYNAMIC_BATCH else []
                names += ["specialists"] if self._calibration is not None else []

        def gates() -> np.ndarray:
            if self._gates is None or self._calibration is None:
                self._gates = np.concatenate([modes.gates(*batch)[0] for batch in self._batches(known)])
            return self._gates

        learning = {"specialists": modes.specialists, "dynamic": modes.dynamic}
        made: dict[str, Mode] = {}
        for name in names:
            run = learning[name](gates()) if name in learning else modes.dense()
            if run not in made.values():  # "dynamic" and "specialists" are "dense" where no variant is worth it
                made[name] = run
        self.chosen[size] = self.mode
        if self.mode == "auto":
            taken = {name: best_seconds(functools.partial(run, example, size)) for name, run in made.items()}
            self.seconds[size], self.chosen[size] = taken, min(taken, key=lambda name: taken[name])
        return made[self.chosen[size]]

    def _make_network(self, image_size: int) -> Network:
        """Makes the programs; by XLA, too, where "auto" is to decide and ONNX Runtime does not run them."""
        model, engine = self.model, choose_engine(self._engine)
        if self.mode == "compact":
            options: Any = dict(batch_sizes=self.batch_sizes, data=self._data, tune=False, engine=self._engine)
            model = compact_model(model, Predictor(model, "dense", **options)(self._calibration).gates)
        network = Network(model, image_size, engine)
        if self._engine == "auto" and engine != "xla":
            try:
                network.make("whole")
            except UserError:  # an operation that ONNX or ONNX Runtime does not have, or a type such as bfloat16
                return Network(model, image_size, "xla")
        return network
