"""Image files to the records of a dataset. Worker processes import this: no JAX here."""

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tensorflow_datasets.proto import tf_example_pb2

from gaternet_jax.data.decode import BITS_AT, MAX_PIXELS, WHITE, has_transparency, open_image, read_image
from gaternet_jax.data.jpeg import SCALES, decode_jpeg_part, parse_jpeg
from gaternet_jax.data.orientation import UPRIGHT
from gaternet_jax.data.prepare.shards import Corrupt
from gaternet_jax.errors import UserError

_protos: Any = tf_example_pb2  # made at run time, unknown to type checkers

FORMATS = ("JPEG", "PNG", "WEBP")  # that every reader of datasets knows


class ImageFile(NamedTuple):
    """Says where an image lies: a file of its own below a folder, or a part of a tar archive.

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
        """Reads the encoded image.

        Raises:
            OSError: it cannot be read.
        """
        if self.offset is None:
            return Path(self.path).read_bytes()
        with Path(self.base).open("rb") as archive:
            archive.seek(self.offset)
            return archive.read(self.size)


class ImageExamples:
    """Checks and serializes the images of a shard, one after the other; see `Examples` in shards.py."""

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
            except UserError as error:
                yield Corrupt(image.path, str(error).strip())
                continue
            yield serialize(encoded, image.label, image.name)


def to_store(encoded: bytes) -> bytes:
    """Gives the bytes that the dataset holds for an image file: its own, if every reader sees in them what people see.

    That is so for upright JPEG, PNG and WebP of 8 bits, RGB or gray. Anything else (another format, marked as rotated,
    CMYK, 16 bits, palette, animated) is stored as PNG, RGB. Transparency stays (RGBA), so that `data.background` holds
    for prepared pictures as for others; what cannot be seen is stored white, for readers that ignore transparency.

    Raises:
        UserError: not an image, or a broken one (every image is decoded to the end); the sentence lacks its subject.
    """
    if not encoded:
        raise UserError("is an empty file")
    if _is_plain_jpeg(encoded):
        return encoded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata and of large pictures; the pixels are what counts
        image = read_image(encoded, "")
        if _is_plain(encoded):
            return encoded
    if image.mode == "RGBA":
        unseen = image.getchannel("A").point(lambda alpha: 255 * (alpha == 0))
        image.paste((*WHITE, 0), mask=unseen)
    else:
        image = image.convert("RGB")
    png = io.BytesIO()
    image.save(png, format="PNG")
    return png.getvalue()


def _is_plain_jpeg(encoded: bytes) -> bool:
    # The decoder of training itself: what it reads without a warning, it will read again.
    jpeg = parse_jpeg(encoded)
    if jpeg is None or jpeg.height * jpeg.width > MAX_PIXELS:
        return False
    try:
        decode_jpeg_part(encoded, jpeg, jpeg.height, SCALES[0], channels=3, fast=False)
    except ValueError:
        return False
    return True


def _is_plain(encoded: bytes) -> bool:
    image, orientation = open_image(encoded)
    if image.format not in FORMATS or image.mode not in ("L", "RGB") or has_transparency(image):
        return False
    if image.format == "PNG":  # bits per sample, in the header: Pillow shows 16 as 8 in RGB; and chunks of animations
        return encoded[BITS_AT] == 8 and b"acTL" not in encoded and orientation == UPRIGHT
    return getattr(image, "n_frames", 1) == 1 and orientation == UPRIGHT


def serialize(encoded: bytes, label: int, file_name: str) -> bytes:
    """Makes a tf.Example with the features image, label and file_name, as TFDS would serialize it."""
    example = _protos.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(encoded)
    feature["label"].int64_list.value.append(label)
    feature["file_name"].bytes_list.value.append(os.fsencode(file_name))
    return example.SerializeToString(deterministic=True)
