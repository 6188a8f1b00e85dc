"""Image files to the records of a dataset. Worker processes import this: no JAX here."""

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image
from tensorflow_datasets.proto import tf_example_pb2

from gaternet_jax.data.images import decode_image
from gaternet_jax.data.shards import Corrupt

_protos: Any = tf_example_pb2  # made at run time, unknown to type checkers

UPRIGHT = 1  # the EXIF orientation of a picture that needs no turning
FORMATS = ("JPEG", "MPO", "PNG", "WEBP")  # MPO: a JPEG, and further pictures behind it that other readers ignore


class ImageFile(NamedTuple):
    """Where an image lies: a file of its own below a folder, or a part of a tar archive.

    Attributes:
        base: the folder, or the archive.
        name: the path below it; the record's file_name.
        label: of its class.
        size: bytes.
        offset: where in the archive it begins, bytes; None if it is a file of its own.
    """

    base: str
    name: str
    label: int
    size: int
    offset: int | None = None

    @property
    def path(self) -> str:
        return f"{self.base}/{self.name}"

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            OSError: it cannot be read.
        """
        if self.offset is None:
            return Path(self.path).read_bytes()
        with Path(self.base).open("rb") as archive:
            archive.seek(self.offset)
            return archive.read(self.size)


class ImageExamples:
    """The images of a shard, checked and serialized one after the other; see `Examples` in shards.py."""

    def __init__(self, images: list[ImageFile]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[bytes | Corrupt]:
        for image in self.images:
            try:
                encoded = image.read()
            except OSError as error:
                yield Corrupt(image.path, f"cannot be read: {error.strerror}")
                continue
            try:
                encoded = to_store(encoded)
            except Exception as error:  # Pillow raises whatever its parsers meet in a broken file
                reason = str(error) or type(error).__name__
                yield Corrupt(image.path, reason.partition(" <_io.BytesIO")[0].strip())
                continue
            yield serialize(encoded, image.label, image.name)


def to_store(encoded: bytes) -> bytes:
    """The bytes that the dataset holds for an image file: its own, if every reader sees in them what people see.

    That is so for upright JPEG, PNG and WebP of 8 bits, RGB or gray. Of anything else (turned by EXIF, CMYK, 16 bits,
    palette, alpha, animated) `decode_image` makes RGB pixels, stored as PNG.

    Raises:
        Exception: not an image, or a broken one (every image is decoded to the end); of the kinds that Pillow raises.
    """
    if not encoded:
        raise ValueError("is an empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata and of large pictures; the pixels are what counts
        pixels = decode_image(encoded, 3, "")
        if _is_plain(encoded):
            return encoded
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    return png.getvalue()


def _is_plain(encoded: bytes) -> bool:
    image = Image.open(io.BytesIO(encoded))
    if image.format == "PNG" and encoded[24] != 8:  # bits per sample, in the header; Pillow shows 16 as 8 in RGB
        return False
    animated = getattr(image, "n_frames", 1) > 1 and image.format != "MPO"
    orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    return (
        image.format in FORMATS
        and image.mode in ("L", "RGB")
        and "transparency" not in image.info
        and not animated
        and orientation == UPRIGHT
    )


def serialize(encoded: bytes, label: int, file_name: str) -> bytes:
    """A tf.Example with the features image, label and file_name, as TFDS would serialize it."""
    example = _protos.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(encoded)
    feature["label"].int64_list.value.append(label)
    feature["file_name"].bytes_list.value.append(os.fsencode(file_name))
    return example.SerializeToString(deterministic=True)
