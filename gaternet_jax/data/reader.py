"""Reads images of a prepared TFDS split at the size that the model takes."""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from gaternet_jax.config import Config
from gaternet_jax.data.images import center_box, random_box, read_box
from gaternet_jax.errors import UserError

_protos: Any = tf_example_pb2  # made at run time, unknown to type checkers


class Reader:
    """Images and labels by index.

    Args:
        builder: from `find_dataset`.
        split: a split's name, or part of one: "train", "train[:5000]", "test".
        config: the whole config of the run.

    Attributes:
        name: for people: "imagenet2012/train".
        shape: of an image: (size, size, channels).

    Raises:
        UserError: no such split, or an empty one.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, config: Config):
        self.name = f"{builder.name}/{split}"
        data = config.data
        self.shape = (data.image_size, data.image_size, config.model.channels)
        self._center = functools.partial(center_box, fraction=data.eval_crop)
        self._random = functools.partial(random_box, area=tuple(data.crop_area), aspect=tuple(data.crop_aspect))
        self._resize, self._background, self._skip = data.resize, tuple(data.background), data.on_error == "skip"
        try:
            as_data_source: Any = builder.as_data_source  # mistyped in TFDS
            self._records = as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        except (ValueError, KeyError) as error:
            splits = ", ".join(builder.info.splits)
            raise UserError(
                f"dataset '{builder.name}' has no images in split '{split}'; its splits are {splits} ({error})"
            ) from None

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> tuple[bytes, int]:
        """The encoded image and the label; whatever the container raises where it is damaged.

        Taken from the tf.Example directly: TFDS's own way costs a twentieth of the time that decoding takes.
        """
        features = _protos.Example.FromString(self._records[index]).features.feature
        return features["image"].bytes_list.value[0], features["label"].int64_list.value[0]

    def read(self, index: int, out: np.ndarray, random: Sequence[float] | None = None) -> int | None:
        """Reads an image: a random box of it, or its centre.

        Args:
            index: of the image.
            out: uint8 [*self.shape]; the pixels are written here.
            random: numbers that choose the box, see `random_box`; None: the centre.

        Returns:
            The label; None for an image that cannot be read if data.on_error = skip.

        Raises:
            UserError: the image cannot be read, and data.on_error = raise.
        """
        choose = self._center if random is None else functools.partial(self._random, random)
        source = f"image {index} of {self.name}"
        try:
            try:
                encoded, label = self.record(index)
            except (ValueError, RuntimeError, OSError, IndexError, DecodeError) as error:  # a damaged file
                raise UserError(f"{source} cannot be read: {error}") from None
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


class Unreadable:
    """Says which images of a split were left out, each once."""

    def __init__(self, name: str):
        self._name, self._said = name, set()

    def add(self, indices: np.ndarray) -> None:
        """Takes indices of images; those below 0 are none."""
        for index in sorted({int(index) for index in indices if index >= 0} - self._said):
            self._said.add(index)
            tqdm.write(f"Left out: image {index} of {self._name} cannot be read", file=sys.stderr)
