"""Which way of a picture is up: one answer for all decoders."""

import re
import struct

UPRIGHT = 1  # EXIF's orientation of a picture that needs no turning
TAG = 0x0112  # EXIF's, of an unsigned number
NUMBER_BYTES = {1: 1, 3: 2, 4: 4}  # by EXIF's codes of unsigned types
XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([0-9]{1,9})")


def read_orientation(exif: bytes, xmp: bytes) -> int:
    """Reads how a picture is to be turned: 2 to 8 as in EXIF, UPRIGHT for anything else.

    EXIF counts if it says anything, else XMP. Damage elsewhere in them does no harm: only the tag itself is looked at.

    Args:
        exif: the content of a file's EXIF segment, or a TIFF, or b"".
        xmp: its XMP packet, or b"".
    """
    found = _exif_orientation(exif) if exif else None
    if found is None and (match := XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else UPRIGHT


def _exif_orientation(exif: bytes) -> int | None:
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order, sign = ("big", ">") if exif.startswith(b"MM") else ("little", "<")
    if exif[2:4] in (b"+\0", b"\0+"):  # BigTIFF
        where, offset, number, entry = 8, "Q", "Q", "HHQ8x"
    else:
        where, offset, number, entry = 4, "L", "H", "HHL4x"
    try:
        (start,) = struct.unpack_from(sign + offset, exif, where)
        (count,) = struct.unpack_from(sign + number, exif, start)
        size, first = struct.calcsize(sign + entry), start + struct.calcsize(sign + number)
        for at in range(first, first + size * count, size):
            tag, kind, values = struct.unpack_from(sign + entry, exif, at)
            if tag == TAG and kind in NUMBER_BYTES and values == 1:
                value = at + struct.calcsize(sign + entry[:3])
                return int.from_bytes(exif[value : value + NUMBER_BYTES[kind]], order)
    except struct.error:  # the directory is cut off
        pass
    return None
