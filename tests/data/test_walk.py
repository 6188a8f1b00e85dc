import os
import re
import unicodedata

import pytest

from gaternet_jax.data.prepare import sources
from gaternet_jax.data.prepare.folders import prepare_folder
from gaternet_jax.data.prepare.sources import list_folder
from gaternet_jax.data.walk import SYSTEM_FOLDERS, find_images
from gaternet_jax.errors import UserError
from tests.image_folders import encode, make_folder


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "images")


def put(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def names(images):
    return [image.name for image in images]


@pytest.mark.parametrize("name", ["valid", "val", "dev", "eval", "Validation", "VAL"])
def test_other_names_of_the_validation_split(root, name):
    make_folder(root / "more", 1, 3)
    (root / "more/test").rename(root / name)
    listing = list_folder(root)
    assert {split: len(images) for split, images in listing.splits.items()} == {"train": 8, "validation": 6, "test": 4}
    (root / "test").rename(root / "dev2")
    assert list(list_folder(root).splits) == ["train", "validation"]


def test_two_names_of_a_split_are_refused(root):
    for name in ("dev", "Valid"):
        put(root / name / "cat/0.jpg")
    with pytest.raises(UserError, match="has both Valid and dev, names of the same split; rename or remove one"):
        list_folder(root)


def test_a_folder_of_images_beside_the_splits_is_named(root):
    put(root / "extra/cat/0.jpg")
    put(root / "extra/1.gif")
    put(root / "docs/about.txt")
    put(root / "cover.png")
    assert list_folder(root).notes == [
        f"Left out: 1 image in no split, e.g. '{root}/cover.png'",
        f"Left out: '{root}/extra' with 2 images; it is no split (those are called train, validation, valid, val, dev, "
        "eval, test)",
    ]


@pytest.mark.parametrize("name", [*SYSTEM_FOLDERS, ".git"])
def test_folders_of_systems_are_no_classes_and_hold_no_images(root, name):
    before = list_folder(root)
    put(root / "train" / name / "0.jpg")
    put(root / "train/cat" / name / "0.jpg/thumbnail.jpg")
    put(root / name / "deep/1.jpg")
    listing = list_folder(root)
    assert listing[:4] == before[:4]
    root_note, note = listing.notes
    assert root_note == (
        f"Left out: 1 image in folders that are hidden or a system's ({name}), e.g. '{root}/{name}/deep/1.jpg'"
    )
    assert note.startswith(f"Left out: 2 images in folders that are hidden or a system's ({name}), e.g. '{root}/train/")


def test_folders_of_systems_may_be_unreadable(root, monkeypatch):
    put(root / "lost+found/0.jpg")

    def find(folder, **options):
        if "lost+found" in str(folder):
            raise PermissionError
        return find_images(folder, **options)

    monkeypatch.setattr(sources, "find_images", find)
    assert list_folder(root).notes == []


def test_test_images_without_classes_are_left_out(root):
    make_folder(root / "more", 1, 3)
    (root / "more/test").rename(root / "val")
    for path in [*(root / "test").glob("*/*")]:
        path.rename(root / "test" / f"{path.parent.name}{path.name}")
    for folder in ("cat", "dog"):
        (root / "test" / folder).rmdir()
    listing = list_folder(root)
    assert list(listing.splits) == ["train", "validation"]
    what = f"{root}/test has 4 images, but in no folder of a class"
    assert f"Left out: {what}, so that nothing tells what they show" in listing.notes
    (root / "val").rename(root / "more/val")
    with pytest.raises(UserError, match=re.escape(f"{what}; expected train/CLASS/IMAGE")):
        list_folder(root)


def test_training_images_without_classes_are_refused(root):
    put(root / "all/0.jpg")
    (root / "train").rename(root / "elsewhere")
    (root / "all").rename(root / "train")
    with pytest.raises(UserError, match="train has no folders of classes, though 1 image in itself"):
        list_folder(root)


def test_stray_images_are_named(root):
    put(root / "train/lost.png")
    put(root / "test/lost.png")
    assert list_folder(root).notes == [f"Left out: 2 images in no folder of a class, e.g. '{root}/train/lost.png'"]


def test_names_are_compared_in_composed_form(root):
    composed, decomposed = (unicodedata.normalize(form, "Büsi") for form in ("NFC", "NFD"))
    (root / "train/cat").rename(root / "train" / decomposed)
    (root / "test/cat").rename(root / "test" / composed)
    listing = list_folder(root)
    assert listing.classes == [composed, "dog"]
    assert {image.label for image in listing.splits["train"]} == {image.label for image in listing.splits["test"]}
    put(root / "train" / composed / "more.jpg")  # the same class, spelt twice
    listing = list_folder(root)
    assert listing.classes == [composed, "dog"]
    assert [image.label for image in listing.splits["train"]] == [0] * 5 + [1] * 4


def test_every_format_is_taken(root):
    ends = ("bmp", "gif", "tif", "TIFF", "jfif", "avif", "ppm", "pgm", "jp2", "tga", "jpe", "qoi", "dds")
    for end in ends:
        put(root / "train/cat" / f"a.{end}")
    put(root / "train/cat/a.heic")
    put(root / "train/cat/a.pdf")
    listing = list_folder(root)
    found = {name for name in names(listing.splits["train"]) if name.startswith("cat/a.")}
    assert found == {f"cat/a.{end}" for end in ends}
    assert listing.ignored == [f"{root}/train/cat/a.heic", f"{root}/train/cat/a.pdf"]


def test_odd_entries(root):
    folder = root / "train/cat"
    put(folder / "folder.jpg/inside.jpg")
    os.mkfifo(folder / "pipe.jpg")  # reading it would wait for ever
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "nowhere.jpg").symlink_to("nowhere")
    (folder / "other.jpg").symlink_to(root / "test/dog/0.jpg")
    found = names(list_folder(root).splits["train"])[4:-4]
    assert found == ["cat/folder.jpg/inside.jpg", "cat/itself.jpg", "cat/nowhere.jpg", "cat/other.jpg"]
    assert list_folder(root).ignored == [f"{folder}/pipe.jpg"]


def test_what_is_left_out_is_said(root, tmp_path, capfd):
    for name in ("a.txt", "b.TXT", "c.json", "README", ".DS_Store"):
        put(root / "train/cat" / name)
    put(root / "train/@eaDir/0.jpg")
    put(root / "train/cat/a.gif", encode(0, "GIF"))
    prepare_folder(root, tmp_path / "data", "pets", workers=1)
    output = capfd.readouterr().out
    assert "Ignored 5 files that are no images by their names, e.g. " in output
    for count in ("2 '.txt'", "1 '.json'", "1 'README'", "1 '.DS_Store'"):
        assert count in output
    assert "Left out: 1 image in folders that are hidden or a system's (@eaDir), e.g. " in output
