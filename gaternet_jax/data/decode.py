"""Whole pictures of any format to upright pixels of 8 bits, by Pillow.

bytes -> the picture without its metadata -> its samples -> 8 bits, turned upright -> put on a ground where transparent
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from gaternet_jax.data.jpeg import check_jpeg, check_jpeg_size, is_jpeg
from gaternet_jax.data.metadata import split_metadata
from gaternet_jax.data.orientation import ORIENTATION, UPRIGHT, checked_orientation, read_orientation
from gaternet_jax.errors import UserError

Image.init()  # so that all formats are known
# All formats that Pillow reads, but for those that need other programs or libraries, or are only known by their names.
FORMATS = tuple(name for name in Image.ID if name not in ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"))
EXTENSIONS = tuple(
    sorted(end for end, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))  # a kind of JPEG
)
MODES = {1: "L", 3: "RGB"}
MAX_PIXELS = Image.MAX_IMAGE_PIXELS * 2 if Image.MAX_IMAGE_PIXELS else 2**28  # Pillow's limit: 179 million
BITS_AT = 24  # where a PNG's header has the bits of a sample
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # TIFF's tags
WHITE = (255, 255, 255)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(encoded: bytes, channels: int, source: str = "image", background: Sequence[int] = WHITE) -> np.ndarray:
    """Decodes PNG, JPEG, WebP and what else Pillow reads.

    Gray becomes RGB by repetition and RGB gray by its luminance; transparent pictures are put on a ground of one
    colour; 16 bits are divided by 256 (12 by 16); a picture that was marked as rotated (see `read_orientation`) is
    turned upright; of an animation the first frame is taken. Metadata are not needed, and may be faulty.

    Args:
        encoded: the file's bytes.
        channels: 1 or 3.
        source: what to call the image in an error.
        background: R, G and B of the ground, 0 to 255.

    Returns:
        uint8 [H, W, channels].

    Raises:
        UserError: not an image, a truncated one, one of more than MAX_PIXELS, or one of floats or 32-bit integers,
            of which nothing says what is black and what white.
    """
    image = read_image(encoded, source)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, tuple(background)), image).convert("RGB")
    return np.asarray(image.convert(MODES[channels])).reshape(image.height, image.width, channels)


def read_image(encoded: bytes, source: str = "image") -> Image.Image:
    """Reads the whole picture, upright, of 8 bits: L, RGB, or RGBA if any of it is transparent.

    Raises:
        UserError: see `decode_image`.
    """
    try:
        image, orientation = open_image(encoded)
        if is_jpeg(encoded):
            check_jpeg_size(encoded, image.size)
        image.load()
        if is_jpeg(encoded):
            check_jpeg(encoded)
        image = _eight_bits(image)
        return image if orientation == UPRIGHT else image.transpose(TURNS[orientation])
    except Exception as error:  # Pillow raises whatever its parsers meet in a broken file
        reason = str(error).partition(" <_io.BytesIO")[0].strip() or type(error).__name__
        raise UserError(f"{source} cannot be read as an image: {reason}") from None


def open_image(encoded: bytes) -> tuple[Image.Image, int]:
    """Opens a picture, of which nothing is decoded yet.

    Returns:
        The image, and how it is to be turned when it is loaded, see `read_orientation`.
    """
    if not encoded:
        raise ValueError("it is an empty file")
    picture, exif, xmp = split_metadata(encoded)
    image = Image.open(io.BytesIO(picture), formats=FORMATS)
    transparency = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "RGB" and transparency and picture[BITS_AT] == 16:
        image.info["transparency"] = tuple(value >> 8 for value in transparency)  # as Pillow does with the samples
    exif, xmp = exif or image.info.get("exif", b""), xmp or image.info.get("xmp", b"")
    if not isinstance(image, TiffImageFile):
        return image, read_orientation(exif, xmp)
    # Pillow turns a TIFF as it loads it, and fails if anything else in its metadata is faulty: it sees this one tag.
    tag = image.tag_v2.get(ORIENTATION)
    seen = Image.Exif()
    seen[ORIENTATION] = read_orientation(b"", xmp) if tag is None else checked_orientation(tag)
    image.getexif = lambda: seen
    return image, UPRIGHT


def has_transparency(image: Image.Image) -> bool:
    """Tells whether pixels of an image may be transparent, by its mode and its header."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        samples = np.asarray(image, np.uint32)  # Pillow's own conversion would clip at 255
        tags = getattr(image, "tag_v2", {})  # of a TIFF
        bits = max(tags.get(BITS_PER_SAMPLE, (16,)))  # or 12
        if tags.get(PHOTOMETRIC) == 0:  # white is zero; Pillow sees to it for 8 bits only
            samples = 2**bits - 1 - samples
        gray = Image.fromarray((samples >> bits - 8).astype(np.uint8))
        if "transparency" not in image.info:
            return gray
        gray.putalpha(Image.fromarray(np.where(samples == image.info["transparency"], 0, 255).astype(np.uint8)))
        image = gray
    if image.mode in ("I", "F"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise ValueError(
            f"its samples are {kind}, of which nothing says what is black and what white; save it with 8 or 16 bits"
        )
    if not has_transparency(image):
        return image if image.mode == "L" else image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return image.convert("RGB") if np.asarray(image.getchannel("A")).min() == 255 else image
