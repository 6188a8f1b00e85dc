import numpy as np
import pytest
from PIL import Image

from gaternet_jax.config import default
from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.data.images import BOX_NUMBERS, Box, center_box, random_box, read_box, read_files
from gaternet_jax.data.jpeg import parse_jpeg
from gaternet_jax.data.prepare.folders import prepare_folder
from gaternet_jax.data.reader import Reader
from gaternet_jax.errors import UserError
from tests.data.test_decode import encode
from tests.image_folders import make_folder

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


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


def test_unknown_ways_to_resize_are_refused():
    for kind in ("png", "jpeg"):
        picture = encode(Image.new("RGB", (40, 40)), kind)
        with pytest.raises(UserError, match="unknown resize 'cubic'; known: area, bilinear"):
            read_box(picture, center_box, 20, channels=3, resize="cubic")


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


def test_background_is_the_runs_own_everywhere(tmp_path):
    root, drawing = make_folder(tmp_path / "images", 1, 1), Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    drawing.paste((10, 20, 30, 255), (0, 0, 16, 8))
    for name in ("train/cat/0.jpg", "test/cat/0.jpg"):
        drawing.save(root / name, "PNG")
    prepare_folder(root, tmp_path / "data", "pets", workers=1)
    config = default()
    for colour in ((255, 255, 255), (0, 0, 255)):
        config.data.update(name="pets", image_size=16, background=colour)
        reader = Reader(find_dataset("pets", str(tmp_path / "data")), "train", config)
        found = [np.empty((16, 16, 3), np.uint8) for _ in range(2)]
        labels = [reader.read(index, out) for index, out in enumerate(found)]
        expected = np.array([(10, 20, 30)] * 8 + [colour] * 8, np.uint8)[:, None].repeat(16, 1)
        np.testing.assert_array_equal(found[labels.index(0)], expected)
        np.testing.assert_array_equal(read_files([root / "test/cat/0.jpg"], config.data, 3)[0], expected)
