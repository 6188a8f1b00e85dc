"""Takes a picture's file apart: the picture, and what the file says beside it.

Pillow reads metadata as it opens a file, and gives the picture up where they are faulty: it is shown the picture alone.
"""

import contextlib
import zlib
from typing import NamedTuple

from gaternet_jax.data.jpeg import EXIF, START_OF_SCAN, XMP, is_jpeg, jpeg_segments

APP0, APP14, APP15, COMMENT = 0xE0, 0xEE, 0xEF, 0xFE  # markers of JPEG's segments
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_XMP, PNG_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"  # keywords of texts
TEXT_BYTES = 2**20  # of such a text that are looked at: a few bytes can inflate to gigabytes
AVIF = (b"ftypavif", b"ftypavis")


class Parts(NamedTuple):
    """Holds a file, taken apart into picture and metadata.

    Attributes:
        picture: the file without its metadata.
        exif: what it says in EXIF, or b"".
        xmp: likewise.
    """

    picture: bytes
    exif: bytes = b""
    xmp: bytes = b""


def split_metadata(encoded: bytes) -> Parts:
    """Takes EXIF, XMP, profiles, texts and comments out of JPEG and PNG, and EXIF out of AVIF.

    Other files are left whole: Pillow hands their metadata on without reading them.
    """
    if is_jpeg(encoded):
        return _split_jpeg(encoded)
    if encoded.startswith(PNG_SIGNATURE):
        return _split_png(encoded)
    if encoded[4:12] in AVIF:  # its container says which way is up, and Pillow makes EXIF of that; its own EXIF is void
        items = max(encoded.find(b"mdat"), 0)
        return Parts(encoded[:items].replace(b"Exif", b"none") + encoded[items:])
    return Parts(encoded)


def _split_jpeg(encoded: bytes) -> Parts:
    kept, rest = [encoded[:2]], 2
    exif, xmp = b"", b""
    for marker, start, end in jpeg_segments(encoded):
        content = encoded[start + 4 : end]
        if marker == START_OF_SCAN:
            break
        if content.startswith(EXIF):
            exif += content[len(EXIF) :]
        elif content.startswith(XMP):
            xmp += content
        # Two segments of applications tell which colours the numbers mean.
        is_jfif = marker == APP0 and content.startswith(b"JFIF\0") and len(content) >= 14
        is_adobe = marker == APP14 and content.startswith(b"Adobe") and len(content) >= 12
        if is_jfif or is_adobe or not (APP0 <= marker <= APP15 or marker == COMMENT):
            kept.append(encoded[start:end])
        rest = end
    return Parts(b"".join([*kept, encoded[rest:]]), exif, xmp)


def _split_png(encoded: bytes) -> Parts:
    kept, exif, xmp, at = [PNG_SIGNATURE], b"", b"", len(PNG_SIGNATURE)
    while at + 12 <= len(encoded):
        length, name = int.from_bytes(encoded[at : at + 4]), encoded[at + 4 : at + 8]
        end = at + 12 + length
        content = encoded[at + 8 : end - 4]
        if name == b"eXIf":
            exif = content
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, text = _png_text(name, content)
            if keyword == PNG_XMP:
                xmp += text
            elif keyword == PNG_EXIF and not exif:  # ImageMagick's: a name, a length, hexadecimal digits in lines
                with contextlib.suppress(ValueError):
                    exif = bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode())
        if name[:1].isupper() or name == b"tRNS":
            kept.append(encoded[at:end])
        at = end
    return Parts(b"".join([*kept, encoded[at:]]), exif, xmp)


def _png_text(name: bytes, content: bytes) -> tuple[bytes, bytes]:
    keyword, _, rest = content.partition(b"\0")
    if keyword not in (PNG_XMP, PNG_EXIF):
        return keyword, b""
    compressed = name == b"zTXt"
    if name == b"iTXt":
        compressed, rest = rest[:1] == b"\1", b"\0".join(rest[2:].split(b"\0", 2)[2:])
    elif compressed:
        rest = rest[1:]
    if compressed:
        try:
            rest = zlib.decompressobj().decompress(rest, TEXT_BYTES)
        except zlib.error:
            return keyword, b""
    return keyword, rest
