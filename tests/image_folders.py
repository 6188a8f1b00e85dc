"""Folders of small images, and what a prepared dataset holds."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from gaternet_jax.data.datasets import find_dataset


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


def read(name: str, data_dir: Path, split: str) -> dict[str, tuple[bytes, int]]:
    """The records of a split: file_name -> (image, label)."""
    source = find_dataset(name, str(data_dir)).as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return {record["file_name"].decode(): (record["image"], int(record["label"])) for record in source}


def expected(root: Path, split: str) -> dict[str, tuple[bytes, int]]:
    """What `read` gives for a folder of plain images."""
    paths = [path for path in (root / split).glob("*/*") if path.exists()]
    classes = sorted({path.parent.name for path in (root / "train").glob("*/*")})
    return {f"{path.parent.name}/{path.name}": (path.read_bytes(), classes.index(path.parent.name)) for path in paths}
