"""Large datasets: read and decoded anew for every batch, by Grain, in threads or processes.

numbers of chunks, in order -> Grain: read, decode, crop (in parallel) -> batches

A chunk is a few images that follow each other in a batch. Which images, and where they are cut, are pure functions of
seed and step; hence a run resumes from its step number alone, with any number of processes, threads or workers.
"""

import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator

import cv2
import grain
import numpy as np
from absl import flags

from gaternet_jax.config import RunConfig
from gaternet_jax.data.batches import Batch, BatchShard, Split, train_batch_indices
from gaternet_jax.data.images import BOX_NUMBERS
from gaternet_jax.data.reader import LeftOut, Reader
from gaternet_jax.errors import UserError
from gaternet_jax.signals import spared_children

CHUNK = 32  # images; keeps Grain's work per element small beside decoding, and all threads busy on one batch
CROPS = 1  # sets the random numbers of crops apart from those of the order of images, [seed, epoch]


class StreamSplit(Split):
    """Reads a split, and decodes it as it is needed.

    Args:
        reader: of the split.
        config: the whole config of the run.
        shard: the part of each batch that is wanted; no more is read.
    """

    def __init__(self, reader: Reader, config: RunConfig, shard: BatchShard):
        self.name, self.num_images = reader.name, len(reader)
        self._reader, self._shard = reader, shard
        self._threads = config.data.threads or os.cpu_count() or 1
        self._workers = config.data.workers
        self._random = config.data.train_crop == "random"
        cv2.setNumThreads(0)  # images are already read in parallel

    def train_batches(self, batch_size: int, seed: int, first_step: int) -> Iterator[Batch]:
        chunks = _Chunks(self._reader, batch_size, self._shard.rows(batch_size))
        read = _TrainChunk(chunks, seed, self._random)
        return self._batches(read, chunks, first_step, sys.maxsize // CHUNK // batch_size)

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        chunks = _Chunks(self._reader, batch_size, self._shard.rows(batch_size))
        return self._batches(_EvalChunk(chunks), chunks, 0, -(-self.num_images // batch_size))

    def _batches(self, read: Callable[[int], Batch], chunks: "_Chunks", start: int, stop: int) -> Iterator[Batch]:
        per_batch = chunks.per_batch
        ahead = 2 * max(per_batch, self._threads)  # two batches
        dataset = grain.MapDataset.range(start * per_batch, stop * per_batch).map(read)
        dataset = dataset.to_iter_dataset(grain.ReadOptions(self._threads, ahead))
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain looks at its flags there; a program without absl parses none
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(self._workers, ahead))
        iterator, left_out = iter(dataset), LeftOut(self._reader)
        with spared_children():  # workers start at the first chunk
            first = list(itertools.islice(iterator, 1))
        iterator = itertools.chain(first, iterator)
        while parts := list(itertools.islice(iterator, per_batch)):
            batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            left_out.add(batch.pop("left_out"))
            yield batch


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Cuts this process's rows of a batch into chunks."""

    reader: Reader
    batch_size: int
    rows: slice

    @property
    def size(self) -> int:
        return math.gcd(self.rows.stop - self.rows.start, CHUNK)

    @property
    def per_batch(self) -> int:
        return (self.rows.stop - self.rows.start) // self.size

    def locate(self, number: int) -> tuple[int, range]:
        """Gives the number of a chunk's batch, and the rows of that batch which the chunk holds."""
        step, part = divmod(number, self.per_batch)
        first = self.rows.start + part * self.size
        return step, range(first, first + self.size)

    def empty(self) -> Batch:
        return {
            "image": np.zeros((self.size, *self.reader.shape), np.uint8),
            "label": np.zeros(self.size, np.int32),
            "mask": np.zeros(self.size, bool),
            "left_out": np.full(self.size, -1),  # index of the image that should be here but cannot be used
        }


@dataclasses.dataclass(frozen=True)
class _TrainChunk:
    """Reads a chunk of a training batch."""

    chunks: _Chunks
    seed: int
    random: bool

    def __call__(self, number: int) -> Batch:
        step, rows = self.chunks.locate(number)
        count = len(self.chunks.reader)
        indices = train_batch_indices(count, self.chunks.batch_size, self.seed, step)
        chunk = self.chunks.empty()
        numbers = np.random.default_rng([self.seed, step, CROPS]).random((self.chunks.batch_size, BOX_NUMBERS))
        for place, row in enumerate(rows):
            random = numbers[row].tolist() if self.random else None
            for offset in range(count):  # in place of one that cannot be used, the next one that can
                index = int(indices[row] + offset) % count
                label = self.chunks.reader.read(index, chunk["image"][place], random)
                if label is not None:
                    chunk["label"][place], chunk["mask"][place] = label, offset == 0
                    break
                chunk["left_out"][place] = indices[row]
            else:
                raise UserError(f"no image of {self.chunks.reader.name} can be used: {self.chunks.reader.fault(0)}")
        return chunk


@dataclasses.dataclass(frozen=True)
class _EvalChunk:
    """Reads a chunk of an evaluation batch."""

    chunks: _Chunks

    def __call__(self, number: int) -> Batch:
        batch, rows = self.chunks.locate(number)
        chunk = self.chunks.empty()
        for place, row in enumerate(rows):
            index = batch * self.chunks.batch_size + row
            if index >= len(self.chunks.reader):
                break
            label = self.chunks.reader.read(index, chunk["image"][place])
            chunk["label"][place], chunk["mask"][place] = (-1, False) if label is None else (label, True)
            chunk["left_out"][place] = index if label is None else -1
        return chunk
