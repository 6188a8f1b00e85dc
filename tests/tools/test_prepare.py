import bz2
import gzip
import io
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from gaternet_jax.data.datasets import class_names, find_dataset
from gaternet_jax.data.prepare import image_files, tfrecord
from gaternet_jax.data.prepare.folders import prepare_folder
from gaternet_jax.data.prepare.image_files import to_store
from gaternet_jax.tools import prepare
from tests.image_folders import encode, make_dataset, make_folder, read


def fails(arguments, sentence):
    with pytest.raises(SystemExit, match=f"^error: {sentence}"):
        prepare.main(list(map(str, arguments)))


# folder


def test_folder(tmp_path, capfd):
    root, data_dir = make_folder(tmp_path / "My Pets"), tmp_path / "my data"
    (root / "train/cat/.DS_Store").write_bytes(b"")
    (root / "train/cat/notes.txt").write_bytes(b"")
    prepare.main(["folder", f"--root={root}", f"--data_dir={data_dir}", "--workers=1"])
    output = capfd.readouterr()
    assert "Ignored 2 files that are no images by their names, e.g. " in output.out
    assert output.out.endswith(
        f"{data_dir}/my_pets/1.0.0: 8 train, 4 test images\n"
        f"Next: gaternet train --config=folder --config.data.name=my_pets --data_dir='{data_dir}'\n"
    )
    assert "Preparing my_pets: 100%" in output.err
    assert len(read("my_pets", data_dir, "train")) == 8


def test_data_dir_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    prepare.main(["folder", f"--root={make_folder(tmp_path / 'images')}", "--name=pets", "--workers=1"])
    assert (tmp_path / "data/pets/1.0.0/features.json").exists()


def test_errors_are_sentences(tmp_path):
    fails(["folder", f"--root={tmp_path}", f"--data_dir={tmp_path}"], f"{tmp_path} has the folders .none.; expected")


def test_corrupt_images(tmp_path, capfd):
    root = make_folder(tmp_path / "images")
    (root / "train/cat/0.jpg").write_bytes(b"")
    arguments = ["folder", f"--root={root}", f"--data_dir={tmp_path}", "--name=pets", "--workers=1"]
    fails(arguments, f"1 image cannot be read .*:\n  {root}/train/cat/0.jpg: is an empty file\n.* --skip_corrupt")
    prepare.main([*arguments, "--skip_corrupt"])
    assert "pets/1.0.0: 7 train, 4 test images" in capfd.readouterr().out


def test_interruption_ends_in_a_sentence(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "images")
    monkeypatch.setattr(image_files, "to_store", lambda encoded: os.kill(os.getpid(), signal.SIGINT) or encoded)
    with pytest.raises(SystemExit, match=r"Interrupted\. Nothing is lost: the same command goes on"):
        prepare.main(["folder", f"--root={root}", f"--data_dir={tmp_path}", "--workers=1"])


def test_number_of_workers_must_be_positive(capfd):
    with pytest.raises(SystemExit):
        prepare.main(["folder", "--root=images", "--workers=0"])
    assert "0 is not at least 1" in capfd.readouterr().err


def test_help_helps(capfd):
    with pytest.raises(SystemExit) as exit_:
        prepare.main(["--help"])
    assert exit_.value.code == 0 and "after an interruption the same command goes on" in capfd.readouterr().out


def test_tensorflow_is_not_imported(tmp_path):
    program = (
        "import sys; from gaternet_jax.tools import prepare; prepare.main(['folder', "
        f"'--root={make_folder(tmp_path / 'images')}', '--data_dir={tmp_path}', '--workers=1']); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# imagenet


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def tar(path, contents):
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            add(archive, name, content)
    return path


TRAIN = {
    "n01440764": {"n01440764_18.JPEG": encode(1), "n01440764_36.JPEG": encode(2, mode="CMYK")},
    "n02105855": {"n02105855_2933.JPEG": encode(3, "PNG")},
    "n15075141": {"n15075141_1.JPEG": encode(4), "n15075141_2.JPEG": encode(5), "n15075141_3.JPEG": encode(6)},
}
VALIDATION = {f"ILSVRC2012_val_{number:08}.JPEG": encode(number) for number in (2, 50_000, 1)}


@pytest.fixture
def tars(tmp_path):
    inner = {f"{synset}.tar": tar(tmp_path / synset, images).read_bytes() for synset, images in TRAIN.items()}
    train = tar(tmp_path / "train.tar", inner)
    validation = tar(tmp_path / "validation.tar", VALIDATION)
    return ["imagenet", f"--train_tar={train}", f"--validation_tar={validation}", f"--data_dir={tmp_path}"]


def test_imagenet(tars, tmp_path, capfd):
    prepare.main([*tars, "--workers=1"])
    output = capfd.readouterr().out
    assert "Note: 6 train images; the whole ImageNet has 1,281,167" in output
    assert f"{tmp_path}/imagenet2012/5.1.0: 6 train, 3 validation images" in output
    builder = find_dataset("imagenet2012", str(tmp_path))
    stock = tfds.builder("imagenet2012", data_dir=str(tmp_path / "elsewhere"))
    assert builder.info.features.to_json() == stock.info.features.to_json()
    assert builder.info.supervised_keys == ("image", "label") and builder.info.citation == stock.info.citation
    synsets = class_names(builder)
    assert len(synsets) == 1000 and synsets == class_names(stock)
    train = {
        name: (to_store(image), synsets.index(synset))
        for synset, images in TRAIN.items()
        for name, image in images.items()
    }
    assert read("imagenet2012", tmp_path, "train") == train
    # The first two lines and the last one of the labels that TFDS comes with.
    known = {1: "n01751748", 2: "n09193705", 50_000: "n02437616"}
    validation = {
        name: (encode(number), synsets.index(known[number]))
        for number, name in ((int(name[15:23]), name) for name in VALIDATION)
    }
    assert read("imagenet2012", tmp_path, "validation") == validation
    prepare.main(tars)
    assert "is already prepared" in capfd.readouterr().out


def test_corrupt_images_of_archives(tars, tmp_path):
    tar(tmp_path / "validation.tar", VALIDATION | {"ILSVRC2012_val_00000001.JPEG": b""})
    fails([*tars, "--workers=1"], f"1 image.*\n  {tmp_path}/validation.tar/ILSVRC2012_val_00000001.JPEG: is an empty")


def test_missing_archive(tars, tmp_path):
    (tmp_path / "train.tar").unlink()
    fails(tars, f"{tmp_path}/train.tar cannot be read: No such file")


def test_file_that_is_no_archive(tars, tmp_path):
    (tmp_path / "train.tar").write_bytes(b"no archive" * 100)
    fails(tars, f"{tmp_path}/train.tar is not a whole tar archive: .*; fetch it again")


def test_archive_that_ends_early(tars, tmp_path):
    content = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(content[: content.index(b"n15075141_3.JPEG") - 5])
    fails(tars, f"n15075141.tar in {tmp_path}/train.tar is not a whole tar archive: unexpected end of data")


@pytest.mark.parametrize("cut", [5, 100])
def test_archive_that_ends_within_an_image(tars, tmp_path, cut):
    content = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(content[: content.rindex(encode(6)[-20:]) + 20 - cut])
    fails([*tars, "--workers=1"], ".*train.tar")


def test_exchanged_archives(tars, tmp_path):
    exchanged = [f"--train_tar={tmp_path}/validation.tar", f"--validation_tar={tmp_path}/train.tar"]
    fails([*tars, exchanged[0]], ".*/validation.tar holds ILSVRC2012_val_00000002.JPEG; expected n01440764.tar and so")
    fails([*tars, exchanged[1]], ".*/train.tar holds n01440764.tar; expected ILSVRC2012_val_00000001.JPEG to _00050000")


def test_archives_that_were_packed_anew(tars, tmp_path):
    inner = {}
    for synset, images in TRAIN.items():
        packed = tar(tmp_path / synset, {f"./{synset}/{name}": image for name, image in images.items()})
        inner[f"./train/{synset}.tar"] = packed.read_bytes()
    tar(tmp_path / "train.tar", {"./train/._n01440764.tar": b"what macOS adds"} | inner)
    tar(tmp_path / "validation.tar", {f"./val/{name}": image for name, image in VALIDATION.items()})
    prepare.main([*tars, "--workers=1"])
    names = {name for images in TRAIN.values() for name in images}
    assert read("imagenet2012", tmp_path, "train").keys() == names
    assert read("imagenet2012", tmp_path, "validation").keys() == VALIDATION.keys()


@pytest.mark.parametrize(("module", "program"), [(gzip, "gunzip"), (bz2, "bunzip2"), (lzma, "unxz")])
def test_compressed_archives(tars, tmp_path, module, program):
    path = tmp_path / "validation.tar"
    whole = path.read_bytes()
    path.write_bytes(module.compress(whole))
    fails(tars, f"{path} is compressed; its images are read in place: unpack it first by {program}")
    path.write_bytes(whole)
    tar(tmp_path / "train.tar", {"n01440764.tar": module.compress((tmp_path / "n01440764").read_bytes())})
    fails(tars, f"n01440764.tar in {tmp_path}/train.tar is compressed; .*by {program}")


def test_imagenet_beside_a_copy_that_tfds_made(tars, tmp_path):
    make_dataset(tmp_path / "imagenet2012" / "5.1.0", {"train": [0]}, stored="tfrecord")
    folder = f"{tmp_path}/imagenet2012/5.1.0"
    fails(tars, f"{folder} is stored as tfrecord, .*prepare convert --source={folder} --data_dir=OTHER_DIR")


def test_unknown_names(tars, tmp_path):
    tar(tmp_path / "validation.tar", {"ILSVRC2012_val_00050001.JPEG": encode(0)})
    fails(tars, ".*validation.tar holds ILSVRC2012_val_00050001.JPEG; expected")
    tar(tmp_path / "train.tar", {"n00000000.tar": b""})
    fails(tars, ".*train.tar holds n00000000.tar; expected")


def test_empty_archive(tars, tmp_path):
    tar(tmp_path / "validation.tar", {})
    fails(tars, f"{tmp_path}/validation.tar holds no images")


# stock


def test_stock_needs_tensorflow(monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    fails(
        ["stock", "--name=cifar10"],
        r"preparing 'cifar10' by TFDS needs TensorFlow: pip install 'gaternet-jax\[prepare\]'",
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar10:3.0.2"])
def test_stock_beside_a_copy_that_tfds_made(tmp_path, name):
    folder = make_dataset(tmp_path / "cifar10" / "3.0.2", {"train": [0]}, stored="tfrecord")
    fails(
        ["stock", f"--name={name}", f"--data_dir={tmp_path}"],
        f"{folder} is stored as tfrecord, .*prepare convert --source={folder} --data_dir=OTHER_DIR",
    )


@pytest.fixture
def tensorflow(monkeypatch):
    """As if TensorFlow were installed."""
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: name)


def test_stock_is_prepared_as_array_record(tensorflow, tmp_path, monkeypatch, capfd):
    made = []

    def builder(name, data_dir, file_format):
        prepared = make_folder(Path(data_dir) / "images"), Path(data_dir), name
        return types.SimpleNamespace(
            download_and_prepare=lambda: made.append((name, data_dir, file_format, *prepared)),
            data_dir=prepare_folder(*prepared, workers=1),
        )

    monkeypatch.setattr(tfds, "builder", builder)
    prepare.main(["stock", "--name=cifar10", f"--data_dir={tmp_path}"])
    assert made[0][:3] == ("cifar10", str(tmp_path), "array_record")
    assert "cifar10/1.0.0: 8 train, 4 test images" in capfd.readouterr().out


def test_stock_that_tfds_does_not_know(tensorflow, tmp_path):
    fails(["stock", "--name=cifra", f"--data_dir={tmp_path}"], "TFDS knows no dataset 'cifra'")


def test_stock_that_cannot_be_prepared(tensorflow, tmp_path, monkeypatch):
    def refuse(self):
        raise AssertionError("Manual directory does not exist")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    fails(
        ["stock", "--name=cifar10", f"--data_dir={tmp_path}"], "TFDS cannot prepare 'cifar10' in .*: Manual directory"
    )


# convert


def test_convert(tmp_path, monkeypatch, capfd):
    folder = prepare_folder(make_folder(tmp_path / "images"), tmp_path, "pets", workers=1)
    seen = []
    monkeypatch.setattr(tfrecord, "convert_tfrecords", lambda *args, **options: seen.append((args, options)) or folder)
    prepare.main(["convert", "--source=some/folder", f"--data_dir={tmp_path}", "--workers=3"])
    assert seen == [((Path("some/folder"), tmp_path), {"workers": 3})]
    assert "pets/1.0.0: 8 train, 4 test images" in capfd.readouterr().out
