import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gaternet_jax.data.prepare.image_files import ImageFile, to_store
from tests.image_folders import encode


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_bytes_of_plain_images_are_kept(format, mode):
    encoded = encode(0, format, mode)
    assert to_store(encoded) is encoded


def test_upright_exif_and_other_metadata_change_nothing():
    exif, text = Image.Exif(), PngInfo()
    exif[0x0112], exif[0x010F] = 1, "camera"
    text.add_text("Title", "noise")
    for encoded in (encode(0, exif=exif), encode(0, "PNG", pnginfo=text)):
        assert to_store(encoded) is encoded


def stored_pixels(encoded):
    assert to_store(encoded) != encoded
    stored = Image.open(io.BytesIO(to_store(encoded)))
    assert (stored.format, stored.mode, stored.getexif()) == ("PNG", "RGB", {})
    return np.asarray(stored)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_rotated_images_are_stored_upright(format):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"lossless": True} if format == "WEBP" else {}
    upright = np.asarray(Image.open(io.BytesIO(encode(0, format, **options))))
    np.testing.assert_array_equal(
        stored_pixels(encode(0, format, exif=exif, **options)), np.rot90(upright, -1), strict=True
    )


@pytest.mark.parametrize(
    ("format", "mode"), [("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "1")]
)
def test_other_modes_are_stored_as_rgb(format, mode):
    encoded = encode(0, format, mode)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    np.testing.assert_array_equal(stored_pixels(encoded), expected, strict=True)


def test_16_bits_are_scaled_not_clipped():
    levels = np.arange(0, 2**16, 257, dtype=np.uint16).reshape(16, 16)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, format="PNG")
    np.testing.assert_array_equal(stored_pixels(file.getvalue())[..., 1], np.arange(256).reshape(16, 16))


def test_16_bits_of_colour_are_stored_as_8():
    import cv2

    pixels = np.full((4, 5, 3), 0x80FF, np.uint16)
    encoded = cv2.imencode(".png", pixels)[1].tobytes()
    np.testing.assert_array_equal(stored_pixels(encoded), np.full((4, 5, 3), 0x80))


def test_transparent_colours_and_animations_are_stored_as_rgb():
    second = Image.new("RGB", (9, 12), "red")
    for options in ({"transparency": (1, 2, 3)}, {"save_all": True, "append_images": [second]}):
        encoded = encode(0, "PNG", **options)
        assert stored_pixels(encoded).shape == (12, 9, 3)


def test_wide_images():
    file = io.BytesIO()
    Image.new("RGB", (20_000, 30), "blue").save(file, format="JPEG")
    assert to_store(file.getvalue()) == file.getvalue()


def bomb():
    encoded = bytearray(encode(0, "JPEG"))
    size = encoded.index(b"\xff\xc0") + 5
    encoded[size : size + 4] = b"\xff\xff\xff\xff"
    return bytes(encoded)


CORRUPT = {
    "truncated": encode(0)[:-40],
    "empty": b"",
    "text": b"this is no image",
    "bomb": bomb(),
    "cut": encode(0, "PNG")[:60],
}


@pytest.mark.parametrize("encoded", CORRUPT.values(), ids=CORRUPT)
def test_broken_images_are_refused(encoded):
    with pytest.raises(Exception, match=r"is an empty file|cannot be read as an image"):
        to_store(encoded)


def test_part_of_an_archive(tmp_path):
    (tmp_path / "archive").write_bytes(b"0123456789")
    assert ImageFile(str(tmp_path / "archive"), "a.jpg", 0, 3, 4).read() == b"456"


def test_modules_of_workers_do_not_import_jax():
    program = (
        "import sys, types; package = types.ModuleType('gaternet_jax'); package.__path__ = ['gaternet_jax']; "
        "sys.modules['gaternet_jax'] = package; "
        "import gaternet_jax.data.prepare.image_files, gaternet_jax.data.prepare.tfrecord; "
        "sys.exit(bool({'jax', 'tensorflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
