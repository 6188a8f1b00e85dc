"""Labels that are no class: said as what they are, never learnt, never right."""

import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax.configs.folder import get_config
from gaternet_jax.data.batches import BatchShard
from gaternet_jax.data.datasets import find_dataset, find_run_dataset
from gaternet_jax.data.splits import open_split
from gaternet_jax.errors import UserError
from gaternet_jax.training.objective import cross_entropy
from tests.image_folders import make_dataset

PIPELINES = pytest.mark.parametrize("pipeline", ["stream", "memory"])


def config(tmp_path, **fields):
    config = get_config().unlock()
    small = {"data.image_size": 8, "data.threads": 1, "data.train_crop": "center", "data.name": "semi"}
    config.update_from_flattened_dict(small | {"data.data_dir": str(tmp_path / "data")} | fields)
    return config


def open_labels(tmp_path, labels, **fields):
    make_dataset(tmp_path / "data" / "semi" / "1.0.0", {"train": labels})
    builder = find_dataset("semi", str(tmp_path / "data"))
    return open_split(builder, "train", config(tmp_path, **fields), BatchShard(0, 1))


@PIPELINES
@pytest.mark.parametrize(
    ("label", "what"),
    [(-1, r"no label \(-1\)"), (None, r"no label \(-1\)"), (2, r"a label outside of the 2 classes \(2\)")],
)
def test_image_without_a_class_is_an_error_when_the_split_is_opened(tmp_path, pipeline, label, what):
    with pytest.raises(UserError, match=rf"^image 2 of semi/train has {what}.*data\.on_error=skip$"):
        open_labels(tmp_path, [0, 1, label, 1], **{"data.pipeline": pipeline})


def test_image_that_the_first_look_does_not_see_is_an_error_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("gaternet_jax.data.reader.SAMPLE", 2)
    split = open_labels(tmp_path, [0, 1, -1, 1])
    with pytest.raises(UserError, match=r"image 2 of semi/train has no label \(-1\)\. To go on without such images"):
        list(split.eval_batches(4))


@PIPELINES
def test_images_without_a_class_are_left_out_if_asked(tmp_path, pipeline, capsys):
    split = open_labels(tmp_path, [0, -1, 1, 7], **{"data.pipeline": pipeline, "data.on_error": "skip"})
    (batch,) = split.eval_batches(4)
    assert batch["label"].tolist() == [0, -1, 1, -1] and batch["mask"].tolist() == [True, False, True, False]
    train = next(split.train_batches(4, seed=0, first_step=0))
    assert set(train["label"].tolist()) == {0, 1} and train["mask"].sum() == 2
    said = capsys.readouterr().err
    assert "Left out: image 1 of semi/train has no label (-1)\n" in said
    assert "Left out: image 3 of semi/train has a label outside of the 2 classes (7)\n" in said
    assert "cannot be read" not in said


@PIPELINES
def test_split_without_labels_cannot_be_trained_on(tmp_path, pipeline):
    with pytest.raises(UserError, match=r"no image of semi/train can be used: image 0 of semi/train has no label"):
        split = open_labels(tmp_path, [-1] * 4, **{"data.pipeline": pipeline, "data.on_error": "skip"})
        next(split.train_batches(4, seed=0, first_step=0))


def test_long_lists_of_images_left_out_are_cut(tmp_path, capsys):
    open_labels(tmp_path, [0] + [-1] * 30, **{"data.pipeline": "memory", "data.on_error": "skip"})
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Left out")]
    assert len(said) == 21 and said[-1] == "Left out: further images of semi/train"


def test_labels_of_a_part_of_the_classes_become_those_of_the_model(tmp_path):
    make_dataset(tmp_path / "data" / "semi" / "1.0.0", {"test": [0, 1, 1]})
    builder = find_dataset("semi", str(tmp_path / "data"))
    split = open_split(builder, "test", config(tmp_path), BatchShard(0, 1), labels=[5, 3])
    assert np.concatenate([batch["label"][batch["mask"]] for batch in split.eval_batches(2)]).tolist() == [5, 3, 3]


@pytest.mark.parametrize(
    ("test", "validation", "chosen"),
    [([-1, -1], [0, 1], "validation"), ([-1, 1], [0, 1], "test"), ([0, 1], [0], "test"), ([-1], [-1], "test")],
)
def test_test_split_without_labels_is_not_chosen_where_validation_has_them(tmp_path, test, validation, chosen):
    splits = {"train": [0, 1], "test": test, "validation": validation}
    make_dataset(tmp_path / "data" / "semi" / "1.0.0", splits)
    resolved, _, _ = find_run_dataset(config(tmp_path))
    assert resolved.data.eval_split == chosen


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_a_label_that_is_no_class_is_not_a_number(smoothing):
    loss = cross_entropy(jnp.ones((4, 2)), jnp.array([0, 1, 2, -1]), smoothing)
    assert np.isnan(loss).tolist() == [False, False, True, True]
