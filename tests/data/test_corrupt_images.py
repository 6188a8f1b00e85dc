import os

import pytest
import tensorflow_datasets as tfds

from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.data.prepare import building, image_files
from gaternet_jax.data.prepare import folders as prepare
from gaternet_jax.data.prepare.folders import prepare_folder
from gaternet_jax.errors import UserError
from tests.image_folders import encode, expected, make_folder, read


@pytest.fixture
def root(tmp_path, monkeypatch):
    """8 training and 4 test images, in 4 and 2 shards."""
    monkeypatch.setattr(prepare, "SHARD_IMAGES", 2)
    return make_folder(tmp_path / "images")


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "prepared"


@pytest.fixture
def broken(root):
    (root / "train/cat/0.jpg").write_bytes(b"")
    (root / "train/dog/3.jpg").write_bytes(encode(0)[:-40])
    (root / "test/dog/1.jpg").write_bytes(b"text")
    (root / "test/dog/link.jpg").symlink_to("nowhere")
    return root


REASONS = {
    "train/cat/0.jpg": "is an empty file",
    "train/dog/3.jpg": "cannot be read as an image: ",
    "test/dog/1.jpg": "cannot be read as an image: cannot identify image file",
    "test/dog/link.jpg": "cannot be read: No such file or directory",
}


def test_corrupt_images_are_listed(broken, data_dir):
    work = data_dir / "pets" / ".preparing-1.0.0"
    with pytest.raises(UserError) as error:
        prepare_folder(broken, data_dir, "pets", workers=1)
    message = str(error.value)
    assert message.startswith(f"4 images cannot be read (all are listed in {work}/corrupt.txt):\n  {broken}/")
    assert "or leave them out with --skip_corrupt of" in message and "BytesIO" not in message
    lines = dict(line.split("\t") for line in (work / "corrupt.txt").read_text().splitlines())
    assert lines.keys() == {f"{broken}/{name}" for name in REASONS}
    for name, reason in REASONS.items():
        assert f"  {broken}/{name}: {reason}" in message and lines[f"{broken}/{name}"].startswith(reason)
    assert not (data_dir / "pets" / "1.0.0").exists()


def test_corrupt_images_are_left_out(broken, data_dir, capfd):
    with pytest.raises(UserError):
        prepare_folder(broken, data_dir, "pets", workers=1)
    folder = prepare_folder(broken, data_dir, "pets", workers=1, skip_corrupt=True)
    for split in ("train", "test"):
        good = {name: record for name, record in expected(broken, split).items() if f"{split}/{name}" not in REASONS}
        assert read("pets", data_dir, split) == good
    output = capfd.readouterr().out
    assert "7 of 7 shards are there already" in output and "Left out 4 images" in output
    assert all(f"  {broken}/{name}: {reason}" in output for name, reason in REASONS.items())
    assert len((folder / "corrupt.txt").read_text().splitlines()) == 4


def test_images_are_looked_at_again(root, data_dir, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"^1 image cannot be read \(all are listed in"):
        patch.setattr(image_files.ImageFile, "read", lambda image: b"" if image.name == "cat/1.jpg" else encode(0))
        (root / "test/cat/1.jpg").unlink()
        prepare_folder(root, data_dir, "pets", workers=1)
    prepare_folder(root, data_dir, "pets", workers=1)


def test_long_lists_are_cut(root, data_dir, monkeypatch):
    monkeypatch.setattr(building, "LISTED", 3)
    for path in (root / "test").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="4 images cannot") as error:
        prepare_folder(root, data_dir, "pets", workers=1)
    assert str(error.value).count("is an empty file") == 3 and "  and 1 more\n" in str(error.value)


def test_shards_without_images(root, data_dir):
    order = list(read("pets", prepare_folder(root, data_dir / "whole", "pets", workers=1).parents[1], "train"))
    for name in order[2:4]:
        (root / "train" / name).write_bytes(b"")
    prepare_folder(root, data_dir, "pets", workers=1, skip_corrupt=True)
    assert list(read("pets", data_dir, "train")) == order[:2] + order[4:]
    assert find_dataset("pets", str(data_dir)).info.splits["train"].shard_lengths == [2, 0, 2, 2]


def test_class_or_split_without_images_left(root, data_dir):
    for path in (root / "test").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image of split 'test' can be read"):
        prepare_folder(root, data_dir, "pets", workers=1, skip_corrupt=True)
    for path in (root / "train/dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no training image of class 'dog' can be read"):
        prepare_folder(root, data_dir, "pets", workers=1, skip_corrupt=True)


def test_names_that_are_not_utf8(root, data_dir, capfd):
    name = os.fsdecode(b"caf\xe9.jpg")
    (root / "train/cat" / name).write_bytes(encode(100))
    (root / "train/cat" / f"0{name}").write_bytes(b"")
    folder = prepare_folder(root, data_dir, "pets", workers=1, skip_corrupt=True)
    assert b"0caf\xe9.jpg\t" in (folder / "corrupt.txt").read_bytes()
    source = find_dataset("pets", str(data_dir)).as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    assert b"cat/caf\xe9.jpg" in [record["file_name"] for record in source]
