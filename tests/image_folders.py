"""Folders of small images, and what a prepared dataset holds."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.data.prepare.image_files import serialize

_protos: Any = tf_example_pb2  # made at run time, unknown to type checkers


def encode(seed: int, format: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    """An image of noise, 9 x 12 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 9, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format=format, **options)
    return file.getvalue()


def make_folder(root: Path, train: int = 4, test: int = 2, classes=("cat", "dog")) -> Path:
    """root/{train,test}/CLASS/N.jpg, with these numbers of images per class."""
    seed = 0
    for split, count in (("train", train), ("test", test)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                (root / split / name / f"{index}.jpg").write_bytes(encode(seed))
                seed += 1
    return root


def make_dataset(
    folder: Path, splits: dict[str, list[int | None]], classes=("cat", "dog"), config=None, stored="array_record"
):
    """A dataset as TFDS leaves it at DIR/NAME[/CONFIG]/VERSION: per split the labels of its images, None for no label.

    Another format of `stored` is only claimed.
    """
    folder.mkdir(parents=True)
    name = folder.parent.name if config is None else folder.parents[1].name
    infos = []
    for split, labels in splits.items():
        records = []
        for index, label in enumerate(labels):
            example = _protos.Example.FromString(serialize(encode(index), label or 0, f"{split} {index}"))
            if label is None:
                example.features.feature["label"].int64_list.ClearField("value")
            records.append(example.SerializeToString())
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.{stored}-00000-of-00001"), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        size = sum(map(len, records))
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=[len(records)], num_bytes=size))
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=list(classes))}
    features |= {"file_name": tfds.features.Text()}
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), split_infos=infos, version=folder.name, features=features, check_data=False
    )
    info = json.loads((folder / "dataset_info.json").read_text()) | {"name": name, "fileFormat": stored}
    (folder / "dataset_info.json").write_text(json.dumps(info | ({"configName": config} if config else {})))
    return folder


def read(name: str, data_dir: Path, split: str) -> dict[str, tuple[bytes, int]]:
    """The records of a split: file_name -> (image, label)."""
    source = find_dataset(name, str(data_dir)).as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return {record["file_name"].decode(): (record["image"], int(record["label"])) for record in source}


def expected(root: Path, split: str) -> dict[str, tuple[bytes, int]]:
    """What `read` gives for a folder of plain images."""
    paths = [path for path in (root / split).glob("*/*") if path.exists()]
    classes = sorted({path.parent.name for path in (root / "train").glob("*/*")})
    return {f"{path.parent.name}/{path.name}": (path.read_bytes(), classes.index(path.parent.name)) for path in paths}
