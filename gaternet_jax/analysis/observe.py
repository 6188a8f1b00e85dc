"""One pass over a split: every image's gates, prediction and confidence; what all analyses start from."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np

from gaternet_jax.analysis.image_source import Source, split_source
from gaternet_jax.config import RunConfig
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.errors import UserError
from gaternet_jax.gating import GateSite
from gaternet_jax.models.functional import Tree, merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.progress import progress_bar
from gaternet_jax.training.checkpoint import load_model
from gaternet_jax.training.mesh import make_mesh, replicate, split_by_batch
from gaternet_jax.validation import validate
from gaternet_jax.workdir import load_config, load_labels, local_folder

MAX_SIDE = 96  # pixels of a thumbnail
MAX_BYTES = 512 * 2**20  # of all thumbnails


@dataclasses.dataclass(frozen=True)
class Observations:
    """Holds what a model did with the images of a split, in the split's order.

    Attributes:
        gates: bool [N, G].
        labels: int32 [N]; -1 where an image's class is not known.
        predictions: int32 [N], the most probable class.
        confidences: float32 [N], its probability.
        macs: float32 [N], multiply-accumulates of the backbone with the open filters, relative to dense.
        sites: which gates belong to which convolution.
        class_names: by label.
    """

    gates: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray
    macs: np.ndarray
    sites: tuple[GateSite, ...]
    class_names: tuple[str, ...]


class Observed(NamedTuple):
    """Holds what a pass over images leaves.

    Attributes:
        observations: of all images.
        thumbnails: uint8 [N, H, W, C].
        sample: int64 [S], numbers of some images, evenly spaced, ascending.
        images: uint8 [S, H, W, C], these as the model takes them.
    """

    observations: Observations
    thumbnails: np.ndarray
    sample: np.ndarray
    images: np.ndarray


def observe(workdir: str | Path, split: str | None = None, data_dir: str = "") -> tuple[Observations, np.ndarray]:
    """Passes a split through the best checkpoint of a workdir.

    Args:
        workdir: of a training run or a conversion.
        split: a split's name or a part of one; None: the split that the run evaluates on.
        data_dir: folder of the prepared datasets; "": as in the run's config.

    Returns:
        What the model did, and thumbnails uint8 [N, H, W, C], see `thumbnail_size`.

    Raises:
        UserError: no checkpoint there, a model without gates, or no such images.
    """
    config, class_names = load_config(workdir), load_labels(workdir)
    observed = pass_images(load_gated(workdir), config, split_source(workdir, config, split, data_dir), class_names)
    return observed.observations, observed.thumbnails


def load_gated(workdir: str | Path) -> GaterNet:
    """Loads the best model of a workdir, in evaluation mode.

    Raises:
        UserError: no checkpoint there, or a model without gates.
    """
    if not local_folder(workdir).is_dir():
        raise UserError(f"{workdir} is not a folder; give the --workdir of a training run or the --out of a conversion")
    config = load_config(workdir)
    if config.model.gating == "none":
        raise UserError(
            f"the model in {workdir} is a plain {config.model.backbone}: it has no gates (model.gating=none), and "
            "gates are what is analysed. Give the workdir of a gated model: one with --config.model.gating=all"
        )
    model = load_model(workdir, tell=True)
    if not model.gate_sites:
        raise UserError(
            f"the model in {workdir} has no gates left, because compaction found them always open: there is nothing to "
            "analyse. Give the workdir that it was compacted from"
        )
    return model


def thumbnail_size(num_images: int, image_size: int, channels: int) -> int:
    """Gives thumbnails' height and width, pixels: the image's own, at most MAX_SIDE, less if they outgrow MAX_BYTES."""
    fits = math.isqrt(MAX_BYTES // max(num_images * channels, 1))
    return max(min(image_size, MAX_SIDE, fits), 1)


def pass_images(
    model: GaterNet, config: RunConfig, source: Source, class_names: Sequence[str], sample: int = 0
) -> Observed:
    """Passes images through a model, batch by batch, with a progress bar.

    Args:
        model: in evaluation mode, with gates.
        config: the whole config of its run.
        source: the images.
        class_names: by label.
        sample: how many images to keep as the model takes them.

    Raises:
        UserError: no image can be read.
    """
    validate(config, num_devices=1)
    devices = jax.devices()
    mesh = make_mesh(devices[: math.gcd(config.train.eval_batch_size, len(devices))])  # that divide a batch
    graphdef, params, stats = split_model(model)
    params, stats = replicate((params, stats), mesh)
    macs = MacCounter(model, config.data.image_size)
    side = thumbnail_size(source.num_images, config.data.image_size, config.model.channels)

    @jax.jit
    def look(params: Tree, stats: Tree, images: jax.Array) -> tuple[jax.Array, ...]:
        outputs = merge_model(graphdef, params, stats)(normalize(images, config.data))
        confidence = jax.nn.softmax(outputs.logits).max(-1)
        return outputs.gates > 0.5, outputs.logits.argmax(-1), confidence, macs.fraction(outputs.gates)

    wanted = np.linspace(0, source.num_images - 1, min(sample, source.num_images)).round().astype(np.int64)
    seen: list[tuple[np.ndarray, ...]] = []
    thumbnails, numbers, kept = [], [np.zeros(0, np.int64)], []
    done = 0
    with progress_bar(f"Gates of {source.name}", source.num_images, unit="image") as bar:
        for batch in source.batches():
            on_devices = jax.device_put(batch["image"], split_by_batch(mesh))
            outputs = jax.device_get(look(params, stats, on_devices))
            real = batch["mask"]  # neither padding nor unreadable
            images = batch["image"][real]
            gates, *others = (np.asarray(output)[real] for output in outputs)
            seen.append((np.packbits(gates, axis=1), batch["label"][real], *others))
            thumbnails.append(_shrink(images, side))
            chosen = np.flatnonzero(np.isin(done + np.arange(len(images)), wanted))
            numbers.append(done + chosen)
            kept.append(images[chosen])
            done += len(images)
            bar.update(len(images))
    if not done:
        raise UserError(f"no image of {source.name} can be used: none can be read and has a label")
    packed, labels, predictions, confidences, relative = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    num_gates = sum(site.size for site in model.gate_sites)
    observations = Observations(
        gates=np.unpackbits(packed, axis=1, count=num_gates).view(bool),
        labels=labels.astype(np.int32),
        predictions=predictions.astype(np.int32),
        confidences=confidences.astype(np.float32),
        macs=relative.astype(np.float32),
        sites=model.gate_sites,
        class_names=tuple(class_names),
    )
    return Observed(observations, np.concatenate(thumbnails), np.concatenate(numbers), np.concatenate(kept))


def _shrink(images: np.ndarray, side: int) -> np.ndarray:
    if images.shape[1] == side:
        return images.copy()  # not a view of the whole batch
    shape = (len(images), side, side, images.shape[-1])
    small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
    return np.array(small, np.uint8).reshape(shape)  # OpenCV drops an axis of one channel


def save_observations(path: Path, observations: Observations) -> None:
    """Writes an .npz: gates (bits of bool [N, G] as of np.packbits), shape [N, G], labels, predictions, confidences,
    macs, class_names, and per site its name and size; `load_observations` is the inverse.
    """
    np.savez_compressed(
        path,
        gates=np.packbits(observations.gates),
        shape=np.array(observations.gates.shape),
        labels=observations.labels,
        predictions=observations.predictions,
        confidences=observations.confidences,
        macs=observations.macs,
        class_names=np.array(observations.class_names, dtype=np.str_),
        site_names=np.array([site.name for site in observations.sites], dtype=np.str_),
        site_sizes=np.array([site.size for site in observations.sites]),
    )


def load_observations(path: Path) -> Observations:
    """Reads what `save_observations` wrote."""
    with np.load(path) as saved:
        rows, columns = saved["shape"]
        names, sizes = saved["site_names"].tolist(), saved["site_sizes"].tolist()
        return Observations(
            gates=np.unpackbits(saved["gates"], count=rows * columns).view(bool).reshape(rows, columns),
            labels=saved["labels"],
            predictions=saved["predictions"],
            confidences=saved["confidences"],
            macs=saved["macs"],
            sites=tuple(map(GateSite, names, itertools.accumulate(sizes, initial=0), sizes)),
            class_names=tuple(map(str, saved["class_names"])),
        )
