"""Encoded images to pixels, the same way for training data and for a person's own files."""

import io

import numpy as np
from PIL import Image, ImageOps

from gaternet_jax.errors import UserError

MODES = {1: "L", 3: "RGB"}


def decode_image(encoded: bytes, channels: int, source: str = "image") -> np.ndarray:
    """Decodes PNG, JPEG, WebP and what else Pillow reads.

    Gray becomes RGB by repetition and RGB gray by its luminance; an alpha channel is dropped; 16 bits are scaled to
    8; a picture that a camera marked as rotated (EXIF) is turned upright.

    Args:
        encoded: the file's bytes.
        channels: 1 or 3.
        source: what to call the image in an error.

    Returns:
        uint8 [H, W, channels].

    Raises:
        UserError: not an image, or a truncated one.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
        if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip at 255
            image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
        return np.asarray(image.convert(MODES[channels])).reshape(image.height, image.width, channels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{source} cannot be read as an image: {error}") from None


def resize_and_center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Brings an image to size x size pixels: shorter side to `size` (bilinear, antialiased), then the centre.

    Args:
        image: uint8 [H, W, C].
        size: pixels.

    Returns:
        uint8 [size, size, C]; the same pixels if the image has that size already.
    """
    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    crop = min(height, width)
    top, left = (height - crop) / 2, (width - crop) / 2
    pillow = Image.fromarray(image[..., 0] if channels == 1 else image)
    resized = pillow.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + crop, top + crop))
    return np.asarray(resized).reshape(size, size, channels)
