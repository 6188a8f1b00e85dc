"""A person's own pictures, from a folder to a trained model, through the streaming pipeline."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from gaternet_jax import build_model, load_model
from gaternet_jax.configs.folder import get_config
from gaternet_jax.errors import UserError
from gaternet_jax.training.evaluate import evaluate
from gaternet_jax.training.loop import train
from gaternet_jax.workdir import load_labels


@pytest.fixture
def pictures(tmp_path):
    """Bright and dark pictures of different sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("validation", 5)):
        for label, level in (("bright", 160), ("dunkle Bäume", 30)):
            for number in range(count):
                path = tmp_path / "pictures" / split / label / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(level, level + 60, (random.integers(20, 60), 40, 3), np.uint8)
                Image.fromarray(pixels).save(path)
    return tmp_path / "pictures"


def config(root, tmp_path, **fields):
    config = get_config()
    small = {
        "model.backbone": "resnet8",
        "model.width": 8,
        "model.gater.extractor": "resnet8",
        "model.gater.width": 8,
        "data.root": str(root),
        "data.data_dir": str(tmp_path / "prepared"),
        "data.image_size": 16,
        "train.batch_size": 16,
        "train.epochs": 4.0,
        "train.eval_every_epochs": 4.0,
        "train.log_every_steps": 2,
        "optimizer.warmup_epochs": 0.5,
        "optimizer.learning_rate": 0.05,
    }
    config.update_from_flattened_dict(small | fields)
    return config


def test_folder_of_pictures_is_prepared_and_learnt(pictures, tmp_path, use_devices):
    use_devices(1)
    workdir = tmp_path / "run"
    stopped = train(config(pictures, tmp_path), workdir, stop_at=3)
    assert not stopped["finished"]
    metrics = train(config(pictures, tmp_path, **{"data.on_error": "skip", "data.threads": 1}), workdir)
    assert metrics["finished"] and metrics["step"] == 8 and metrics["images"] == 10
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["substituted"] for line in lines if "substituted" in line] == [0, 0, 0]
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["model"]["num_classes"] == 2
    assert saved["data"]["name"] == "pictures" and saved["data"]["eval_split"] == "validation"
    assert load_labels(workdir) == ["bright", "dunkle Bäume"]
    assert load_model(workdir)(np.zeros((1, 16, 16, 3), np.float32)).logits.shape == (1, 2)

    for path in pictures.rglob("*.jpg"):
        path.unlink()  # evaluation needs the prepared dataset only
    assert evaluate(workdir)["top1"] == metrics["top1"]


def test_stream_resumes_bit_for_bit(pictures, tmp_path, use_devices):
    use_devices(1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(pictures, tmp_path), whole)
    train(config(pictures, tmp_path), parts, stop_at=5)
    train(config(pictures, tmp_path), parts)
    expected, found = (jax.tree.leaves(load_model(path)) for path in (whole, parts))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_folder_card_without_a_folder_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match=r"say which images: --config\.data\.root=FOLDER"):
        train(config("", tmp_path), tmp_path / "run")


def test_model_without_dataset_needs_its_number_of_classes():
    with pytest.raises(UserError, match=r"model\.num_classes=0 is known only with a dataset"):
        build_model(get_config().model)
