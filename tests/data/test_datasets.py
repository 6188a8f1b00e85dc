import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gaternet_jax.configs.cifar10 import get_config
from gaternet_jax.data.batches import BatchShard
from gaternet_jax.data.datasets import class_names, find_dataset, record_dataset
from gaternet_jax.data.splits import open_split
from gaternet_jax.errors import UserError
from tests.helpers import digits_config
from tests.image_folders import make_dataset

ALONE = BatchShard(0, 1)


@pytest.fixture(scope="module")
def digits(data_dir):
    builder = find_dataset("digits")
    return builder, [open_split(builder, split, digits_config(), ALONE) for split in ("train", "test")]


def test_digits_are_those_of_scikit_learn(digits):
    builder, (train, test) = digits
    assert class_names(builder) == [str(digit) for digit in range(10)]
    assert train.images.shape == (1437, 8, 8, 1) and test.images.shape == (360, 8, 8, 1)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32
    original = load_digits()
    expected = np.round(original.images * 255 / 16).astype(np.uint8).reshape(-1, 64)
    found = np.concatenate([split.images.reshape(-1, 64) for split in (train, test)])
    labels = np.concatenate([train.labels, test.labels])
    key = lambda images, labels: sorted(map(tuple, np.column_stack([images, labels])))  # noqa: E731
    assert key(found, labels) == key(expected, original.target)
    assert np.bincount(test.labels).min() >= 34, "the split is stratified"


def test_digits_config_has_the_statistics_of_the_training_images(digits):
    _, (train, _) = digits
    config = digits_config()
    np.testing.assert_allclose(config.data.mean, [(train.images / 255).mean()], atol=1e-4)
    np.testing.assert_allclose(config.data.std, [(train.images / 255).std()], atol=1e-4)


def test_part_of_a_split(digits):
    builder, (train, _) = digits
    part = open_split(builder, "train[:100]", digits_config(), ALONE)
    np.testing.assert_array_equal(part.images, train.images[:100])


def test_data_are_prepared_and_read_without_tensorflow(tmp_path):
    program = (
        "import sys; from gaternet_jax.data.datasets import find_dataset; from gaternet_jax.data.splits import "
        "open_split; from gaternet_jax.data.batches import BatchShard; "
        "from gaternet_jax.configs.digits import get_config as c; "
        f"open_split(find_dataset('digits', {str(tmp_path)!r}), 'test', c(), BatchShard(0, 1)); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert list(tmp_path.glob("digits/1.0.0/*.array_record*"))


def test_missing_data_end_in_one_sentence_that_says_how_to_prepare_them(tmp_path):
    with pytest.raises(UserError, match=rf"tools\.prepare stock --name=cifar10 --data_dir={tmp_path}"):
        find_dataset("cifar10", str(tmp_path))


def test_data_dir_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=f"not prepared in {tmp_path}"):
        find_dataset("cifar100")


def test_unknown_dataset_lists_what_is_there(data_dir, digits):
    with pytest.raises(UserError, match=r"unknown dataset 'cifar11': it is not in .* \(which has .*digits.*\)"):
        find_dataset("cifar11")


def test_configs_and_versions(tmp_path):
    for config in ("160px-v2", "full"):
        for version in ("1.0.0", "1.10.0", "1.9.0"):
            make_dataset(tmp_path / "nette" / config / version, {"train": [0]}, config=config)
    builder = find_dataset("nette/160px-v2", str(tmp_path))
    assert record_dataset(builder).name == "nette/160px-v2" and str(builder.version) == "1.10.0"
    assert str(find_dataset("nette/full:1.9.0", str(tmp_path)).version) == "1.9.0"
    with pytest.raises(UserError, match=r"has no version 2\.0\.0 in .*; it has 1\.0\.0, 1\.10\.0, 1\.9\.0"):
        find_dataset("nette/full:2.0.0", str(tmp_path))
    with pytest.raises(UserError, match=r"'nette' is in .* with the configs 160px-v2, full; give one: 'nette/160"):
        find_dataset("nette", str(tmp_path))
    with pytest.raises(UserError, match=r"\(which has digits, nette/160px-v2, nette/full\)"):
        find_dataset("nettle", str(tmp_path))


def test_metadata_that_cannot_be_read(tmp_path):
    folder = make_dataset(tmp_path / "pets" / "1.0.0", {"train": [0]})
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=f"{folder} is no dataset that can be read"):
        find_dataset("pets", str(tmp_path))


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot prepare 'digits'.*--data_dir"):
        find_dataset("digits", str(tmp_path / "file"))


def test_unknown_or_empty_split_lists_those_there_are(digits):
    builder, _ = digits
    with pytest.raises(UserError, match="no images in split 'validation'; its splits are train, test"):
        open_split(builder, "validation", digits_config(), ALONE)
    with pytest.raises(UserError, match=r"no images in split 'train\[:0\]'"):
        open_split(builder, "train[:0]", digits_config(), ALONE)


def test_images_of_another_kind_are_brought_to_the_models(digits):
    builder, (_, test) = digits
    split = open_split(builder, "test[:5]", get_config(), ALONE)
    assert split.images.shape == (5, 32, 32, 3)
    np.testing.assert_allclose(split.images.mean((1, 2, 3)), test.images[:5].mean((1, 2, 3)), rtol=0.1)


def test_leftovers_of_an_interrupted_preparation_are_no_dataset(tmp_path):
    leftover = tmp_path / "digits" / "incomplete.ABC_1.0.0"
    leftover.mkdir(parents=True)
    (leftover / "features.json").write_text("{}")
    (tmp_path / "digits" / "1.0.0.incompleteXYZ").mkdir()
    (tmp_path / "digits" / "1.0.0.incompleteXYZ" / "features.json").write_text("{}")
    assert find_dataset("digits", str(tmp_path)).info.splits["train"].num_examples == 1437
