"""A run in one object, and the Predictor of a run."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import gaternet_jax
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.errors import UserError
from gaternet_jax.inference.predictor import Predictor
from gaternet_jax.run import load_run
from tests.helpers import prefer_two, save_random_model


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_random_model(folder, prefer_two)
    return folder


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)


def test_a_run_has_all_that_a_prediction_needs(workdir, pixels, tmp_path):
    run = load_run(workdir)
    assert isinstance(run, gaternet_jax.Run) and run.workdir == workdir
    assert run.labels == [str(i) for i in range(10)]
    assert run.config.model.backbone == "resnet8" and run.config.is_locked
    expected = normalize(jnp.asarray(pixels), run.config.data)
    np.testing.assert_array_equal(run.preprocess(pixels), expected)
    np.testing.assert_array_equal(run.preprocess(list(pixels)), expected)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    np.testing.assert_array_equal(run.preprocess(paths), expected)
    np.testing.assert_array_equal(run.preprocess(str(paths[0])), expected[:1])


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (3, 9, 9, 1), (8, 8)])
def test_pixels_of_another_shape_are_refused(workdir, shape):
    with pytest.raises(UserError, match=r"must be uint8 pixels of shape \[batch, 8, 8, 1\], .*; got uint8 \["):
        load_run(workdir).preprocess(np.zeros(shape, np.uint8))


def test_normalised_images_are_not_normalised_again(workdir):
    with pytest.raises(UserError, match=r"got float32 \[1, 8, 8, 1\]\. What is normalised already goes to the model"):
        load_run(workdir).preprocess(np.zeros((1, 8, 8, 1), np.float32))


def test_predictor_of_a_run(workdir, pixels, tmp_path):
    run = load_run(workdir)
    expected = nnx.jit(lambda model, images: model(images))(run.model, run.preprocess(pixels))
    assert run.labels[expected.logits[0].argmax()] == "2"
    Image.fromarray(pixels[0, ..., 0]).save(tmp_path / "0.png")
    for source in (run, workdir, str(workdir)):
        predictor = Predictor.from_run(source, "dense", tune=False, batch_sizes=(1,))
        np.testing.assert_allclose(predictor(tmp_path / "0.png").logits, expected.logits[:1], rtol=1e-4, atol=1e-5)


def test_calibration_comes_from_the_run(workdir, monkeypatch):
    made = []
    monkeypatch.setattr(Predictor, "__init__", lambda self, *args, **options: made.append(options))
    Predictor.from_run(workdir, "compact")
    assert made[0]["calibration"].shape == (1000, 8, 8, 1)
    Predictor.from_run(workdir, "compact", calibration=np.zeros((2, 8, 8, 1), np.uint8))
    assert made[1]["calibration"].shape == (2, 8, 8, 1)
    Predictor.from_run(workdir, "dense")
    assert "calibration" not in made[2]


def test_folders_without_a_run(tmp_path):
    (tmp_path / "a file").touch()
    for path in (tmp_path, tmp_path / "a file", tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"is not a run: it has no config.json"):
            load_run(path)


def test_checkpoint_can_be_chosen(workdir):
    with pytest.raises(UserError, match="has no checkpoint '7'; it has steps"):
        load_run(workdir, 7)
    np.testing.assert_array_equal(*(load_run(workdir, step).model.backbone.fc.bias for step in (0, "best")))
