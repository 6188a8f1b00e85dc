import io

import numpy as np
import pytest
from PIL import Image

from gaternet_jax.data.images import Box, center_box, decode_image, read_box
from gaternet_jax.data.jpeg import decode_jpeg_part, parse_jpeg
from gaternet_jax.data.prepare.image_files import to_store
from gaternet_jax.errors import UserError


def photograph(height, width):
    """Smooth colours with some detail: what JPEG is made for."""
    y, x = np.mgrid[:height, :width] / 40
    waves = np.stack([np.sin(x + y), np.cos(2 * x), np.sin(y / 2 - x)], -1)
    return np.round(127 + 90 * waves).astype(np.uint8)


def encode(image, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, "jpeg", **({"quality": 95} | options))
    return file.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_rows_of_a_part_are_those_of_the_whole(subsampling, mode):
    encoded = encode(photograph(130, 90), mode, subsampling=subsampling)
    jpeg = parse_jpeg(encoded)
    assert (jpeg.height, jpeg.width, jpeg.can_be_cut) == (130, 90, True)
    whole = decode_jpeg_part(encoded, jpeg, 130, 1, channels=3, fast=True).copy()
    for bottom in (1, 8, 16, 17, 100, 129):
        part = decode_jpeg_part(encoded, jpeg, bottom, 1, channels=3, fast=True)
        assert bottom <= len(part) <= min(bottom + 16, 130)
        np.testing.assert_array_equal(part[:bottom], whole[:bottom])
    exact = decode_jpeg_part(encoded, jpeg, 1, 1, channels=3, fast=False)
    np.testing.assert_allclose(exact.astype(int), decode_image(encoded, 3), atol=1)
    np.testing.assert_allclose(whole.astype(int), exact, atol=25)


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}, {"exif": Image.Exif()}])
def test_other_jpegs_are_read_too(options):
    encoded = encode(photograph(64, 48), **options)
    assert parse_jpeg(encoded).can_be_cut is ("progressive" not in options)
    box = Box(8, 4, 16, 16)
    found = read_box(encoded, lambda *_: box, 16, channels=3, resize="area", fast=True)
    np.testing.assert_allclose(found.astype(int), decode_image(encoded, 3)[8:24, 4:20], atol=25)


def test_rotated_and_cmyk_go_to_pillow():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    rotated = encode(photograph(64, 48), exif=exif)
    cmyk = encode(photograph(64, 48), "CMYK")
    assert parse_jpeg(rotated) is None and parse_jpeg(cmyk) is None
    for encoded in (rotated, cmyk):
        upright = decode_image(encoded, 3)
        found = read_box(encoded, lambda height, width: Box(0, 0, height, width), 48, channels=3, resize="area")
        assert abs(float(found.mean()) - float(upright.mean())) < 2
    assert decode_image(rotated, 3).shape == (48, 64, 3)


def test_large_images_are_shrunk_while_decoded():
    image = photograph(400, 600)
    encoded = encode(image, subsampling=0)
    small = decode_jpeg_part(encoded, parse_jpeg(encoded), 400, 4, channels=3, fast=False)
    assert small.shape == (100, 150, 3)
    found = read_box(encoded, center_box, 50, channels=3, resize="area")
    expected = np.asarray(Image.fromarray(image[:, 100:500]).resize((50, 50), Image.Resampling.BOX))
    np.testing.assert_allclose(found.astype(int), expected, atol=12)


@pytest.mark.parametrize("fast", [False, True])
def test_truncated_jpeg_is_refused_whatever_part_is_asked_for(fast):
    whole = encode(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    for length in (len(whole) - 2, len(whole) // 2, 700, 200, 3):
        with pytest.raises(UserError, match=r"^cat\.jpg cannot be read as an image"):
            read_box(
                whole[:length], lambda *_: Box(0, 0, 8, 8), 8, channels=3, resize="area", fast=fast, source="cat.jpg"
            )


def test_threads_do_not_share_memory():
    from concurrent.futures import ThreadPoolExecutor

    files = [encode(np.full((64, 64, 3), value, np.uint8)) for value in range(0, 256, 8)] * 8
    with ThreadPoolExecutor(8) as pool:
        means = pool.map(lambda f: read_box(f, center_box, 32, channels=3, resize="area", fast=True).mean(), files)
        np.testing.assert_allclose(list(means), list(range(0, 256, 8)) * 8, atol=1)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_picture_cut_in_half_but_closed_is_refused(mode, options):
    encoded = encode(photograph(300, 400), mode, **options)
    assert read(encoded, fast=True).shape == (16, 16, 3)
    for at in (len(encoded) // 2, len(encoded) * 3 // 4):
        closed = encoded[:at] + b"\xff\xd9"
        for attempt in (to_store, read, lambda file: decode_image(file, 3)):
            with pytest.raises(UserError, match=r"cannot be read as an image: .*premature end"):
                attempt(closed)


def test_rotated_picture_cut_in_half_but_closed_is_refused():
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(photograph(300, 400), exif=exif)
    for attempt in (to_store, read):
        with pytest.raises(UserError, match="premature end"):
            attempt(encoded[: len(encoded) * 3 // 4] + b"\xff\xd9")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_bytes_that_mean_nothing_are_no_damage(mode):
    encoded = encode(photograph(64, 48), mode)
    whole = decode_image(encoded, 3)
    behind, behind_and_closed = encoded + bytes(999), encoded + b"more" * 99 + b"\xff\xd9"
    before_the_end, twice = encoded[:-2] + bytes(500) + b"\xff\xd9", encoded + encoded[: len(encoded) // 2]
    for file in (behind, behind_and_closed, before_the_end, twice):
        np.testing.assert_array_equal(decode_image(file, 3), whole)
        assert abs(float(read(file).mean()) - float(read(encoded).mean())) < 1
        assert (to_store(file) == file) == (mode != "CMYK")


def read(file, fast=False):
    return read_box(file, lambda height, width: Box(0, 0, height, width), 16, channels=3, resize="area", fast=fast)


def test_files_too_short_for_their_size_are_refused_at_once():
    for mode in ("L", "RGB"):
        blank = np.zeros((2000, 2000, 3), np.uint8)
        for options in ({"optimize": True}, {"progressive": True, "optimize": True, "subsampling": 2}):
            assert parse_jpeg(encode(blank, mode, quality=1, **options)) is not None, "the fewest bytes there can be"
    encoded = bytearray(encode(photograph(64, 48), progressive=True))
    size_at = encoded.index(b"\xff\xc2") + 5
    encoded[size_at : size_at + 4] = (9000).to_bytes(2) * 2  # libjpeg would look through all of it, scan by scan
    assert parse_jpeg(bytes(encoded)) is None
    for attempt in (to_store, read):
        with pytest.raises(UserError, match=r"premature end: .* bytes cannot hold 9000 x 9000 pixels"):
            attempt(bytes(encoded))


def test_sampling_factors_of_zero_are_refused():
    encoded = bytearray(encode(photograph(64, 48), "L"))
    factors = encoded.index(b"\xff\xc0") + 11
    assert encoded[factors] == 0x11
    encoded[factors] = 0x10
    for fast in (False, True):
        with pytest.raises(UserError, match="cannot be read as an image"):
            read(bytes(encoded), fast=fast)
