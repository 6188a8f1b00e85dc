"""Which way of a picture is up: one answer for all decoders."""

import re
import struct
from typing import Any

UPRIGHT = 1  # EXIF's orientation of a picture that needs no turning
ORIENTATION = 0x0112  # EXIF's tag, an unsigned number
NUMBER_BYTES = {1: 1, 3: 2, 4: 4}  # by EXIF's codes of unsigned types
XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([0-9]{1,9})")


def read_orientation(exif: bytes, xmp: bytes) -> int:
    """Reads how a picture is to be turned: 2 to 8 as in EXIF, UPRIGHT for anything else.

    EXIF counts if it says anything, else XMP. Damage elsewhere in them does no harm: only the tag itself is looked at.

    Args:
        exif: the content of a file's EXIF segment, or b"".
        xmp: its XMP packet, or b"".
    """
    found = _exif_orientation(exif) if exif else None
    if found is None and (match := XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return checked_orientation(found)


def checked_orientation(value: Any) -> int:
    """Gives `value` if it is 1 to 8, UPRIGHT for anything else."""
    return int(value) if value in range(1, 9) else UPRIGHT


def _exif_orientation(exif: bytes) -> int | None:
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order, sign = ("big", ">") if exif.startswith(b"MM") else ("little", "<")
    try:
        (start,) = struct.unpack_from(f"{sign}L", exif, 4)
        (count,) = struct.unpack_from(f"{sign}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(f"{sign}HHL", exif, at)
            if tag == ORIENTATION and kind in NUMBER_BYTES and values == 1:
                return int.from_bytes(exif[at + 8 : at + 8 + NUMBER_BYTES[kind]], order)
    except struct.error:  # the directory is cut off
        pass
    return None
