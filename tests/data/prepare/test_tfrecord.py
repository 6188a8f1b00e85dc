import json
import shutil
import struct

import pytest
import tensorflow_datasets as tfds

from gaternet_jax.data.datasets import class_names, find_dataset
from gaternet_jax.data.prepare.folders import prepare_folder
from gaternet_jax.data.prepare.image_files import serialize
from gaternet_jax.data.prepare.tfrecord import convert_tfrecords, masked_crc32c
from gaternet_jax.errors import UserError
from tests.image_folders import encode, make_folder

LENGTHS = {"train": [3, 0, 2], "test": [2]}


def tfrecord(examples):
    file = b""
    for example in examples:
        length = struct.pack("<Q", len(example))
        file += length + struct.pack("<I", masked_crc32c(length)) + example + struct.pack("<I", masked_crc32c(example))
    return file


@pytest.fixture
def source(tmp_path):
    """A dataset of TFRecord files: the metadata of one of ArrayRecord, the records written by hand."""
    old = tmp_path / "old"
    folder = prepare_folder(make_folder(tmp_path / "images"), old, "pets", workers=1)
    for path in (*folder.glob("*array_record*"), folder / "plan.json"):
        path.unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    info |= {"fileFormat": "tfrecord", "description": "Ganz alte Bücher"}
    info["alternativeFileFormats"] = ["riegeli"]
    for split in info["splits"]:
        split["shardLengths"] = [str(length) for length in LENGTHS[split["name"]]]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "metadata.json").write_text("{}")
    for split, lengths in LENGTHS.items():
        for shard, length in enumerate(lengths):
            examples = [serialize(encode(i), i % 2, f"{split} {shard} {i}") for i in range(length)]
            name = f"pets-{split}.tfrecord-{shard:05}-of-{len(lengths):05}"
            (folder / name).write_bytes(tfrecord(examples))
    return folder


def records(name, data_dir, split):
    source = find_dataset(name, str(data_dir)).as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return [(record["file_name"].decode(), record["image"], record["label"]) for record in source]


def test_checksum():
    assert masked_crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_records_order_and_metadata_are_kept(source, tmp_path):
    folder = convert_tfrecords(source, tmp_path / "new", workers=1)
    assert folder == tmp_path / "new" / "pets" / "1.0.0"
    builder = find_dataset("pets", str(tmp_path / "new"))
    assert class_names(builder) == ["cat", "dog"] and builder.info.description == "Ganz alte Bücher"
    for split, lengths in LENGTHS.items():
        assert builder.info.splits[split].shard_lengths == lengths
        kept = [(f"{split} {s} {i}", encode(i), i % 2) for s, length in enumerate(lengths) for i in range(length)]
        assert records("pets", tmp_path / "new", split) == kept
    assert records("pets", tmp_path / "new", "train[:50%]") == records("pets", tmp_path / "new", "train")[:2]
    for name in ("features.json", "label.labels.txt", "metadata.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    before, after = (json.loads((path / "dataset_info.json").read_text()) for path in (source, folder))
    del before["alternativeFileFormats"]
    assert after == before | {"fileFormat": "array_record"}
    assert not list(folder.glob("*tfrecord*"))


def test_configs(source, tmp_path):
    info = json.loads((source / "dataset_info.json").read_text()) | {"configName": "small"}
    (source / "dataset_info.json").write_text(json.dumps(info))
    moved = source.parent / "small" / "1.0.0"
    shutil.copytree(source, moved)
    assert convert_tfrecords(moved, tmp_path / "new", workers=1) == tmp_path / "new" / "pets" / "small" / "1.0.0"
    assert len(records("pets/small", tmp_path / "new", "train")) == 5


def without_lengths(source, **fields):
    """The metadata as TFDS wrote them before version 3."""
    info = json.loads((source / "dataset_info.json").read_text())
    del info["fileFormat"]
    for split in info["splits"]:
        del split["shardLengths"], split["filepathTemplate"]
        split |= fields
    (source / "dataset_info.json").write_text(json.dumps(info))


def test_records_are_counted_where_the_metadata_do_not_tell_their_number(source, tmp_path):
    without_lengths(source, numShards="1")
    folder = convert_tfrecords(source, tmp_path / "new", workers=1)
    builder = find_dataset("pets", str(tmp_path / "new"))
    assert {split: info.shard_lengths for split, info in builder.info.splits.items()} == LENGTHS
    assert [name for name, _, _ in records("pets", tmp_path / "new", "train")][-1] == "train 2 1"
    assert not list(folder.glob("*tfrecord*"))


def test_metadata_without_lengths_beside_files_that_are_no_whole_set(source, tmp_path):
    without_lengths(source)
    (source / "pets-train.tfrecord-00001-of-00003").unlink()
    with pytest.raises(UserError, match=r"no whole set of files for split 'train' \(found pets-train\.tfrecord-00000"):
        convert_tfrecords(source, tmp_path / "new", workers=1)
    for path in source.glob("pets-train*"):
        path.unlink()
    with pytest.raises(UserError, match=r"for split 'train' \(found none\), and its dataset_info\.json does not tell"):
        convert_tfrecords(source, tmp_path / "new", workers=1)


def test_metadata_without_splits(source, tmp_path):
    info = json.loads((source / "dataset_info.json").read_text()) | {"splits": []}
    (source / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=f"the dataset_info.json of {source} tells of no splits"):
        convert_tfrecords(source, tmp_path / "new", workers=1)


def test_second_time(source, tmp_path, capfd):
    folder = convert_tfrecords(source, tmp_path / "new", workers=1)
    assert convert_tfrecords(source, tmp_path / "new", workers=1) == folder
    assert "is already prepared" in capfd.readouterr().out
    (source / "pets-test.tfrecord-00000-of-00001").touch()
    with pytest.raises(UserError, match="which has changed since"):
        convert_tfrecords(source, tmp_path / "new", workers=1)


def broken(source, tmp_path, change, sentence, workers=1):
    file = source / "pets-train.tfrecord-00000-of-00003"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=f"{file} is broken: {sentence}"):
        convert_tfrecords(source, tmp_path / "new", workers=workers)
    assert not (tmp_path / "new" / "pets" / "1.0.0").exists()


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_truncated_files(source, tmp_path, cut):
    broken(source, tmp_path, lambda content: content[:-cut], "it ends within record 2")


def test_truncated_header(source, tmp_path):
    broken(source, tmp_path, lambda content: content + content[:7], "it ends within record 3")


def test_missing_records(source, tmp_path):
    first = lambda content: content[: 16 + struct.unpack("<Q", content[:8])[0]]  # noqa: E731
    broken(source, tmp_path, first, "it has 1 records where dataset_info.json tells of 3")


@pytest.mark.parametrize("workers", [1, 2])
def test_wrong_lengths(source, tmp_path, workers):
    sentence = "the length of record 0 does not match its checksum"
    broken(source, tmp_path, lambda content: b"\1" + content[1:], sentence, workers)


def test_records_of_another_kind(source, tmp_path):
    broken(source, tmp_path, lambda _: tfrecord([b"no example"] * 3), "record 0 is not a tf.Example")


def test_missing_file(source, tmp_path):
    (source / "pets-train.tfrecord-00000-of-00003").unlink()
    with pytest.raises(UserError, match="00000-of-00003 cannot be read: No such file"):
        convert_tfrecords(source, tmp_path / "new", workers=1)


def test_no_dataset(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is not a prepared TFDS dataset"):
        convert_tfrecords(tmp_path, tmp_path / "new")
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=f"{tmp_path} is not a prepared TFDS dataset"):
        convert_tfrecords(tmp_path, tmp_path / "new")


def test_formats_that_need_no_conversion_or_cannot_be_converted(source, tmp_path):
    done = convert_tfrecords(source, tmp_path / "new", workers=1)
    with pytest.raises(UserError, match=f"is array_record already; use it with --data_dir={tmp_path}/new"):
        convert_tfrecords(done, tmp_path / "newer")
    info = json.loads((source / "dataset_info.json").read_text()) | {"fileFormat": "riegeli"}
    (source / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="stored as riegeli; only tfrecord can be converted"):
        convert_tfrecords(source, tmp_path / "newer")


def test_same_folder(source):
    with pytest.raises(UserError, match=f"{source} would be overwritten"):
        convert_tfrecords(source, source.parents[1])
