import io

import numpy as np
import pytest
from PIL import Image

from gaternet_jax.data.images import decode_image, resize_and_center_crop
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


def test_alpha_is_dropped():
    image = Image.fromarray(COLOURS).convert("RGBA")
    image.putalpha(0)
    np.testing.assert_array_equal(decode_image(encode(image), 3), COLOURS)


def test_sixteen_bits_are_scaled_not_clipped():
    image = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16))
    np.testing.assert_array_equal(decode_image(encode(image), 1)[..., 0], [[0, 128, 255]])


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    assert decode_image(encode(Image.new("RGB", (8, 4)), "jpeg", exif=exif), 3).shape == (8, 4, 3)


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


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (7, 5), (1, 300)])
def test_resize_takes_the_centre(shape):
    height, width = shape
    columns = np.broadcast_to(np.linspace(0, 200, width)[None, :, None], (height, width, 3))
    image = np.round(columns).astype(np.uint8)
    result = resize_and_center_crop(image, 16)
    assert result.shape == (16, 16, 3) and result.dtype == np.uint8
    assert abs(float(result.mean()) - 100) < 3, "the centre of the picture is the centre of the crop"


def test_image_of_the_right_size_is_untouched():
    assert resize_and_center_crop(COLOURS, 2) is COLOURS
    assert resize_and_center_crop(COLOURS[..., :1], 4).shape == (4, 4, 1)
