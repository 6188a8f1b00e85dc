"""Reads images of a prepared TFDS split at the size that the model takes."""

import contextlib
import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from gaternet_jax.config import RunConfig
from gaternet_jax.data.images import center_box, random_box, read_box
from gaternet_jax.errors import UserError

_protos: Any = tf_example_pb2  # made at run time, unknown to type checkers
DAMAGE = (ValueError, RuntimeError, OSError, IndexError, DecodeError)  # what the container raises for a damaged file
SAMPLE = 64  # records whose labels are looked at when a split is opened
LISTED = 20  # images left out that are named
UNLABELLED = (
    "; choose a split whose images have labels (data.train_split, data.eval_split), or leave such images out: "
    "--config.data.on_error=skip"
)


class Reader:
    """Reads images and labels by index.

    Args:
        builder: from `find_dataset`.
        split: a split's name, or part of one: "train", "train[:5000]", "test".
        config: the whole config of the run.
        labels: the model's label of each class of the dataset; None: the same.

    Attributes:
        name: for people: "imagenet2012/train".
        shape: of an image: (size, size, channels).

    Raises:
        UserError: no such split, or an empty one; or, unless data.on_error = skip, one with images without a label of
            the dataset's classes (a sample is looked at; `read` looks at each).
    """

    def __init__(
        self, builder: tfds.core.DatasetBuilder, split: str, config: RunConfig, labels: Sequence[int] | None = None
    ):
        self.name, self.split = f"{builder.name}/{split}", split
        features: Any = builder.info.features
        self._labels = range(features["label"].num_classes) if labels is None else labels
        data = config.data
        self.shape = (data.image_size, data.image_size, config.model.channels)
        self._center = functools.partial(center_box, fraction=data.eval_crop)
        self._random = functools.partial(random_box, area=data.crop_area, aspect=data.crop_aspect)
        self._resize, self._background, self._skip = data.resize, tuple(data.background), data.on_error == "skip"
        self._records = _open_records(builder, split)
        if not self._skip:
            for index, label in _sample_labels(self._records).items():
                self._to_model(label, f"image {index} of {self.name}", UNLABELLED)

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> tuple[bytes, int]:
        """Reads the encoded image and the label; raises whatever the container does where it is damaged.

        Taken from the tf.Example directly: TFDS's own way costs a twentieth of the time that decoding takes.
        """
        return _parse(self._records[index])

    def read(self, index: int, out: np.ndarray, random: Sequence[float] | None = None) -> int | None:
        """Reads an image: a random box of it, or its centre.

        Args:
            index: of the image.
            out: uint8 [*self.shape]; the pixels are written here.
            random: numbers that choose the box, see `random_box`; None: the centre.

        Returns:
            The model's label; None for an image that cannot be read or has no label, if data.on_error = skip.

        Raises:
            UserError: the image cannot be read or has no label, and data.on_error = raise.
        """
        choose = self._center if random is None else functools.partial(self._random, random)
        source = f"image {index} of {self.name}"
        try:
            try:
                encoded, label = self.record(index)
            except DAMAGE as error:
                raise UserError(f"{source} cannot be read: {error}") from None
            label = self._to_model(label, source)
            size, _, channels = self.shape
            read_box(
                encoded,
                choose,
                size,
                channels=channels,
                resize=self._resize,
                fast=random is not None,
                background=self._background,
                source=source,
                out=out,
            )
        except UserError as error:
            if self._skip:
                return None
            raise UserError(f"{error}. To go on without such images: --config.data.on_error=skip") from None
        return label

    def fault(self, index: int) -> str:
        """Says why an image was left out."""
        source = f"image {index} of {self.name}"
        try:
            self._to_model(self.record(index)[1], source)
        except UserError as error:
            return str(error)
        except DAMAGE:
            pass
        return f"{source} cannot be read"

    def _to_model(self, label: int, source: str, advice: str = "") -> int:
        if 0 <= label < len(self._labels):
            return self._labels[label]
        what = "no label" if label < 0 else f"a label outside of the {len(self._labels)} classes"
        raise UserError(f"{source} has {what} ({label}){advice}")


def has_labels(builder: tfds.core.DatasetBuilder, split: str) -> bool:
    """Tells whether images of a split have labels, as far as a sample shows; those of some test splits have -1."""
    return any(label >= 0 for label in _sample_labels(_open_records(builder, split)).values())


def _open_records(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[bytes]:
    as_data_source: Any = builder.as_data_source  # mistyped in TFDS
    try:
        return as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except (ValueError, KeyError) as error:
        splits = ", ".join(builder.info.splits)
        raise UserError(
            f"dataset '{builder.name}' has no images in split '{split}'; its splits are {splits} ({error})"
        ) from None


def _parse(record: bytes) -> tuple[bytes, int]:
    features = _protos.Example.FromString(record).features.feature
    labels = features["label"].int64_list.value
    return features["image"].bytes_list.value[0], labels[0] if labels else -1


def _sample_labels(records: Sequence[bytes]) -> dict[int, int]:
    """Reads a sample of the labels, by index; a damaged record has none here."""
    found = {}
    for index in np.unique(np.linspace(0, len(records) - 1, SAMPLE).astype(int)).tolist():
        with contextlib.suppress(*DAMAGE):
            found[index] = _parse(records[index])[1]
    return found


class LeftOut:
    """Says which images of a split were left out, each once, and why."""

    def __init__(self, reader: Reader):
        self._reader, self._said = reader, set()

    def add(self, indices: np.ndarray) -> None:
        """Takes indices of images to report; those below 0 are none."""
        for index in sorted({int(index) for index in indices if index >= 0} - self._said):
            self._said.add(index)
            if len(self._said) <= LISTED:
                tqdm.write(f"Left out: {self._reader.fault(index)}", file=sys.stderr)
            elif len(self._said) == LISTED + 1:
                tqdm.write(f"Left out: further images of {self._reader.name}", file=sys.stderr)
