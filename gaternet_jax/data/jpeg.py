"""JPEG: what the header says, and fast decoding of the part of an image that a crop needs."""

import io
import threading
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, with Huffman codes
START_OF_SCAN, APP1 = 0xDA, 0xE1
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
SCALES = (8, 4, 2)  # by which the decoder can shrink at less than the cost of decoding

_buffers = threading.local()


class Jpeg(NamedTuple):
    """What the header says of an image of gray or colour pixels that is stored upright.

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


def parse_jpeg(encoded: bytes) -> Jpeg | None:
    """Reads the header; None for what is not a JPEG, or is one that the fast decoder does not do (CMYK, rotated)."""
    if encoded[:2] != b"\xff\xd8":
        return None
    at, frame, exif = 2, None, False
    while at + 18 < len(encoded) and encoded[at] == 0xFF:
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4])
        if marker == START_OF_SCAN:
            if frame is None or (exif and _is_rotated(encoded)):
                return None
            kind, start = frame
            components = encoded[start + 9]
            if components not in (1, 3):
                return None
            one_scan = kind != 0xC2 and encoded[at + 4] == components
            # Codes have no 0xFFD9 in them: a file that was cut off has none at its end.
            has_end = encoded.rfind(b"\xff\xd9", max(len(encoded) - 4096, at)) >= 0
            factors = [encoded[start + 11 + 3 * component] & 15 for component in range(components)]
            return Jpeg(
                int.from_bytes(encoded[start + 5 : start + 7]),
                int.from_bytes(encoded[start + 7 : start + 9]),
                start + 5,
                8 * max(factors),
                one_scan and has_end,
            )
        if marker in FRAMES:
            frame = marker, at
        exif = exif or (marker == APP1 and encoded[at + 4 : at + 8] == b"Exif")
        at += 2 + length
    return None


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
    """Memory of this thread: asking the system for it anew takes as long as a tenth of the decoding."""
    if getattr(_buffers, "memory", np.empty(0)).size < size:
        _buffers.memory = np.empty(size, np.uint8)
    return _buffers.memory


def _is_rotated(encoded: bytes) -> bool:
    try:
        return Image.open(io.BytesIO(encoded)).getexif().get(ORIENTATION, 1) != 1
    except (OSError, SyntaxError, ValueError):
        return True  # not this decoder's to judge
