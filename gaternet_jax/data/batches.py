"""Which images make up which batch: a pure function of seed and step, for any pipeline and number of processes."""

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from gaternet_jax.errors import UserError

# image uint8 [B, H, W, C], or index int32 [B] of images that are on the devices; label int32 [B]; mask bool [B], False
# where a position does not hold the image that it should: in training a substitute for one that cannot be used; in
# evaluation padding, or, with label -1, one that cannot be read or has no label.
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class BatchShard:
    """Says which part of each batch a process provides: the rows of its devices, which follow each other."""

    index: int
    count: int

    def rows(self, batch_size: int) -> slice:
        """Gives the rows of a batch of `batch_size` images, a multiple of the number of processes."""
        size = batch_size // self.count
        return slice(self.index * size, (self.index + 1) * size)


class Split(ABC):
    """Gives a split of a dataset as batches; of each batch only this process's shard.

    Attributes:
        name: for people: "imagenet2012/train".
        num_images: in the whole split.
        resident: all images, uint8 [N, H, W, C], if batches have their indices ("index") in place of images: whoever
            uses the batches holds these on the devices.
    """

    name: str
    num_images: int

    @property
    def resident(self) -> np.ndarray | None:
        return None

    @abstractmethod
    def train_batches(self, batch_size: int, seed: int, first_step: int) -> Iterator[Batch]:
        """Gives training batches from `first_step` on, without end; `batch_size` images over all processes."""

    @abstractmethod
    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Gives every image once, in order; the last batch is filled up with zeros whose mask is False."""


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Counts the whole batches in an epoch; the images left over differ from epoch to epoch.

    Raises:
        UserError: fewer images than one batch.
    """
    if num_images < batch_size:
        raise UserError(f"train.batch_size={batch_size} is more than the {num_images} training images")
    return num_images // batch_size


def pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
    """Adds rows of zeros up to a size: one compiled program then serves the last batch, too."""
    return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def train_batch_indices(num_images: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Says which images make up training batch `step`: a pure function of its arguments.

    Each epoch is one permutation, of which batches take consecutive parts.

    Returns:
        int64 [batch_size].
    """
    epoch, position = divmod(step, steps_per_epoch(num_images, batch_size))
    return _permutation(num_images, seed, epoch)[position * batch_size : (position + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_images)
