"""Small datasets: decoded once into uint8 memory, batches by index; the memory is the host's or the devices'."""

import math
import os
from collections.abc import Iterator

import numpy as np

from gaternet_jax.data.batches import Batch, BatchShard, Split, pad_rows, train_batch_indices
from gaternet_jax.data.reader import LeftOut, Reader
from gaternet_jax.errors import UserError
from gaternet_jax.progress import progress_bar


class MemorySplit(Split):
    """Holds a split in memory.

    Args:
        name: for people.
        images: uint8 [N, H, W, C].
        labels: int32 [N].
        usable: bool [N]; False where the image and the label are another's.
        shard: the part of each batch that is wanted.
    """

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, usable: np.ndarray, shard: BatchShard):
        self.name, self.num_images = name, len(labels)
        self.images, self.labels, self._usable, self._shard = images, labels, usable, shard

    def train_batches(self, batch_size: int, seed: int, first_step: int) -> Iterator[Batch]:
        step, rows = first_step, self._shard.rows(batch_size)
        while True:
            indices = train_batch_indices(self.num_images, batch_size, seed, step)[rows]
            yield self._pixels(indices) | {"label": self.labels[indices], "mask": self._usable[indices]}
            step += 1

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        rows = self._shard.rows(batch_size)
        for start in range(0, self.num_images, batch_size):
            indices = np.arange(start + rows.start, min(start + rows.stop, self.num_images))
            usable = self._usable[indices]
            part = self._pixels(indices) | {
                "label": np.where(usable, self.labels[indices], -1).astype(np.int32),
                "mask": usable,
            }
            yield {name: pad_rows(values, rows.stop - rows.start) for name, values in part.items()}

    def _pixels(self, indices: np.ndarray) -> Batch:
        return {"image": self.images[indices]}


class DeviceSplit(MemorySplit):
    """Holds a split whose images are to lie on the devices; its batches have indices of images instead of images."""

    @property
    def resident(self) -> np.ndarray:
        return self.images

    def _pixels(self, indices: np.ndarray) -> Batch:
        return {"index": indices.astype(np.int32)}


def decoded_size(reader: Reader) -> int:
    """Counts the bytes that a split takes, decoded."""
    return len(reader) * math.prod(reader.shape)


def host_memory() -> int:
    """Tells how many bytes of memory this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load_split(reader: Reader, shard: BatchShard, kind: type[MemorySplit] = MemorySplit) -> MemorySplit:
    """Reads and decodes a whole split, with a progress bar.

    Args:
        reader: of the split; the centres of its images are taken.
        shard: the part of each batch that is wanted. The whole split is kept.
        kind: MemorySplit or DeviceSplit.

    Raises:
        UserError: the split takes more than half of the memory, or an image cannot be read (see `Reader.read`).
    """
    count, memory, needed = len(reader), host_memory(), decoded_size(reader)
    if needed > memory // 2:
        raise UserError(
            f"split '{reader.name}' takes {needed / 2**30:.0f} GiB decoded, more than half of this machine's memory; "
            f"read it as a stream (--config.data.pipeline=stream) or take a part of it, e.g. "
            f"'{reader.split}[:{count * memory // 2 // needed}]'"
        )
    images, labels = np.empty((count, *reader.shape), np.uint8), np.full(count, -1, np.int32)
    with progress_bar(f"Decoding {reader.name}", count, unit="image") as bar:
        for index in range(count):
            label = reader.read(index, images[index])
            if label is not None:
                labels[index] = label
            bar.update()
    usable = labels >= 0
    if not usable.all():
        LeftOut(reader).add(np.flatnonzero(~usable))
        good = np.flatnonzero(usable)
        if not good.size:
            raise UserError(f"no image of {reader.name} can be used: {reader.fault(0)}")
        for index in np.flatnonzero(~usable):  # the next one that can be used, as in a stream
            images[index], labels[index] = (
                held[good[np.searchsorted(good, index) % good.size]] for held in (images, labels)
            )
    return kind(reader.name, images, labels, usable, shard)
