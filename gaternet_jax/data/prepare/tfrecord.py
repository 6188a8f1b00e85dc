"""TFDS datasets stored as TFRecord to ArrayRecord, record by record. Needs no TensorFlow."""

import hashlib
import itertools
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from gaternet_jax.data.prepare.building import Plan, build
from gaternet_jax.data.prepare.shards import Written
from gaternet_jax.errors import UserError
from gaternet_jax.paths import quote
from gaternet_jax.progress import progress_bar

_protos: Any = tf_example_pb2  # made at run time, unknown to type checkers

CRC32C = 0x82F63B78  # the polynomial, reflected
MASK = 0xA282EAD8  # added by TFRecord's format, so that checksums of checksums stay good ones


class TFRecordExamples:
    """Reads the records of a TFRecord file, in order: uint64 length, its checksum, the data, their checksum.

    Lengths are checked by their checksums and data by parsing them: the checksums of data would take hours in Python.
    """

    def __init__(self, path: Path, length: int):
        self.path, self.length = path, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[bytes]:
        records = 0
        for data in _read_records(self.path):
            try:
                _protos.Example.FromString(data)
            except DecodeError:
                raise _broken(self.path, f"record {records} is not a tf.Example") from None
            yield data
            records += 1
        if records != self.length:
            raise _broken(self.path, f"it has {records} records where dataset_info.json tells of {self.length}")


def _read_records(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for index in itertools.count():
                header = file.read(12)
                if not header:
                    return
                if len(header) < 12:
                    raise _broken(path, f"it ends within record {index}")
                size, checksum = struct.unpack("<QI", header)
                if checksum != masked_crc32c(header[:8]):
                    raise _broken(path, f"the length of record {index} does not match its checksum")
                data, end = file.read(size), file.read(4)
                if len(data) < size or len(end) < 4:
                    raise _broken(path, f"it ends within record {index}")
                yield data
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _broken(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is broken: {reason}; fetch or prepare that dataset again")


def masked_crc32c(data: bytes) -> int:
    """Computes TFRecord's checksum of a few bytes, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (CRC32C if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF


def convert_tfrecords(source: Path, data_dir: Path, *, workers: int | None = None) -> Path:
    """Converts a prepared dataset to ArrayRecord: the same records in the same order, the same metadata.

    Args:
        source: its folder, DIR/NAME/VERSION or DIR/NAME/CONFIG/VERSION.
        data_dir: another DIR.
        workers: processes; None for one per core, 1 for none but this.

    Returns:
        The new folder, below `data_dir` as the old one is below its DIR.

    Raises:
        UserError: not a prepared dataset, or not of TFRecord files, or broken ones; or a folder that cannot be
            written to.
        KeyboardInterrupt: see `write_shards`.
    """
    source = source.resolve()
    splits, info = _read_info(source)
    final = data_dir / info["name"] / info.get("configName", "") / info["version"]
    if final.resolve() == source:
        raise UserError(f"{source} would be overwritten; choose another --data_dir than the one it is in")
    shards: dict[str, dict[str, TFRecordExamples]] = {}
    for split in splits.values():
        old, lengths = _find_files(split)
        names = split.filename_template.replace(filetype_suffix="array_record").sharded_filepaths(len(old))
        files = zip(names, old, lengths, strict=True)
        shards[split.name] = {new.name: TFRecordExamples(path, length) for new, path, length in files}
        _set_lengths(info, split.name, lengths)
    old_files = [examples.path for split in shards.values() for examples in split.values()]
    others = [path for path in source.iterdir() if path.is_file() and path not in old_files]

    def finish(folder: Path, written: dict[str, list[Written]]) -> None:
        del written  # every length was checked
        for path in others:
            shutil.copyfile(path, folder / path.name)
        info["fileFormat"] = "array_record"
        info.pop("alternativeFileFormats", None)  # they stay behind
        (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))

    plan = Plan(str(source), _digest([*old_files, *others]), lambda: shards, finish, unit="record")
    return build(final, plan, workers=workers)


def _read_info(source: Path) -> tuple[Any, dict]:
    """Reads the splits of a dataset, and its dataset_info.json."""
    try:
        info = json.loads((source / "dataset_info.json").read_text(encoding="utf-8"))
        builder = tfds.builder_from_directory(str(source))
    except (OSError, ValueError, KeyError, ParseError) as error:
        raise UserError(
            f"{source} is not a prepared TFDS dataset ({error}); give the folder NAME/VERSION that holds its "
            "dataset_info.json with --source"
        ) from None
    if not builder.info.splits:
        raise UserError(f"the dataset_info.json of {source} tells of no splits; fetch or prepare that dataset again")
    file_format = builder.info.file_format
    if file_format is tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(f"{source} is array_record already; use it with --data_dir={quote(source.parents[1])}")
    if file_format is not tfds.core.FileFormat.TFRECORD:
        raise UserError(f"{source} is stored as {file_format and file_format.value}; only tfrecord can be converted")
    return builder.info.splits, info


def _find_files(split: Any) -> tuple[list[Path], list[int]]:
    """Gives the files of a split and their numbers of records, which are counted where metadata do not tell them."""
    if split.num_shards:
        return [Path(path) for path in split.filepaths], split.shard_lengths
    template = split.filename_template  # TFDS before version 3 wrote no lengths
    files = sorted(template.data_dir.glob(f"{template.dataset_name}-{split.name}.tfrecord-*-of-*"))
    expected = [path.name for path in template.sharded_filepaths(len(files))]
    if not files or [path.name for path in files] != expected:
        found = ", ".join(path.name for path in files[:3]) or "none"
        raise UserError(
            f"{template.data_dir} has no whole set of files for split '{split.name}' (found {found}), and its "
            "dataset_info.json does not tell how many there are; fetch or prepare that dataset again"
        )
    paths = [Path(path) for path in files]
    with progress_bar(f"Counting {split.name}", len(paths), unit="file") as bar:
        lengths = []
        for path in paths:
            lengths.append(sum(1 for _ in _read_records(path)))
            bar.update()
    return paths, lengths


def _set_lengths(info: dict, split: str, lengths: list[int]) -> None:
    entry = next(entry for entry in info["splits"] if entry["name"] == split)
    entry["shardLengths"] = [str(length) for length in lengths]


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; fetch that dataset again") from None
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
