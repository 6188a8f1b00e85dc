import jax
import numpy as np
import pytest
from PIL import Image

from gaternet_jax.analysis import observe as module
from gaternet_jax.analysis.image_source import folder_source, split_source
from gaternet_jax.analysis.observe import (
    load_gated,
    load_observations,
    observe,
    pass_images,
    save_observations,
    thumbnail_size,
)
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.errors import UserError
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.training.checkpoint import load_model
from tests.helpers import random_observations, save_random_model

CLASSES = [str(i) for i in range(10)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("observe")
    return folder, save_random_model(folder)


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in ("3/a.png", "3/deeper/b.png", "7/c.png", "unheard-of/d.png", "e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_observations_are_the_models_own(run):
    workdir, config = run
    assert len(jax.devices()) == 8, "images are spread over devices and come back in order"
    source = split_source(workdir, config, "test[:21]")
    images = np.concatenate([batch["image"] for batch in source.batches()])[:21]
    model = load_model(workdir)
    graphdef, params, stats = split_model(model)
    outputs = jax.jit(lambda images: merge_model(graphdef, params, stats)(normalize(images, config.data)))(images)
    observations, thumbnails = observe(workdir, "test[:21]")
    np.testing.assert_array_equal(observations.gates, outputs.gates == 1)
    np.testing.assert_array_equal(observations.predictions, outputs.logits.argmax(-1))
    np.testing.assert_allclose(observations.confidences, jax.nn.softmax(outputs.logits).max(-1), rtol=1e-4)
    np.testing.assert_allclose(observations.macs, MacCounter(model, 8).fraction(outputs.gates), rtol=1e-5)
    np.testing.assert_array_equal(thumbnails, images)
    assert observations.sites == model.gate_sites and observations.class_names == tuple(CLASSES)


def _pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_files_of_a_folder_with_classes_and_without(run, folder):
    workdir, config = run
    config = config.copy_and_resolve_references()
    config.train.eval_batch_size = 18  # which 8 devices do not divide
    source = folder_source(folder, config, CLASSES)
    (batch,) = source.batches()
    assert batch["label"][:5].tolist() == [3, -1, 7, -1, -1] and batch["mask"].tolist() == [True] * 5 + [False] * 13
    np.testing.assert_array_equal(batch["image"][2, ..., 0], _pixels(folder / "7" / "c.png"))
    batch["mask"][1] = False  # one that cannot be read
    spoiled = source._replace(batches=lambda: iter([batch]))
    observed = pass_images(load_gated(workdir), config, spoiled, CLASSES, sample=3)
    assert observed.observations.labels.tolist() == [3, 7, -1, -1]
    assert len(observed.observations.gates) == 4
    np.testing.assert_array_equal(observed.thumbnails, batch["image"][[0, 2, 3, 4]])
    assert observed.sample.tolist() == [0, 2], "of the images 0, 2, 4 the last is not there"
    np.testing.assert_array_equal(observed.images, observed.thumbnails[[0, 2]])


@pytest.mark.parametrize("seed", range(4))
def test_saved_observations_come_back(tmp_path, seed):
    observations = random_observations(seed, images=13 + seed, widths=(3, 7, 2 + seed), unknown=2)
    save_observations(tmp_path / "gates.npz", observations)
    back = load_observations(tmp_path / "gates.npz")
    for name in ("gates", "labels", "predictions", "confidences", "macs"):
        before, after = getattr(observations, name), getattr(back, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert (back.sites, back.class_names) == (observations.sites, observations.class_names)
    with np.load(tmp_path / "gates.npz") as saved:
        assert saved["gates"].nbytes == -(-observations.gates.size // 8)


def test_thumbnails_are_small(monkeypatch):
    assert (thumbnail_size(10, 32, 3), thumbnail_size(10, 224, 3)) == (32, 96)
    side = thumbnail_size(1_000_000, 224, 3)
    assert side < 96 and 1_000_000 * 3 * side**2 <= module.MAX_BYTES
    large = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 1), np.uint8)
    small = module._shrink(large, 8)
    assert small.shape == (3, 8, 8, 1)
    np.testing.assert_allclose(small[2, 0, 0, 0], large[2, :3, :3].mean(), atol=1)


def test_what_cannot_be_used_is_named(run, folder, tmp_path):
    workdir, config = run
    with pytest.raises(UserError, match="has no images in split 'nothing'"):
        split_source(workdir, config, "nothing")
    with pytest.raises(UserError, match="has no images in split"):
        split_source(workdir, config, "test[:0]")
    with config.unlocked():
        config.data.name = "cifar10"
    with pytest.raises(UserError, match=r"(?s)not prepared.*--images=FOLDER"):
        split_source(workdir, config)
    with pytest.raises(UserError, match="is not a folder"):
        folder_source(tmp_path / "absent", config, CLASSES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image files.*\.png"):
        folder_source(tmp_path / "empty", config, CLASSES)
    (folder / "3" / "a.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"3/a\.png cannot be read"):
        next(folder_source(folder, config, CLASSES).batches())
