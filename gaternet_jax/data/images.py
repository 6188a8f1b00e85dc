"""Encoded images to pixels, the same way for training, evaluation and a person's own files.

bytes -> size of the image -> box within it -> pixels of the box -> resized to what the model takes
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from gaternet_jax.config import CHOICES, DataConfig
from gaternet_jax.data.decode import MAX_PIXELS, WHITE, decode_image
from gaternet_jax.data.jpeg import SCALES, decode_jpeg_part, parse_jpeg
from gaternet_jax.errors import UserError, check_choice

BOX_NUMBERS = 2 + 2 * 10  # that `random_box` needs: place, and area and aspect of ten tries


class Box(NamedTuple):
    """Says where a part of an image lies, in pixels."""

    top: int
    left: int
    height: int
    width: int


ChooseBox = Callable[[int, int], Box]  # of an image's height and width


def read_files(paths: Sequence[Path], data: DataConfig, channels: int) -> np.ndarray:
    """Reads image files as a run's evaluation images are read: the centre, at the model's size.

    Args:
        paths: at least one; any format that Pillow reads.
        data: the `data` part of the run's config.
        channels: of the model's images, 1 or 3.

    Returns:
        uint8 [N, size, size, channels].

    Raises:
        UserError: a file that is missing or is not a whole image.
    """
    choose = functools.partial(center_box, fraction=data.eval_crop)
    images = np.empty((len(paths), data.image_size, data.image_size, channels), np.uint8)
    for path, out in zip(paths, images, strict=True):
        try:
            encoded = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        read_box(
            encoded,
            choose,
            data.image_size,
            channels=channels,
            resize=data.resize,
            background=data.background,
            source=str(path),
            out=out,
        )
    return images


def read_box(
    encoded: bytes,
    choose: ChooseBox,
    size: int,
    *,
    channels: int,
    resize: str,
    fast: bool = False,
    background: Sequence[int] = WHITE,
    source: str = "image",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes a part of an image and resizes it.

    JPEG goes to libjpeg-turbo, which shrinks large images as it decodes them, to no less than twice the wanted size;
    what it does not read or finds damaged, and all other formats, go to `decode_image`.

    Args:
        encoded: the file's bytes.
        choose: gives the box from the image's height and width.
        size: pixels, height and width of the result.
        channels: 1 or 3.
        resize: bilinear (no more than 2 x 2 pixels of the box make one) | area (all pixels count).
        fast: see `decode_jpeg_part`.
        background: of transparent pictures, see `decode_image`.
        source: what to call the image in an error.
        out: where to write the result; contiguous.

    Returns:
        uint8 [size, size, channels]; the image's own pixels if the box has that size.

    Raises:
        UserError: see `decode_image`.
    """
    out = np.empty((size, size, channels), np.uint8) if out is None else out
    jpeg = parse_jpeg(encoded)
    if jpeg is not None and jpeg.height * jpeg.width <= MAX_PIXELS:
        box = choose(jpeg.height, jpeg.width)
        scale = next((s for s in SCALES if min(box.height, box.width) >= 2 * s * size), 1)
        with contextlib.suppress(ValueError):  # decode_image reads it then, or tells what is wrong with it
            pixels = decode_jpeg_part(encoded, jpeg, box.top + box.height, scale, channels=channels, fast=fast)
            return _resize(pixels, Box(*(side // scale for side in box)), resize, out)
    pixels = decode_image(encoded, channels, source, background)
    return _resize(pixels, choose(*pixels.shape[:2]), resize, out)


def _resize(pixels: np.ndarray, box: Box, method: str, out: np.ndarray) -> np.ndarray:
    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    size = out.shape[0]
    check_choice("resize", method, CHOICES["data.resize"])
    shrinks = box.height >= size and box.width >= size  # enlarging by area would repeat pixels
    interpolation = cv2.INTER_AREA if method == "area" and shrinks else cv2.INTER_LINEAR
    if part.shape == out.shape:
        out[...] = part
    else:
        flat = out[..., 0] if out.shape[-1] == 1 else out  # OpenCV knows no axis of one channel
        cv2.resize(part, (size, size), dst=flat, interpolation=interpolation)
    return out


def center_box(height: int, width: int, fraction: float = 1.0) -> Box:
    """Gives the square in the centre whose side is a fraction of the shorter side.

    Resized to S pixels, this is the centre of S x S pixels of the image whose shorter side was brought to S / fraction.
    """
    side = max(round(min(height, width) * fraction), 1)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def random_box(
    numbers: Sequence[float], height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> Box:
    """Chooses a box of random area, aspect and place (Szegedy et al. 2015, section 6; ten tries, as in torchvision).

    Args:
        numbers: BOX_NUMBERS of them, uniform in [0, 1).
        height: of the image.
        width: of the image.
        area: least and greatest area, as fractions of the image's.
        aspect: least and greatest ratio of width to height; uniform in its logarithm.
    """
    vertical, horizontal, *shapes = numbers
    for of_area, of_aspect in zip(shapes[::2], shapes[1::2], strict=True):
        pixels = height * width * (area[0] + of_area * (area[1] - area[0]))
        ratio = aspect[0] * (aspect[1] / aspect[0]) ** of_aspect
        box_height, box_width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = int(vertical * (height - box_height + 1)), int(horizontal * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    # An image too long for these: the largest box in its centre whose aspect is allowed.
    box_width = min(width, max(round(height * aspect[1]), 1))
    box_height = min(height, max(round(width / aspect[0]), 1))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
