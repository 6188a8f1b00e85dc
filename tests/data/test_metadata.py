import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gaternet_jax.data.decode import decode_image
from gaternet_jax.data.metadata import PNG_SIGNATURE, split_metadata
from gaternet_jax.data.prepare.image_files import to_store
from tests.data.test_orientation import exif_of, with_segment, xmp_of
from tests.image_folders import encode

PNG = encode(0, "PNG")
PIXELS = np.asarray(Image.open(io.BytesIO(PNG)))


def chunk(name, content):
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))


def with_chunks(*chunks):
    header = len(PNG_SIGNATURE) + 25
    return PNG[:header] + b"".join(chunks) + PNG[header:]


BOMB = zlib.compress(bytes(10**8))
CHUNKS = {
    "a text that inflates to 100 MB": chunk(b"zTXt", b"Comment\0\0" + BOMB),
    "an XMP that inflates to 100 MB": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "a profile that inflates to 100 MB": chunk(b"iCCP", b"name\0\0" + BOMB),
    "a profile that does not inflate": chunk(b"iCCP", b"name\0\0junk"),
    "more text than Pillow takes": chunk(b"tEXt", b"Comment\0" + bytes(10**6)) * 70,
    "a wrong checksum": chunk(b"tEXt", b"Comment\0hello")[:-1] + b"?",
    "an XMP without its fields": chunk(b"iTXt", b"XML:com.adobe.xmp"),
    "an XMP that does not inflate": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0junk"),
    "a profile of EXIF that is no number": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n9\nxyz\n"),
    "broken animation": chunk(b"acTL", b"12") + chunk(b"fcTL", b"1"),
    "broken lengths": chunk(b"pHYs", b"1") + chunk(b"gAMA", b"") + chunk(b"cHRM", b"123"),
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_chunks_of_a_png_never_cost_the_picture(chunks):
    encoded = with_chunks(chunks)
    np.testing.assert_array_equal(decode_image(encoded, 3), PIXELS)
    np.testing.assert_array_equal(decode_image(to_store(encoded), 3), PIXELS)


def test_orientation_in_texts_of_a_png():
    lines = b"\nexif\n      %d\n%s\n" % (len(exif_of(6)), exif_of(6).hex().encode())
    for text in (
        chunk(b"tEXt", b"Raw profile type exif\0" + lines),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(lines)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0en\0translated\0" + xmp_of(6)),
        chunk(b"eXIf", exif_of(6)[6:]),
    ):
        np.testing.assert_array_equal(decode_image(with_chunks(text), 3), np.rot90(PIXELS, -1))


def test_a_png_that_ends_early_keeps_its_rest():
    for length in (0, 8, 20, 60):
        assert split_metadata(PNG[:length]).picture == PNG[:length]


SEGMENTS = {
    "a short JFIF": (b"JFIF\0", 0xE0),
    "a short Adobe": (b"Adobe", 0xEE),
    "a broken profile": (b"ICC_PROFILE\0\7", 0xE2),
    "a broken list of pictures": (b"MPF\0MM\0*\xff\xff\xff\xff", 0xE2),
    "broken resources": (b"Photoshop 3.0\0" + b"8BIM" * 3, 0xED),
    "nothing": (b"", 0xE1),
    "a comment": (bytes(1000), 0xFE),
}


@pytest.mark.parametrize(("content", "marker"), SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_segments_of_a_jpeg_never_cost_the_picture(content, marker, mode):
    jpeg = encode(0, "JPEG", mode)
    np.testing.assert_array_equal(decode_image(with_segment(jpeg, content, marker), 3), decode_image(jpeg, 3))


def test_texts_are_not_inflated_without_end():
    chunks = [CHUNKS["an XMP that inflates to 100 MB"], chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB)]
    assert len(split_metadata(with_chunks(*chunks)).xmp) == 2**20


def test_segments_that_tell_colours_are_kept():
    jpeg = encode(0, "JPEG", quality=95)
    assert jpeg[2:4] == b"\xff\xe0" and jpeg[20:22] == b"\xff\xdb", "18 bytes of JFIF, then tables"
    says_rgb = with_segment(jpeg[:2] + jpeg[20:], b"Adobe\0d\0\0\0\0\0", 0xEE)
    decoded = decode_image(says_rgb, 3)
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(io.BytesIO(says_rgb))))
    assert np.abs(decoded.astype(int) - decode_image(jpeg, 3)).mean() > 30, "other colours than without that segment"


def test_fill_bytes_between_segments():
    jpeg = encode(0, "JPEG")
    np.testing.assert_array_equal(decode_image(jpeg[:2] + b"\xff\xff" + jpeg[2:], 3), decode_image(jpeg, 3))


@pytest.mark.parametrize("format", ["WEBP", "TIFF", "AVIF", "JPEG"])
def test_broken_profiles(format):
    assert decode_image(encode(0, format, icc_profile=b"junk" * 50), 3).shape == (12, 9, 3)
