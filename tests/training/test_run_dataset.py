"""A run and its dataset: what is told apart, what is the same, and that nothing is overwritten before that is known."""

import shutil

import pytest

from gaternet_jax.data.batches import BatchShard
from gaternet_jax.data.datasets import find_run_dataset
from gaternet_jax.data.prepare.folders import prepare_folder
from gaternet_jax.data.record import DatasetRecord
from gaternet_jax.data.splits import open_run_split
from gaternet_jax.errors import UserError
from gaternet_jax.training.evaluate import check_fits, evaluate
from gaternet_jax.training.loop import train
from gaternet_jax.workdir import load_config, load_dataset, save_config, save_dataset
from tests.helpers import digits_config, save_random_model
from tests.image_folders import make_dataset, make_folder

ALONE = BatchShard(0, 1)


def pets_config(data_dir, **fields):
    return digits_config(**{"data.name": "pets", "data.data_dir": str(data_dir), "model.num_classes": 0} | fields)


@pytest.fixture
def pets(tmp_path):
    """A run on cats and dogs, as far as a workdir tells, and where its dataset is."""
    data_dir, workdir = tmp_path / "data", tmp_path / "run"
    make_dataset(data_dir / "pets" / "1.0.0", {"train": [0, 1, 0, 1], "test": [0, 1]})
    config, _, dataset = find_run_dataset(pets_config(data_dir))
    save_config(config, list(dataset.classes), workdir)
    save_dataset(dataset, workdir)
    (workdir / "checkpoints" / "5").mkdir(parents=True)
    return workdir, data_dir


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_keeps_whole_paths_for_who_looks_at_it_from_another_folder(tmp_path, monkeypatch):
    make_folder(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    config, _, _ = find_run_dataset(pets_config("data", **{"data.name": "", "data.root": "pets"}))
    assert (config.data.root, config.data.data_dir) == (f"{tmp_path}/pets", f"{tmp_path}/data")
    config, _, _ = find_run_dataset(digits_config())
    assert (config.data.root, config.data.data_dir) == ("", "")


def test_record_survives_its_file(tmp_path):
    dataset = DatasetRecord("flowers/small", "3.0.1", ("Rose", "Märzenbecher"), {"train": 3}, "abc")
    save_dataset(dataset, tmp_path)
    assert load_dataset(tmp_path) == dataset


def test_run_without_a_record_is_told_by_its_labels(tmp_path):
    save_config(digits_config(**{"model.num_classes": 2}), ["a", "b"], tmp_path)
    assert load_dataset(tmp_path) == DatasetRecord("digits", "", ("a", "b"), {}, "")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"classes": 3}', '{"classes": ["a"]}'])
def test_damaged_record(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json is damaged .*delete it"):
        load_dataset(tmp_path)


def test_splits_of_other_classes_are_refused_and_some_of_them_mapped(pets):
    workdir, data_dir = pets
    config = load_config(workdir)
    shutil.rmtree(data_dir)
    make_dataset(data_dir / "pets" / "1.0.0", {"test": [0, 0, 0]}, ["dog"])
    (batch,) = open_run_split(load_dataset(workdir), config, "test", ALONE).eval_batches(3)
    assert batch["label"].tolist() == [1, 1, 1]
    shutil.rmtree(data_dir)
    make_dataset(data_dir / "pets" / "1.0.0", {"test": [0, 1]}, ["dog", "lynx"])
    with pytest.raises(UserError, match=r"knows 2 \(cat, dog\); the dataset has 2 \(dog, lynx\).*'lynx'"):
        open_run_split(load_dataset(workdir), config, "test", ALONE)
    (workdir / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"knows 2 \(cat, dog\); the dataset has 2 \(dog, lynx\).*'lynx'"):
        open_run_split(load_dataset(workdir), config, "test", ALONE)


def test_version_of_the_run_is_taken_while_it_is_there(pets, capsys):
    workdir, data_dir = pets
    make_dataset(data_dir / "pets" / "2.0.0", {"test": [0, 1, 1]})
    assert open_run_split(load_dataset(workdir), load_config(workdir), "test", ALONE).num_images == 2
    shutil.rmtree(data_dir / "pets" / "1.0.0")
    assert open_run_split(load_dataset(workdir), load_config(workdir), "test", ALONE).num_images == 3
    assert "Note: 'pets' 2.0.0 is not what the run was trained on" in capsys.readouterr().err


def test_run_without_a_dataset_says_so(tmp_path):
    save_config(digits_config(**{"data.name": "", "model.num_classes": 1}), ["a"], tmp_path)
    with pytest.raises(UserError, match="does not tell which dataset its model is for"):
        open_run_split(load_dataset(tmp_path), load_config(tmp_path), "test", ALONE)


@pytest.mark.parametrize(
    ("splits", "classes", "sentence"),
    [
        ({"train": [0, 1, 0, 1], "test": [0, 1]}, ["dog", "cat"], "class 0 is 'cat' in the run, but 'dog' here"),
        (
            {"train": [0, 1, 0, 1, 2], "test": [0, 1]},
            ["cat", "dog", "emu"],
            "class 2 is '.none.' in the run, but 'emu'",
        ),
        ({"train": [0, 1, 0, 1, 1], "test": [0, 1]}, ["cat", "dog"], "was trained on 'pets' 1.0.0 .4 train"),
    ],
)
def test_run_does_not_go_on_with_other_data(pets, splits, classes, sentence, use_devices):
    use_devices(1)
    workdir, data_dir = pets
    shutil.rmtree(data_dir)
    make_dataset(data_dir / "pets" / "1.0.0", splits, classes)
    before = contents(workdir)
    with pytest.raises(UserError, match=sentence):
        train(pets_config(data_dir), workdir)
    assert contents(workdir) == before


def test_folder_by_any_path_or_by_its_prepared_name_is_the_same(tmp_path):
    root = make_folder(tmp_path / "here" / "My Pets")
    shutil.copytree(root, tmp_path / "there" / "Animals")
    data_dir = tmp_path / "data"
    prepare_folder(root, data_dir, "", workers=1)  # quicker than in workers
    prepare_folder(tmp_path / "there" / "Animals", data_dir, "", workers=1)
    _, _, first = find_run_dataset(pets_config(data_dir, **{"data.name": "", "data.root": str(root)}))
    assert first.name == "my_pets" and first.images == {"train": 8, "test": 4}
    _, _, named = find_run_dataset(pets_config(data_dir, **{"data.name": "my_pets"}))
    moved = {"data.name": "", "data.root": f"{tmp_path}/there/../there/Animals/"}
    _, _, moved = find_run_dataset(pets_config(data_dir, **moved))
    assert named == first and moved.name == "animals" and moved.digest == first.digest


def test_folder_named_like_a_prepared_dataset_means_the_folder(tmp_path):
    data_dir = tmp_path / "data"
    make_dataset(data_dir / "flowers" / "3.0.1", {"train": [0], "test": [0]}, ["tfds"])
    root = make_folder(tmp_path / "flowers", classes=("rose", "tulip"))
    prepare_folder(root, data_dir, "", workers=1)
    config, _, dataset = find_run_dataset(pets_config(data_dir, **{"data.name": "", "data.root": str(root)}))
    assert dataset.classes == ("rose", "tulip")
    workdir = tmp_path / "run"
    save_config(config, list(dataset.classes), workdir)
    save_dataset(dataset, workdir)
    assert open_run_split(load_dataset(workdir), config, "test", ALONE).num_images == 4


def test_evaluation_on_another_dataset(tmp_path, use_devices):
    use_devices(1)
    save_random_model(tmp_path / "run", **{"model.gating": "none", "model.width": 4})
    make_dataset(tmp_path / "data" / "some" / "1.0.0", {"test": [0, 1, 1]}, ["7", "3"])
    overrides = {"data.name": "some", "data.data_dir": str(tmp_path / "data")}
    assert evaluate(tmp_path / "run", overrides)["images"] == 3


def test_config_given_to_evaluation_must_be_the_runs(tmp_path):
    config = digits_config(**{"model.gating": "all"})
    save_config(config, ["a"], tmp_path)
    check_fits(tmp_path, digits_config(**{"model.gating": "all", "train.epochs": 9.0, "model.num_classes": 0}))
    other = digits_config(**{"model.gating": "none", "data.image_size": 9, "data.name": "cifar10"})
    with pytest.raises(UserError) as error:
        check_fits(tmp_path, other, {"data.name"})
    assert "model.gating: all in the run, none given" in str(error.value)
    assert "data.image_size: 8 in the run, 9 given" in str(error.value)
    assert "data.name" not in str(error.value)
    with pytest.raises(UserError, match=r"data\.name: digits in the run, cifar10 given"):
        check_fits(tmp_path, other)


def test_evaluation_takes_fields_that_are_as_in_the_run(tmp_path):
    save_config(digits_config(), ["a"], tmp_path)
    with pytest.raises(UserError, match=r"evaluation cannot change model\.width;"):
        evaluate(tmp_path, {"model.width": 9, "model.channels": 1, "data.mean": tuple(digits_config().data.mean)})
