"""Bad input is told before anything is compiled; "auto" picks by measurement; threads share one predictor."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from gaternet_jax import Predictor
from gaternet_jax.data.inputs import PNG_MODES, to_array
from gaternet_jax.errors import UserError
from gaternet_jax.inference import modes
from gaternet_jax.inference.modes import first_covering, have_all, plan_specialists
from tests.helpers import digits_config, model_config, random_model, run_model


@pytest.fixture(scope="module")
def model():
    return random_model(model_config(gating="all"))


IMAGES = np.zeros((2, 16, 16, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mode="fast"), "unknown mode 'fast'"),
        (dict(mode="compact"), "needs calibration"),
        (dict(mode="specialists", calibration=IMAGES[:0]), "at least one"),
        (dict(mode="specialists", calibration=IMAGES[..., :1]), r"shape \[batch, size, size, 3\]"),
        (dict(mode="dense", batch_sizes=()), r"batch_sizes=\(\) must be whole numbers greater than 0"),
        (dict(mode="dense", batch_sizes=8), "batch_sizes=8 must be"),
        (dict(mode="dense", batch_sizes=(8.0,)), "batch_sizes=.8.0,. must be"),
        (dict(mode="dense", batch_sizes=(0, 8)), "batch_sizes=.0, 8. must be"),
        (dict(mode="dense", data=digits_config()), "data=config.data"),
        (dict(mode="dense", engine="tensorrt"), "unknown engine 'tensorrt'; known: auto, xla, onnxruntime"),
    ],
)
def test_arguments_that_cannot_be(model, arguments, message):
    with pytest.raises(UserError, match=message):
        Predictor(model, **arguments)


@pytest.mark.parametrize("mode", ["compact", "specialists", "dynamic"])
def test_a_plain_model_has_nothing_to_leave_out(mode):
    with pytest.raises(UserError, match="plain model has no gates"):
        Predictor(random_model(model_config(gating="none")), mode, IMAGES)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.uint8), "uint8"),
        (IMAGES[0], r"\[16, 16, 3\]"),
        (IMAGES[:, :8], "square"),
        (IMAGES[:, :8, :8], r"of shape \[batch, 16, 16, 3\], .* got float32 \[2, 8, 8, 3\]"),
        (IMAGES.transpose(0, 3, 1, 2), "channels last"),
        ("cat.png", "preprocessing"),
        (["cat.png"], "preprocessing"),
        ([Image.new("RGB", (16, 16))], "preprocessing"),
        (["cat.png", IMAGES[0]], "all of them as files or as arrays"),
        ([IMAGES[0], IMAGES[0, :8]], r"one shape; got \(16, 16, 3\) and \(8, 16, 3\)"),
        ([[0.0], [0.0, 1.0]], "one shape"),
        ([], "at least one"),
        ([None], "got object"),
        (IMAGES.tolist()[0][0], "square, of shape"),
        ({"images": IMAGES}, "images are a dict; expected an array or tensor"),
        (iter(IMAGES), "images are a .*; expected"),
        (b"\x89PNG", "images are a bytes; expected"),
        (3, "images are a int; expected"),
        (IMAGES.astype(np.complex64), "got complex64"),
    ],
)
def test_images_that_cannot_be(model, images, message):
    with pytest.raises(UserError, match=message):
        Predictor(model, "dense", IMAGES, tune=False)(images)


def test_no_model():
    with pytest.raises(UserError, match=r"the model is a str; expected a GaterNet, as of load_model\(workdir\)"):
        Predictor("runs/digits")


def test_images_of_every_kind_are_one_array(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    pictures = [Image.fromarray(image[..., 0]) for image in pixels]
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    for images in (pixels, jnp.asarray(pixels), list(pixels), tuple(pixels), pictures, paths, [*map(str, paths)]):
        np.testing.assert_array_equal(to_array(images, digits_config().data, 1), pixels)
    for image in (pictures[0], paths[0], str(paths[0])):
        np.testing.assert_array_equal(to_array(image, digits_config().data, 1), pixels[:1])
    np.testing.assert_array_equal(to_array([paths[0], pictures[1]], digits_config().data, 1), pixels)
    np.testing.assert_array_equal(to_array((pixels / 2).tolist(), None, 1), pixels / 2)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_a_picture_is_read_like_a_file_of_it(mode, tmp_path):
    """Upright, too."""
    data, picture = digits_config().data, Image.new("L", (8, 8)).convert(mode)
    if mode in ("L", "RGB"):
        pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
        picture = Image.fromarray(pixels).convert(mode)
        exif = picture.getexif()
        exif[0x112] = 6  # turned by a quarter
    suffix = "png" if mode in PNG_MODES else "tif"
    picture.save(tmp_path / f"x.{suffix}", exif=picture.getexif())
    expected = to_array(tmp_path / f"x.{suffix}", data, 1)
    np.testing.assert_array_equal(to_array(picture, data, 1), expected)
    if mode == "L":
        np.testing.assert_array_equal(expected[0, ..., 0], np.rot90(np.asarray(picture), -1))


def test_a_picture_that_cannot_be_read(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:-200])
    with Image.open(tmp_path / "x.jpg") as broken, pytest.raises(UserError, match="PIL image 1 cannot be read"):
        to_array([Image.new("L", (8, 8)), broken], digits_config().data, 1)


def test_tensors_of_pytorch():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros((2, 16, 16, 3), requires_grad=True)
    for images in (tensor, list(tensor)):
        assert to_array(images, None, 3).shape == (2, 16, 16, 3)
    with pytest.raises(UserError, match="images, a Tensor, is not an array"):
        to_array(tensor.to(torch.bfloat16), None, 3)


def test_a_predictor_keeps_the_parameters_that_it_was_made_with():
    model = random_model(model_config(gating="all"), seed=1)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    predictor = Predictor(model, "dense", batch_sizes=(1, 2), tune=False)
    before = predictor(images[:1]).logits
    bias = model.backbone.fc.bias
    bias.set_value(bias.get_value() + 100)
    np.testing.assert_allclose(predictor(images).logits[:1], before, atol=1e-4)
    for leaf in jax.tree.leaves(nnx.state(model)):
        leaf.delete()  # as a training step does to which the state was given
    Predictor.warm_up(predictor, 8)


def test_a_missing_file(model, tmp_path):
    config = digits_config()
    with pytest.raises(UserError, match=r"none\.png cannot be read"):
        Predictor(random_model(config.model), "dense", data=config.data, tune=False)([tmp_path / "none.png"])


def test_auto_measures_and_threads_share_it(model):
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    predictor = Predictor(model, "auto", images, batch_sizes=(4,), tune=False)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: predictor(images).logits, range(4)))
    assert set(predictor.seconds[4]) == {"dense", "dynamic", "specialists"}
    assert predictor.chosen[4] == min(predictor.seconds[4], key=predictor.seconds[4].get)
    for logits in found:
        np.testing.assert_array_equal(logits, found[0])


def test_auto_does_not_measure_one_program_by_two_names(model, monkeypatch):
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    monkeypatch.setattr(modes, "plan_profiles", lambda *_: [])
    predictor = Predictor(model, "auto", batch_sizes=(4,), tune=False)
    predictor(images)
    assert set(predictor.seconds[4]) == {"dense"} and predictor.chosen[4] == "dense"


def test_images_go_to_the_cheapest_specialist_that_covers_them():
    keep = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)
    gates = np.array([[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(first_covering(have_all(keep, gates > 0)), [0, 1, 2, 0])
    np.testing.assert_array_equal(first_covering(have_all(keep[:0], gates > 0)), [0, 0, 0, 0], "there is none")


def test_a_model_that_onnx_runtime_does_not_run():
    """bfloat16: XLA takes it, unless ONNX Runtime was asked for."""
    model, images = random_model(model_config(gating="none", dtype="bfloat16")), np.ones((1, 16, 16, 3), np.float32)
    predictor = Predictor(model, "dense", batch_sizes=(1,), tune=False)
    np.testing.assert_allclose(predictor(images).logits, run_model(model, images).logits, atol=5e-2)
    with pytest.raises(UserError, match=r"onnxruntime .* does not run this model"):
        Predictor(model, "dense", batch_sizes=(1,), tune=False, engine="onnxruntime")(images)


def test_clustered_gates_get_specialists_and_random_ones_few(model):
    rng = np.random.default_rng(0)
    size = sum(site.size for site in model.gate_sites)
    clustered = (rng.random((4, size)) < 0.3)[rng.integers(4, size=200)]

    def work(widths):
        return sum(widths) / size

    keep, expected = plan_specialists(clustered, model.gate_sites, work, 64)
    assert len(keep) == 4
    assert expected < 0.8
    assert have_all(keep, clustered).any(1).all()
    assert plan_specialists(rng.random((200, size)) < 0.5, model.gate_sites, work, 64)[1] > 0.9
