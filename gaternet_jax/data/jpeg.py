"""JPEG: what the header says, and fast decoding of the part of an image that a crop needs."""

import re
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg

from gaternet_jax.data.orientation import UPRIGHT, read_orientation

FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, with Huffman codes
START_OF_SCAN, APP1, FILL = 0xDA, 0xE1, 0xFF
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"  # an APP1 segment begins with one of them
# What libjpeg says where a part of the picture is lost. It also warns of bytes that mean nothing: many files have some.
DAMAGE = re.compile("premature end|bad huffman code|bad arithmetic code|instead of RST", re.IGNORECASE)
PIXELS_PER_BYTE = 2048  # no JPEG has more: a block of 8 x 8 takes a bit at least, and blocks may count four times
SCALES = (8, 4, 2)  # by which the decoder can shrink at less than the cost of decoding

_buffers = threading.local()


class Jpeg(NamedTuple):
    """Holds what the header says of an image of gray or colour pixels that is stored upright.

    Attributes:
        height: pixels.
        width: pixels.
        height_at: position in the file of the height's two bytes.
        unit_height: pixels; coded blocks begin at multiples of it.
        can_be_cut: the rows are coded from top to bottom, once, and the file has its end.
    """

    height: int
    width: int
    height_at: int
    unit_height: int
    can_be_cut: bool


def is_jpeg(encoded: bytes) -> bool:
    """Tells whether a file begins as a JPEG does."""
    return encoded.startswith(b"\xff\xd8")


def jpeg_segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and end of a JPEG's segments as far as they are whole, up to the head of the first scan."""
    at, marker = 2, 0
    while marker != START_OF_SCAN and at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == FILL:
            at += 1
            continue
        end = at + 2 + int.from_bytes(encoded[at + 2 : at + 4])
        if not at + 4 <= end <= len(encoded):
            return
        yield marker, at, end
        at = end


def parse_jpeg(encoded: bytes) -> Jpeg | None:
    """Reads the header; None for what is not a JPEG, or is one that the fast decoder does not do (CMYK, rotated)."""
    if not is_jpeg(encoded):
        return None
    frame, exif, xmp = None, b"", b""
    for marker, at, end in jpeg_segments(encoded):
        if marker == APP1:
            content = encoded[at + 4 : end]
            if content.startswith(EXIF):
                exif += content[len(EXIF) :]
            elif content.startswith(XMP):
                xmp += content
        elif marker in FRAMES:
            frame = marker, at
        elif marker == START_OF_SCAN:
            if frame is None or at + 18 >= len(encoded) or read_orientation(exif, xmp) != UPRIGHT:
                return None
            kind, start = frame
            height, width = (int.from_bytes(encoded[start + side : start + side + 2]) for side in (5, 7))
            components = encoded[start + 9]
            if components not in (1, 3) or height * width > len(encoded) * PIXELS_PER_BYTE:
                return None
            factors = [encoded[start + 11 + 3 * component] & 15 for component in range(components)]
            if 0 in factors:
                return None
            one_scan = kind != 0xC2 and encoded[at + 4] == components
            # Codes have no 0xFFD9 in them: a file that was cut off has none at its end.
            has_end = encoded.rfind(b"\xff\xd9", max(len(encoded) - 4096, at)) >= 0
            return Jpeg(height, width, start + 5, 8 * max(factors), one_scan and has_end)
    return None


def check_jpeg_size(encoded: bytes, size: tuple[int, int]) -> None:
    """Checks that a file can hold so many pixels; looking for them in one that was cut off can take minutes.

    Raises:
        ValueError: it cannot.
    """
    if size[0] * size[1] > len(encoded) * PIXELS_PER_BYTE:
        raise ValueError(f"premature end: {len(encoded):,} bytes cannot hold {size[0]} x {size[1]} pixels")


def check_jpeg(encoded: bytes) -> None:
    """Checks that no part of the picture is lost, as far as libjpeg notices; Pillow does not tell.

    A JPEG has no checksums: codes that were changed to other ones can go unnoticed.

    Raises:
        ValueError: a part is lost.
    """
    try:
        colours = simplejpeg.decode_jpeg_header(encoded)[2]
        colours = "CMYK" if colours in ("CMYK", "YCCK") else "GRAY"
        simplejpeg.decode_jpeg(encoded, colours, min_height=1, min_width=1, strict=True)
    except ValueError as error:
        if DAMAGE.search(str(error)):
            raise


def decode_jpeg_part(encoded: bytes, jpeg: Jpeg, bottom: int, scale: int, *, channels: int, fast: bool) -> np.ndarray:
    """Decodes an image down to a row, into memory that this thread's next call overwrites.

    Args:
        encoded: the file.
        jpeg: its header.
        bottom: the rows from here on are not needed.
        scale: 1 or one of SCALES: the image is shrunk by it.
        channels: 1 or 3.
        fast: the decoder's faster and less exact arithmetic, and no more rows than needed: entropy decoding takes
            most of the time. Damage within the codes then goes unnoticed (containers have checksums of their own).

    Returns:
        uint8 [at least bottom / scale, width / scale, channels].

    Raises:
        ValueError: damaged, or something that this decoder does not know.
    """
    rows = jpeg.height
    if fast and jpeg.can_be_cut:
        rows = min(rows, -(-bottom // jpeg.unit_height) * jpeg.unit_height)
    cut = rows < jpeg.height
    if cut:  # say that there are fewer rows; the codes beyond them are passed over
        encoded = b"".join((encoded[: jpeg.height_at], rows.to_bytes(2), encoded[jpeg.height_at + 2 :]))
    height, width = -(-rows // scale), -(-jpeg.width // scale)
    return simplejpeg.decode_jpeg(
        encoded,
        "RGB" if channels == 3 else "GRAY",
        fastdct=fast,
        fastupsample=fast,
        min_height=height,
        min_width=width,
        buffer=_buffer(rows * jpeg.width * channels),
        strict=not cut,
    )


def _buffer(size: int) -> np.ndarray:
    """Gives memory of this thread: asking the system for it anew takes as long as a tenth of the decoding."""
    if getattr(_buffers, "memory", np.empty(0)).size < size:
        _buffers.memory = np.empty(size, np.uint8)
    return _buffers.memory
