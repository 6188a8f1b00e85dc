import io

import numpy as np
import pytest
from PIL import Image

from gaternet_jax.data.images import BOX_NUMBERS, Box, center_box, decode_image, random_box, read_box
from gaternet_jax.data.jpeg import parse_jpeg
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


def read_center(image, size, channels=3, **options):
    return read_box(encode(Image.fromarray(image)), center_box, size, channels=channels, resize="area", **options)


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (7, 5), (1, 300)])
def test_resize_takes_the_centre(shape):
    height, width = shape
    columns = np.broadcast_to(np.linspace(0, 200, width)[None, :, None], (height, width, 3))
    result = read_center(np.round(columns).astype(np.uint8), 16)
    assert result.shape == (16, 16, 3) and result.dtype == np.uint8
    assert abs(float(result.mean()) - 100) < 3, "the centre of the picture is the centre of the crop"


def test_image_of_the_right_size_is_untouched():
    np.testing.assert_array_equal(read_center(COLOURS, 2), COLOURS)
    assert read_center(COLOURS, 4, channels=1).shape == (4, 4, 1)


def test_area_counts_all_pixels_and_bilinear_does_not():
    checks = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (32, 32))
    checks[::8, ::8] = 255
    area = read_center(np.stack([checks] * 3, -1), 8)
    assert abs(float(area.mean()) - float(checks.mean())) < 1


def test_box_of_an_eighth_and_more_of_the_shorter_side():
    assert center_box(375, 500, 0.875) == Box(23, 86, 328, 328)
    assert center_box(3, 1000, 0.01) == Box(1, 499, 1, 1)


def test_random_boxes_have_the_area_and_aspect_asked_for():
    random = np.random.default_rng(0)
    boxes = np.array(
        [random_box(random.random(BOX_NUMBERS).tolist(), 375, 500, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(2000)]
    )
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (top + height <= 375).all() and (left >= 0).all() and (left + width <= 500).all()
    area, aspect = height * width / (375 * 500), width / height
    assert 0.078 < area.min() < 0.1 and 0.9 < area.max() <= 1
    assert aspect.min() > 0.74 and aspect.max() < 1.35 and abs(np.log(aspect).mean()) < 0.05
    assert top.min() == 0 and (top + height).max() == 375, "every place is reached"
    assert random_box([0.5] * BOX_NUMBERS, 10, 20_000, (0.5, 1.0), (3 / 4, 4 / 3)) == Box(0, 9993, 10, 13)


def test_file_of_too_many_pixels_is_refused():
    header = bytearray(encode(Image.new("RGB", (16, 16)), "jpeg"))
    jpeg = parse_jpeg(bytes(header))
    header[jpeg.height_at : jpeg.height_at + 4] = (65_000).to_bytes(2) * 2
    with pytest.raises(UserError, match=r"huge\.jpg cannot be read as an image: .*limit"):
        read_box(bytes(header), center_box, 8, channels=3, resize="area", source="huge.jpg")
