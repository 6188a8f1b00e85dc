import os
import re
import shutil

import pytest

from gaternet_jax.data.prepare.folders import dataset_name
from gaternet_jax.data.prepare.sources import list_folder
from gaternet_jax.errors import UserError
from tests.image_folders import encode, make_folder


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "images")


def names(images):
    return [image.name for image in images]


def test_classes_and_images_are_in_order(root):
    listing = list_folder(root)
    assert listing.classes == ["cat", "dog"] and list(listing.splits) == ["train", "test"]
    assert names(listing.splits["test"]) == ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg"]
    assert [image.label for image in listing.splits["test"]] == [0, 0, 1, 1]
    assert listing.splits["test"][0].read() == (root / "test/cat/0.jpg").read_bytes()


def test_extensions_subfolders_links_and_files_that_are_no_images(root):
    shutil.rmtree(root / "train/dog")
    for name in ("A.JPEG", "b.Png", "deep/er/c.webp", ".hidden.jpg", ".cache/d.jpg", "notes.txt", ".DS_Store", "jpg"):
        path = root / "train/dog" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (root / "train/README").write_text("")
    (root / "train/dog/deep/around").symlink_to(root / "train/dog")
    (root / "train/dog/linked").symlink_to(root / "test/cat")
    (root / "train/dog/nowhere.jpg").symlink_to(root / "nowhere")
    listing = list_folder(root)
    dogs = [image.name[4:] for image in listing.splits["train"] if image.label == 1]
    assert dogs == ["A.JPEG", "b.Png", "deep/er/c.webp", "linked/0.jpg", "linked/1.jpg", "nowhere.jpg"]
    ignored = sorted(path[len(str(root / "train")) + 1 :] for path in listing.ignored)
    assert ignored == ["README", "dog/.DS_Store", "dog/.hidden.jpg", "dog/jpg", "dog/notes.txt"]


def test_names_that_are_not_ascii(root):
    (root / "train/cat").rename(root / "train/Büsi und Kätzchen 猫")
    (root / "test/cat").rename(root / "test/Büsi und Kätzchen 猫")
    assert list_folder(root).classes == ["Büsi und Kätzchen 猫", "dog"]


def test_digest_depends_on_names_sizes_times_and_splits(root):
    digests = {list_folder(root).digest}
    image = root / "train/cat/0.jpg"
    modified = image.stat().st_mtime_ns
    image.write_bytes(image.read_bytes() + b"\0")
    os.utime(image, ns=(modified, modified))
    digests.add(list_folder(root).digest)
    image.touch()
    digests.add(list_folder(root).digest)
    image.rename(root / "train/cat/00.jpg")
    digests.add(list_folder(root).digest)
    (root / "test").rename(root / "validation")
    digests.add(list_folder(root).digest)
    assert len(digests) == 5 and list_folder(root).digest in digests


def test_validation_may_be_called_val(root):
    (root / "test").rename(root / "val")
    assert list(list_folder(root).splits) == ["train", "validation"]
    make_folder(root / "more", 1, 1)
    (root / "more/test").rename(root / "validation")
    with pytest.raises(UserError, match="has both validation and val"):
        list_folder(root)


def refused(root, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        list_folder(root)


def test_no_root(tmp_path):
    refused(tmp_path / "nothing", f"{tmp_path}/nothing is not a folder; expected train/CLASS/IMAGE and test/CLASS")


def test_no_train(root):
    (root / "train").rename(root / "training")
    refused(root, f"{root} has the folders test, training; expected train/CLASS/IMAGE")


def test_neither_test_nor_validation(root):
    shutil.rmtree(root / "test")
    refused(root, f"{root} has the folders train; expected train/CLASS/IMAGE and test/CLASS/IMAGE")


def test_no_classes(root):
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    (root / "train/0.jpg").write_bytes(encode(0))
    refused(root, f"{root}/train has no folders of classes")


def test_empty_class_in_train(root):
    (root / "train/emu").mkdir()
    (root / "train/emu/emu.txt").write_text("none found")
    refused(root, f"{root}/train/emu has no images, so that this class cannot be learnt")


def test_empty_class_in_test_is_allowed_but_no_empty_test(root):
    for image in (root / "test/dog").iterdir():
        image.unlink()
    assert names(list_folder(root).splits["test"]) == ["cat/0.jpg", "cat/1.jpg"]
    shutil.rmtree(root / "test/cat")
    refused(root, f"{root}/test has no images")


def test_class_only_in_test(root):
    (root / "test/emu").mkdir()
    refused(root, f"{root}/test/emu is of a class that {root}/train does not have")


@pytest.mark.parametrize("name", ["two\nlines", " cat", "cat ", b"\xff".decode("utf-8", "surrogateescape")])
def test_class_names_that_cannot_be_kept(root, name):
    (root / "train/cat").rename(root / "train" / name)
    refused(root, f"the class folder {name!r} in {root}/train cannot name a class")


@pytest.mark.parametrize(
    ("text", "name"),
    [("Cats & Dogs", "cats_dogs"), ("Büsi", "busi"), ("17 flowers", "images_17_flowers"), ("猫", "images_a810bf84")],
)
def test_names_made_of_folders(text, name):
    assert dataset_name(text, derive=True) == name == dataset_name(name)


def test_names_that_tfds_does_not_take():
    with pytest.raises(UserError, match=r"^'My-Cats' cannot name a dataset: .*, e\.g\. 'my_cats'$"):
        dataset_name("My-Cats")
    with pytest.raises(UserError, match="'digits' is the name of the embedded dataset"):
        dataset_name("Digits", derive=True)
