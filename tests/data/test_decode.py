import functools
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gaternet_jax.data.decode import EXTENSIONS, decode_image, read_image
from gaternet_jax.data.images import center_box, read_box
from gaternet_jax.data.prepare.image_files import to_store
from gaternet_jax.errors import UserError

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


def encode(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_colour_stays_and_becomes_gray_by_luminance():
    encoded = encode(Image.fromarray(COLOURS))
    np.testing.assert_array_equal(decode_image(encoded, 3), COLOURS)
    np.testing.assert_array_equal(decode_image(encoded, 1)[..., 0], [[76, 150], [29, 255]])  # ITU-R 601


def test_gray_is_repeated():
    gray = np.array([[0, 100], [200, 255]], np.uint8)
    decoded = decode_image(encode(Image.fromarray(gray)), 3)
    np.testing.assert_array_equal(decoded, np.repeat(gray[..., None], 3, -1))


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "LA", "1"])
def test_other_modes(mode):
    kind = "jpeg" if mode == "CMYK" else "png"
    for channels in (1, 3):
        image = decode_image(encode(Image.new("RGB", (5, 4), "white").convert(mode), kind), channels)
        assert image.shape == (4, 5, channels) and image.min() > 250


SHAPE = np.zeros((32, 32), np.uint8)
SHAPE[4:28, 14:18] = 255  # a stroke, black on nothing
DRAWING = 255 - SHAPE


def palette(transparency):
    image = Image.fromarray(SHAPE // 255).convert("P")
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.info["transparency"] = transparency
    return image


def drawings():
    """(format, image): black strokes whose ground is transparent, and black, too."""
    la = Image.merge("LA", [Image.new("L", (32, 32)), Image.fromarray(SHAPE)])
    rgba = la.convert("RGBA")
    for format in ("PNG", "WEBP", "TIFF", "GIF", "AVIF", "TGA", "ICO", "DDS", "QOI", "JPEG2000", "SGI"):
        yield format, rgba
    for format in ("PNG", "TIFF", "JPEG2000", "TGA"):
        yield format, la
    for transparency in (0, bytes([0, 255])):
        yield "PNG", palette(transparency)
    yield "GIF", palette(0)
    yield "TIFF", rgba.convert("PA")


OPTIONS = {"AVIF": {"speed": 10}, "WEBP": {"lossless": True}, "ICO": {"sizes": [(32, 32)]}}


@pytest.mark.parametrize(("format", "image"), [*drawings()])
def test_transparent_pictures_are_put_on_white(format, image):
    encoded = encode(image, format, **OPTIONS.get(format, {}))
    for file in (encoded, to_store(encoded)):
        for channels in (1, 3):
            expected = np.repeat(DRAWING[..., None], channels, -1)
            np.testing.assert_allclose(decode_image(file, channels).astype(int), expected, atol=10)
        on_blue = decode_image(file, 3, background=(0, 0, 255))
        np.testing.assert_allclose(on_blue.astype(int), np.stack([SHAPE * 0, SHAPE * 0, DRAWING], -1), atol=10)
        read = read_box(file, center_box, 32, channels=3, resize="area", background=(0, 0, 255))
        np.testing.assert_array_equal(read, on_blue)


def test_transparent_pixels_are_stored_white():
    for image in (palette(0), Image.merge("LA", [Image.new("L", (32, 32)), Image.fromarray(SHAPE)])):
        stored = Image.open(io.BytesIO(to_store(encode(image))))
        assert (stored.format, stored.mode) == ("PNG", "RGBA")
        np.testing.assert_array_equal(np.asarray(stored.convert("L")), DRAWING)  # readers that drop alpha see it


def test_half_transparent_pixels_are_mixed():
    image = Image.new("RGBA", (1, 1), (200, 100, 0, 51))  # 20% of it
    assert decode_image(encode(image), 3).ravel().tolist() == [244, 224, 204]
    assert decode_image(encode(image), 3, background=(0, 0, 0)).ravel().tolist() == [40, 20, 0]


def test_opaque_alpha_changes_nothing():
    image = Image.fromarray(COLOURS).convert("RGBA")
    assert read_image(encode(image)).mode == "RGB"
    np.testing.assert_array_equal(decode_image(encode(image), 3, background=(1, 2, 3)), COLOURS)


def png_of_16_bits(samples, transparent):
    """A PNG, gray or RGB, of which Pillow writes neither RGB nor the transparent colour."""
    samples = np.asarray(samples, ">u2")
    height, width = samples.shape[:2]
    header = struct.pack(">LLBBBBB", width, height, 16, 2 if samples.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    chunks = ((b"IHDR", header), (b"tRNS", np.array(transparent, ">u2").tobytes()), (b"IDAT", zlib.compress(rows)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))
        for name, content in (*chunks, (b"IEND", b""))
    )


def test_transparent_colour_of_16_bits():
    gray = png_of_16_bits([[0x1234, 0x1235, 0xFFFF]], 0x1234)
    np.testing.assert_array_equal(decode_image(gray, 1)[..., 0], [[255, 0x12, 255]])
    colour = png_of_16_bits([[[0x1234, 0x80FF, 0x0001], [0x8000, 0x80FF, 0x0001]]], [0x1234, 0x80FF, 0x0001])
    np.testing.assert_array_equal(decode_image(colour, 3), [[[255, 255, 255], [0x80, 0x80, 0]]])


def test_sixteen_bits_are_scaled_not_clipped():
    image = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16))
    np.testing.assert_array_equal(decode_image(encode(image), 1)[..., 0], [[0, 128, 255]])


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
def test_tiff_of_16_bits(options):
    levels = np.array([[0, 0x8000, 0xFFFF]], np.uint16)
    np.testing.assert_array_equal(
        decode_image(encode(Image.fromarray(levels), "tiff", **options), 1)[..., 0], [[0, 128, 255]]
    )
    negative = encode(Image.fromarray(levels), "tiff", tiffinfo={262: 0}, **options)  # 0 is white
    np.testing.assert_array_equal(decode_image(negative, 1)[..., 0], [[255, 127, 0]])


@pytest.mark.parametrize("mode", ["I;16", "L", "LA", "P", "RGB"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_tiff_of_every_mode_is_turned(mode, compression):
    levels = np.arange(24, dtype=np.uint16).reshape(4, 6) * 10
    image = Image.fromarray(levels * 256) if mode == "I;16" else Image.fromarray(levels.astype(np.uint8)).convert(mode)
    for orientation, turned in (
        (1, levels),
        (3, np.rot90(levels, 2)),
        (6, np.rot90(levels, -1)),
        (8, np.rot90(levels)),
    ):
        encoded = encode(image, "tiff", tiffinfo={274: orientation}, compression=compression)
        np.testing.assert_array_equal(decode_image(encoded, 1)[..., 0], turned)


def test_pgm_of_16_bits_and_of_other_maxima():
    np.testing.assert_array_equal(decode_image(b"P5 3 1 65535\n" + b"\0\0\x80\0\xff\xff", 1)[..., 0], [[0, 128, 255]])
    np.testing.assert_array_equal(decode_image(b"P5 3 1 1023\n" + b"\0\0\x02\0\x03\xff", 1)[..., 0], [[0, 128, 255]])


def raw_tiff(data, size, bits, order="<"):
    """A gray TIFF of samples that Pillow does not write."""
    entries = [(256, size[1]), (257, size[0]), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, size[0])]
    entries += [(279, len(data)), (339, 1)]
    directory = b"".join(struct.pack(f"{order}HHLL", tag, 4, 1, value) for tag, value in entries)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(entries)) + directory + bytes(4)


def test_tiff_of_12_bits_and_of_the_other_byte_order():
    twelve = raw_tiff(bytes.fromhex("000800fff123"), (1, 4), 12)
    np.testing.assert_array_equal(decode_image(twelve, 1)[..., 0], [[0x00, 0x80, 0xFF, 0x12]])
    sixteen = raw_tiff(bytes.fromhex("00008000ffff1234"), (1, 4), 16, ">")
    np.testing.assert_array_equal(decode_image(sixteen, 1)[..., 0], [[0x00, 0x80, 0xFF, 0x12]])


RAMP = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)


@pytest.mark.parametrize(
    ("encoded", "kind"),
    [
        (encode(Image.fromarray(RAMP), "tiff"), "floating-point numbers"),
        (encode(Image.fromarray(RAMP), "ppm"), "floating-point numbers"),
        (encode(Image.fromarray((RAMP * 255).astype(np.int32)), "tiff"), "32-bit integers"),
        (raw_tiff((RAMP * 255).astype("<u4").tobytes(), RAMP.shape, 32), "32-bit integers"),
    ],
)
def test_samples_without_a_white_are_refused(encoded, kind):
    for read in (to_store, functools.partial(decode_image, channels=3)):
        with pytest.raises(UserError, match=f"samples are {kind}, of which nothing says what is black and what white"):
            read(encoded)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_truncated_image_is_named(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encode(Image.fromarray(noise), kind)
    for length in (len(whole) // 2, 20, 0):
        with pytest.raises(UserError, match=r"^cat\.png cannot be read as an image"):
            decode_image(whole[:length], 3, "cat.png")


def test_text_is_no_image():
    with pytest.raises(UserError, match="cannot be read as an image"):
        decode_image(b"not an image at all", 3)


WRITTEN = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "AVIF",
    "PPM",
    "JPEG2000",
    "TGA",
    "DDS",
    "ICO",
    "QOI",
    "PCX",
    "SGI",
)


@pytest.mark.parametrize("format", WRITTEN)
def test_formats_whole_and_broken(format):
    encoded = encode(Image.fromarray(np.tile(COLOURS, (16, 16, 1))), format, **OPTIONS.get(format, {}))
    assert decode_image(encoded, 3).shape == (32, 32, 3)
    decode_image(encoded + b"abc" * 30, 3)  # bytes behind the end mean nothing
    for broken in (encoded[: len(encoded) // 2], encoded[:20], b""):
        for read in (to_store, functools.partial(decode_image, channels=3, source="cat")):
            with pytest.raises(UserError, match=r"^(cat)? ?cannot be read as an image: .|^is an empty file"):
                read(broken)


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(COLOURS), Image.new("RGB", (2, 2))]
    for format in ("GIF", "WEBP", "PNG", "AVIF", "TIFF", "MPO"):
        options = {"lossless": True} if format == "WEBP" else {}
        encoded = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert decode_image(encoded, 3).max() > 240 and decode_image(to_store(encoded), 3).max() > 240


def test_programs_are_never_started():
    with pytest.raises(UserError, match="cannot be read as an image"):  # Pillow would start Ghostscript
        decode_image(encode(Image.fromarray(COLOURS), "eps"), 3)
    assert not {".eps", ".ps", ".pdf", ".mpg", ".wmf", ".h5"} & set(EXTENSIONS)
    assert {".jpg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".mpo"} <= set(
        EXTENSIONS
    )


@pytest.mark.parametrize(
    "error", [MemoryError(), SyntaxError("broken"), RuntimeError("x"), AttributeError(), RecursionError()]
)
def test_whatever_pillow_raises_is_a_sentence(error, monkeypatch):
    def load(image):
        raise error

    encoded = encode(Image.fromarray(COLOURS))
    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(UserError, match=rf"^cat\.png cannot be read as an image: {error or type(error).__name__}"):
        decode_image(encoded, 3, "cat.png")
