"""Small datasets: decoded once into uint8 memory, batches by index."""

import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from gaternet_jax.config import Config
from gaternet_jax.data.images import decode_image, resize_and_center_crop
from gaternet_jax.errors import UserError
from gaternet_jax.progress import progress_bar

Batch = dict[str, np.ndarray]

READ_SIZE = 256  # records fetched at once


class Split(NamedTuple):
    """A split in memory: images uint8 [N, H, W, C], labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


def load_split(builder: tfds.core.DatasetBuilder, split: str, config: Config) -> Split:
    """Reads and decodes a whole split, with a progress bar.

    Args:
        builder: from `find_dataset`.
        split: a split's name, or part of one: "train", "train[:5000]", "test".
        config: the whole config of the run; images are brought to its data.image_size and model.channels.

    Raises:
        UserError: no such split, an empty one, or an image that cannot be decoded (named by its position).
    """
    try:
        as_data_source: Any = builder.as_data_source  # mistyped in TFDS
        source = as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except (ValueError, KeyError) as error:
        splits = ", ".join(builder.info.splits)
        raise UserError(
            f"dataset '{builder.name}' has no images in split '{split}'; its splits are {splits} ({error})"
        ) from None
    size, channels = config.data.image_size, config.model.channels
    needed, memory = len(source) * size * size * channels, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory // 2:
        raise UserError(
            f"split '{split}' of dataset '{builder.name}' takes {needed / 2**30:.0f} GiB decoded, more than half of "
            f"this machine's memory; take a part of it, e.g. '{split}[:{len(source) * memory // 2 // needed}]'"
        )
    images = np.empty((len(source), size, size, channels), np.uint8)
    labels = np.empty(len(source), np.int32)
    with progress_bar(f"Decoding {builder.name}/{split}", len(source), unit="image") as bar:
        for start in range(0, len(source), READ_SIZE):
            indices = range(start, min(start + READ_SIZE, len(source)))
            for index, record in zip(indices, source.__getitems__(list(indices)), strict=True):
                image = decode_image(record["image"], channels, f"image {index} of {builder.name}/{split}")
                images[index] = resize_and_center_crop(image, size)
                labels[index] = record["label"]
            bar.update(len(indices))
    return Split(images, labels)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches in an epoch; the images left over differ from epoch to epoch.

    Raises:
        UserError: fewer images than one batch.
    """
    if num_images < batch_size:
        raise UserError(f"train.batch_size={batch_size} is more than the {num_images} training images")
    return num_images // batch_size


def train_batch_indices(num_images: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Which images make up training batch `step`: a pure function of its arguments.

    Each epoch is one permutation, of which batches take consecutive parts.

    Returns:
        int64 [batch_size].
    """
    epoch, position = divmod(step, steps_per_epoch(num_images, batch_size))
    return _permutation(num_images, seed, epoch)[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def train_batches(split: Split, batch_size: int, seed: int, first_step: int) -> Iterator[Batch]:
    """Training batches from `first_step` on, without end."""
    step = first_step
    while True:
        indices = train_batch_indices(len(split.labels), batch_size, seed, step)
        yield {"image": split.images[indices], "label": split.labels[indices]}
        step += 1


def eval_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """Every image once, in order; the last batch is filled up with images whose mask is False."""
    for start in range(0, len(split.labels), batch_size):
        images, labels = split.images[start : start + batch_size], split.labels[start : start + batch_size]
        missing = batch_size - len(labels)
        yield {
            "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(labels, (0, missing)),
            "mask": np.arange(batch_size) < len(labels),
        }
