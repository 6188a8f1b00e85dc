"""One object over all ways to run a model."""

import copy
import functools
import operator
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.config import Config
from gaternet_jax.data.augment import normalize
from gaternet_jax.errors import UserError
from gaternet_jax.inference.calibration import run_model
from gaternet_jax.inference.compact import compact_model, expand
from gaternet_jax.inference.dynamic import make_dynamic
from gaternet_jax.inference.inputs import to_array
from gaternet_jax.inference.narrow import check_gated, is_narrow, narrow_model
from gaternet_jax.inference.parts import Parts, PartsRunner, choose_parts
from gaternet_jax.inference.selection import everything
from gaternet_jax.inference.specialists import Specialists, check_global, plan_specialists
from gaternet_jax.inference.tuning import ConvTimes, choose_algorithms
from gaternet_jax.inference.widths import BackboneTimes
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet, Outputs

MODES = ("dense", "compact", "specialists", "dynamic", "auto")
DYNAMIC_PART = 4  # "auto" tries per-image execution of parts up to here: more images open nearly all filters together
TRIALS = 5  # of each mode, for "auto"; the median counts

Array = Any  # of JAX or NumPy
Engine = Callable[[Array, int], Outputs]  # normalised images of one batch size, how many of them count


class Predictor:
    """Predicts with a model, in the way that suits it and this machine.

    dense: all filters, closed ones masked. compact: without the filters that calibration never opened; an
    approximation for images that would open one. specialists: narrower backbones for groups of images (large batches).
    dynamic: only the open filters of each unit, image by image (on accelerators: batches of one). auto: for each batch
    size, the fastest by measurement of dense, dynamic and, with calibration images, specialists. All but compact are
    exact.

    It may be called from several threads. The first call prepares it; `warm_up` does so ahead. A forked process cannot
    use it: JAX has threads, which a fork does not copy. Start processes with "spawn", and make a Predictor in each.

    Args:
        model: it is copied: outputs are those of its parameters now, in evaluation mode, whatever becomes of it later.
        mode: see above.
        calibration: images like those to come, [N, H, W, C], at least a few per class; for compact and specialists.
        batch_sizes: inputs are cut into batches of the largest, and the last one is padded to the next of these.
        data: the `data` part of the run's config: then images may be uint8, or files. None: normalised floats only.
        tune: measure convolutions on this machine, and choose algorithms and widths by it (some seconds to a minute);
            otherwise convolutions are XLA's, and fewer filters count as less time.

    Raises:
        UserError: no `GaterNet`, an unknown mode, one that the model cannot run in, batch sizes or data that cannot be,
            or calibration images that are missing, none, or of another shape.
    """

    def __init__(
        self,
        model: GaterNet,
        mode: str = "auto",
        calibration: np.ndarray | None = None,
        *,
        batch_sizes: Sequence[int] = (1, 64),
        data: Config | None = None,
        tune: bool = True,
    ):
        if not isinstance(model, GaterNet):
            raise UserError(f"the model is a {type(model).__name__}; expected a GaterNet, as of load_model(workdir)")
        if mode not in MODES:
            raise UserError(f"unknown mode '{mode}'; known: {', '.join(MODES)}")
        if data is not None and not hasattr(data, "image_size"):
            raise UserError("data must be the `data` part of a run's config: data=config.data")
        data = copy.deepcopy(data)
        self.model, self.mode, self.batch_sizes = _copied(model), mode, _checked_sizes(batch_sizes)
        self.chosen: dict[int, str] = {}  # the mode of each batch size
        self.seconds: dict[int, dict[str, float]] = {}  # of "auto": what each mode took
        self._data, self._tune, self._calibration = data, tune, None
        self._normalize = jax.jit(lambda images: normalize(images, data))
        self._engines: dict[tuple[int, int], Engine] = {}  # by image size and batch size
        self._times: dict[Parts, ConvTimes] = {}
        self._lock = threading.Lock()
        if mode in ("compact", "specialists", "dynamic"):
            check_gated(model)
        if mode == "specialists":
            check_global(model)
        if mode in ("compact", "specialists") and calibration is None:
            raise UserError(f"mode '{mode}' needs calibration images: pass calibration=[N, H, W, C]")
        if calibration is not None:
            self._calibration = self._checked(
                to_array(calibration, data, model.backbone.channels), "calibration images"
            )

    def __call__(self, images: Any) -> Outputs:
        """Predicts.

        Args:
            images: [B, H, W, C], normalised floats; or, with `data`, uint8 pixels. An array of NumPy or JAX, a tensor
                of PyTorch, or a list of images [H, W, C]. With `data` also image files and PIL images, one or a list,
                of any size: they are read as the run's evaluation images are.

        Returns:
            Arrays of NumPy, float32: logits [B, K], gates [B, G], gate_scores [B, G]. In compact mode, gates of filters
            that went are 0, their scores minus infinity; those of filters that lost their gate 1 and infinity.

        Raises:
            UserError: images of another shape, size or type, or files that cannot be read.
        """
        array = to_array(images, self._data, self.model.backbone.channels)
        checked = self._checked(array, "images")
        outputs: list[list[Array]] = []
        for start in range(0, len(checked), self.batch_sizes[-1]):
            batch = checked[start : start + self.batch_sizes[-1]]
            size = next(size for size in self.batch_sizes if size >= len(batch))
            padded = np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
            found = self._engine(batch.shape[1], size)(self._normalized(padded), len(batch))
            outputs.append(list(found))
        logits, gates, scores = (_joined(arrays) for arrays in zip(*outputs, strict=True))
        return Outputs(logits, gates, scores)

    def warm_up(self, image_size: int | None = None) -> "Predictor":
        """Prepares and compiles all batch sizes; of images of the calibration's or the config's size, or this one."""
        known = self._calibration.shape[1] if self._calibration is not None else self._data and self._data.image_size
        if not (size := image_size or known):
            raise UserError("warm_up needs the size of the images, pixels: warm_up(32)")
        for batch_size in self.batch_sizes:
            shape = (batch_size, size, size, self.model.backbone.channels)
            self._engine(size, batch_size)(self._normalized(self._example(shape)), batch_size)
        return self

    def _checked(self, images: np.ndarray, what: str) -> np.ndarray:
        images, channels = np.asarray(images), self.model.backbone.channels
        kinds = "normalised floats" if self._data is None else "uint8 pixels or normalised floats"
        fits = (images.dtype == np.uint8 and self._data is not None) or jnp.issubdtype(images.dtype, jnp.floating)
        square = images.ndim == 4 and images.shape[-1] == channels and images.shape[1] == images.shape[2]
        if not fits or not square or not len(images):
            raise UserError(
                f"{what} must be {kinds}, square, of shape [batch, size, size, {channels}], channels last, "
                f"at least one; got {images.dtype} {list(images.shape)}"
            )
        size, calibration = images.shape[1], self._calibration
        if self._data is not None and size != self._data.image_size:
            raise UserError(f"{what} are {size} pixels wide, but the model's are {self._data.image_size}; resize them")
        if calibration is not None and size != calibration.shape[1]:
            raise UserError(
                f"{what} are {size} pixels wide, but the calibration images are {calibration.shape[1]}; resize them"
            )
        return images

    def _normalized(self, images: np.ndarray) -> Array:
        """float32, on the device; uint8 crosses as such."""
        if images.dtype == np.uint8:
            return self._normalize(images)
        return jnp.asarray(images, jnp.float32)

    def _example(self, shape: tuple[int, ...]) -> np.ndarray:
        """Images to try a program on: calibration images, or noise."""
        if self._calibration is None:
            return np.random.default_rng(0).normal(size=shape).astype(np.float32)
        return np.resize(self._calibration, shape)

    def _engine(self, image_size: int, batch_size: int) -> Engine:
        with self._lock:
            if (image_size, batch_size) not in self._engines:
                self._engines[image_size, batch_size] = self._make(image_size, batch_size)
            return self._engines[image_size, batch_size]

    def _make(self, image_size: int, batch_size: int) -> Engine:
        if self.mode != "auto":
            self.chosen[batch_size] = self.mode
            return self._make_mode(self.mode, image_size, batch_size)
        modes = ["dense"]
        if (
            self.model.gate_sites
            and choose_parts(batch_size, image_size, True).size <= DYNAMIC_PART
            and not is_narrow(self.model)
        ):
            modes.append("dynamic")
        if self._calibration is not None and self.model.gater is not None:
            modes.append("specialists")
        engines = {mode: self._make_mode(mode, image_size, batch_size) for mode in modes}
        example = self._normalized(self._example((batch_size, image_size, image_size, self.model.backbone.channels)))
        taken = {mode: _median_seconds(engine, example) for mode, engine in engines.items()}
        self.seconds[batch_size], self.chosen[batch_size] = taken, min(taken, key=lambda mode: taken[mode])
        return engines[self.chosen[batch_size]]

    def _make_mode(self, mode: str, image_size: int, batch_size: int) -> Engine:
        model, sites = self.model, self.model.gate_sites
        parts = choose_parts(batch_size, image_size, one_by_one=mode == "dynamic")
        times = self._times.setdefault(parts, ConvTimes(parts)) if self._tune else None
        if mode == "dense":
            return compiled(choose_algorithms(narrow_model(model, everything(sites)), image_size, times), parts)
        if mode == "dynamic":
            return compiled(make_dynamic(model, image_size, times), parts)
        backbone_times = times and BackboneTimes(model, image_size, times)
        if mode == "specialists":
            plan = plan_specialists(self._gates, sites, backbone_times, batch_size)
            return Specialists(model, plan, image_size, PartsRunner(parts), times)
        compacted, selection = compact_model(model, self._gates, backbone_times)
        run = compiled(choose_algorithms(compacted, image_size, times), parts)
        return lambda images, count: expand(run(images, count), sites, selection)

    @functools.cached_property
    def _gates(self) -> Array:
        """Of the calibration images, [N, G]."""
        assert self._calibration is not None
        model = narrow_model(self.model, everything(self.model.gate_sites))  # in evaluation mode
        return run_model(model, self._calibration, self._data if self._calibration.dtype == np.uint8 else None).gates


def _copied(model: GaterNet) -> GaterNet:
    """A copy with arrays of its own: the model's may be given away to a training step."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jnp.copy, state))


def _checked_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(sorted({operator.index(size) for size in batch_sizes}))
    except TypeError:
        sizes = ()
    if not sizes or sizes[0] < 1:
        raise UserError(f"batch_sizes={batch_sizes} must be whole numbers greater than 0, e.g. (1, 64)")
    return sizes


def _joined(arrays: Sequence[Array]) -> Array:
    return np.concatenate(arrays)


def compiled(model: GaterNet, parts: Parts) -> Engine:
    """Runs a model on batches that are cut into parts."""
    graphdef, params, stats = split_model(model)
    forward = jax.jit(lambda params, stats, images, chosen: merge_model(graphdef, params, stats)(images[chosen]))
    return functools.partial(PartsRunner(parts), functools.partial(forward, params, stats))


def _median_seconds(engine: Engine, images: Array) -> float:
    engine(images, len(images))  # compiles
    taken = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        engine(images, len(images))
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))
