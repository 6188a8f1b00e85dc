import io
import struct

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gaternet_jax.data.decode import decode_image
from gaternet_jax.data.images import Box, read_box
from gaternet_jax.data.jpeg import parse_jpeg
from gaternet_jax.data.orientation import read_orientation
from gaternet_jax.data.prepare.image_files import to_store

LEFT_IS_WHITE = np.zeros((32, 48, 3), np.uint8)
LEFT_IS_WHITE[:, :24] = 255
TOP_IS_WHITE = np.rot90(LEFT_IS_WHITE, -1)  # how it stands, if a camera that was turned by 90 degrees took it


def exif_of(value, order="<", kind=3, count=1, before=()):
    """An EXIF block of these directory entries, (tag, type, count, value), and the orientation."""
    entries = [*before, (0x112, kind, count, value)]
    body = b"".join(struct.pack(f"{order}HHL", *entry[:3]) + pack_value(order, *entry[1::2]) for entry in entries)
    mark = b"II" if order == "<" else b"MM"
    return b"Exif\0\0" + mark + struct.pack(f"{order}HLH", 42, 8, len(entries)) + body + bytes(4)


def pack_value(order, kind, value):
    return struct.pack({1: f"{order}B3x", 3: f"{order}H2x"}.get(kind, f"{order}L"), value)


def xmp_of(value, form='<rdf:Description tiff:Orientation="{}"/>'):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{form.format(value)}</x:xmpmeta>'.encode()


def save(format, exif=b"", xmp=b""):
    options = {"JPEG": {"quality": 95}, "AVIF": {"quality": 95, "speed": 10}, "WEBP": {"lossless": True}}.get(
        format, {}
    )
    if xmp and format == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=True)
    elif xmp:
        options |= {"tiffinfo": {700: xmp}} if format == "TIFF" else {"xmp": xmp}
    if exif:
        options["exif"] = exif
    file = io.BytesIO()
    Image.fromarray(LEFT_IS_WHITE).save(file, format, **options)
    return file.getvalue()


def with_segment(jpeg, content, marker=0xE1):
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]


def whole(height, width):
    return Box(0, 0, height, width)


def assert_seen(encoded, expected):
    """Training, prediction and what is prepared show the same."""
    decoded = decode_image(encoded, 3)
    np.testing.assert_allclose(decoded.astype(int), expected, atol=30)
    for fast in (False, True):
        for stored in (encoded, to_store(encoded)):
            read = read_box(stored, whole, 16, channels=3, resize="area", fast=fast)
            small = np.asarray(Image.fromarray(np.ascontiguousarray(expected)).resize((16, 16), Image.Resampling.BOX))
            np.testing.assert_allclose(read.astype(int), small, atol=30)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("value", [6, 0, 9])
def test_exif_and_xmp_turn_every_format(format, value):
    expected = TOP_IS_WHITE if value == 6 else LEFT_IS_WHITE
    exif = Image.Exif()
    exif[0x112] = value
    assert_seen(save(format, exif=exif), expected)
    assert_seen(save(format, xmp=xmp_of(value)), expected)


@pytest.mark.parametrize("value", range(1, 9))
def test_all_eight_orientations_of_jpeg(value):
    flips = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1)}
    flips |= {6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}
    encoded = with_segment(save("JPEG"), exif_of(value))
    assert_seen(encoded, flips.get(value, lambda a: a)(LEFT_IS_WHITE))
    assert (parse_jpeg(encoded) is not None) == (value == 1) == (to_store(encoded) == encoded)


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_undefined_orientations_are_upright_and_fast(value):
    encoded = with_segment(save("JPEG"), exif_of(value))
    assert parse_jpeg(encoded) is not None and to_store(encoded) is encoded
    assert_seen(encoded, LEFT_IS_WHITE)


def test_exif_outranks_xmp():
    assert read_orientation(exif_of(1), xmp_of(6)) == 1
    assert read_orientation(exif_of(0), xmp_of(6)) == 1
    assert read_orientation(b"", xmp_of(6)) == 6
    assert read_orientation(b"Exif\0\0damaged", xmp_of(6)) == 6


@pytest.mark.parametrize("form", ["<tiff:Orientation>{}</tiff:Orientation>", "<a tiff:Orientation='{}'/>"])
def test_spellings_of_xmp(form):
    assert read_orientation(b"", xmp_of(8, form)) == 8
    assert read_orientation(b"", xmp_of(10, form)) == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_types_and_byte_orders_of_exif(order, kind):
    assert read_orientation(exif_of(6, order, kind), b"") == 6


BROKEN = {
    "a rational far outside": exif_of(6, before=[(0x10F, 5, 1, 38)]),
    "a link to nowhere": exif_of(6, before=[(0x8769, 4, 1, 2**31)]),
    "a link to itself": exif_of(6, before=[(0x8769, 4, 1, 8)]),
    "an unknown type": exif_of(6, before=[(0x110, 77, 2**31, 1)]),
    "twice its head": b"Exif\0\0" + exif_of(6),
    "cut off behind": exif_of(6)[:-4],
}
BROKEN_UPRIGHT = {
    "cut off in front": exif_of(6)[:20],
    "only a head": b"Exif\0\0",
    "noise": b"Exif\0\0" + bytes(range(200)),
    "a directory outside": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "text": exif_of(6, kind=2),
    "many values": exif_of(6, count=1000),
}


@pytest.mark.parametrize("exif", BROKEN.values(), ids=BROKEN)
def test_broken_exif_still_turns(exif):
    assert_seen(with_segment(save("JPEG"), exif), TOP_IS_WHITE)
    assert_seen(save("PNG", exif=exif), TOP_IS_WHITE)


@pytest.mark.parametrize("exif", BROKEN_UPRIGHT.values(), ids=BROKEN_UPRIGHT)
def test_exif_that_says_nothing_costs_nothing(exif):
    encoded = with_segment(save("JPEG"), exif)
    assert to_store(encoded) is encoded
    assert_seen(encoded, LEFT_IS_WHITE)
    assert_seen(save("PNG", exif=exif), LEFT_IS_WHITE)
    assert_seen(save("WEBP", exif=exif), LEFT_IS_WHITE)


def test_broken_exif_of_avif_and_tiff():
    exif = Image.Exif()
    exif[0x112], exif[0x10F] = 6, "camera"
    avif = save("AVIF", exif=exif)
    assert avif.count(b"MM\0*") == 1
    assert_seen(avif.replace(b"MM\0*", b"????"), TOP_IS_WHITE)  # its container says it too
    for big in (False, True):
        file = io.BytesIO()
        links = dict.fromkeys((34665, 34853, 40965), 2**31)
        Image.fromarray(LEFT_IS_WHITE).save(file, "TIFF", tiffinfo={0x112: 6, **links}, big_tiff=big)
        assert_seen(file.getvalue(), TOP_IS_WHITE)
