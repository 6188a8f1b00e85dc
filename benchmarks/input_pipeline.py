"""Speed of the streaming input pipeline: against a bare loop, and against tf.data if TensorFlow is installed.

    python -m benchmarks.input_pipeline --data_dir=DIR [--dataset=imagenet2012] [--size=224] [--batch=64] [--rounds=7]
    python -m benchmarks.input_pipeline --data_dir=DIR --memory          (does the memory grow over 5,000 batches?)

Training batches: records read, random-resized crop decoded, resized. The candidates take turns, each for some batches
a round; the table has medians, and ratios of the medians.

bare loop: threads, as many as CPU cores, that decode and resize the same bytes with the same kind of boxes; nothing is
read, no random numbers are drawn, no batch is put together.
tf.data: the same records as TFRecord; decode_and_crop_jpeg of a box by sample_distorted_bounding_box, resize, flip,
AUTOTUNE, with TensorFlow's defaults and with its faster DCT.
"""

import argparse
import importlib.util
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gaternet_jax.cli.command_line import positive
from gaternet_jax.config import RunConfig
from gaternet_jax.configs.imagenet import get_config
from gaternet_jax.data.batches import BatchShard
from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.data.images import BOX_NUMBERS, random_box, read_box
from gaternet_jax.data.jpeg import parse_jpeg
from gaternet_jax.data.reader import Reader
from gaternet_jax.data.stream import StreamSplit

CORES = os.cpu_count() or 1
SETTLE_SECONDS = 1.0  # in which pipelines fill their buffers after a turn
RESIDENT_AFTER = 200  # batches after which the memory should not grow


def encoded_images(reader: Reader) -> list[tuple[bytes, int]]:
    return [reader.record(index) for index in range(min(len(reader), 1000))]


def bare_loop(images: list[bytes], config: RunConfig, batch: int) -> Iterator[int]:
    """Yields the number of images decoded, a batch's worth at a time."""
    random, data = np.random.default_rng(0), config.data
    headers = [parse_jpeg(image) for image in images]
    work = []
    for image, jpeg in itertools.chain.from_iterable(itertools.repeat(list(zip(images, headers, strict=True)), 8)):
        if jpeg is not None:
            numbers = random.random(BOX_NUMBERS).tolist()
            work.append((image, random_box(numbers, jpeg.height, jpeg.width, data.crop_area, data.crop_aspect)))
    source = itertools.cycle(work)
    out = np.empty((CORES, data.image_size, data.image_size, 3), np.uint8)

    def decode(thread: int, part: list) -> None:
        for image, box in part:
            read_box(
                image,
                lambda *_, box=box: box,
                data.image_size,
                channels=3,
                resize=data.resize,
                fast=True,
                out=out[thread],
            )

    with ThreadPoolExecutor(CORES) as pool:
        while True:
            parts = [list(itertools.islice(source, batch)) for _ in range(CORES)]
            list(pool.map(decode, range(CORES), parts))
            yield batch * CORES


def stream(reader: Reader, config: RunConfig, batch: int) -> Iterator[int]:
    for made in StreamSplit(reader, config, BatchShard(0, 1)).train_batches(batch, seed=0, first_step=0):
        yield len(made["label"])


def tf_data(images: list[tuple[bytes, int]], config: RunConfig, batch: int, dct: str) -> Iterator[int]:
    import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]

    size, data = config.data.image_size, config.data

    def parse(record):
        features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
        example = tf.io.parse_single_example(record, features)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(example["image"]),
            tf.zeros([1, 0, 4]),
            area_range=data.crop_area,
            aspect_ratio_range=data.crop_aspect,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        box = tf.concat([begin[:2], extent[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(example["image"], box, channels=3, dct_method=dct)
        image = tf.image.random_flip_left_right(tf.image.resize(image, (size, size)))
        return tf.cast(image, tf.uint8), example["label"]

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "images.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for image, label in images:
                feature = {
                    "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
        dataset = tf.data.TFRecordDataset(path).repeat().shuffle(100)
        dataset = dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE).batch(batch).prefetch(tf.data.AUTOTUNE)
        for _, labels in dataset:
            yield len(labels)


def measure(candidate: Iterator[int], batches: int) -> float:
    """Images per second, when the others have filled their buffers and this one has used up its own."""
    time.sleep(SETTLE_SECONDS)
    for _ in range(16):
        next(candidate)
    start, images = time.perf_counter(), 0
    for _ in range(batches):
        images += next(candidate)
    return images / (time.perf_counter() - start)


def compare(candidates: dict[str, Iterator[int]], rounds: int, batches: int) -> str:
    speeds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in tqdm(range(rounds), "Measuring", unit="round"):
        for name, candidate in candidates.items():
            speeds[name].append(measure(candidate, batches))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ours = medians["this pipeline"]
    lines = ["| candidate | images/s | this pipeline / it |", "|---|---:|---:|"]
    return "\n".join(lines + [f"| {name} | {speed:,.0f} | {ours / speed:.2f} |" for name, speed in medians.items()])


def watch_memory(candidate: Iterator[int], batches: int) -> str:
    """The resident set after 200 batches and at the end."""

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    early = highest = 0.0
    for number in tqdm(range(1, batches + 1), "Reading", unit="batch"):
        next(candidate)
        if number == RESIDENT_AFTER:
            early = resident()
        if number > RESIDENT_AFTER and number % 50 == 0:
            highest = max(highest, resident())
    end = resident()
    return (
        f"{batches:,} batches: {early:.0f} MiB resident after {RESIDENT_AFTER}, {end:.0f} MiB at the end "
        f"({end / early - 1:+.1%}), {highest:.0f} MiB at most ({highest / early - 1:+.1%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="", help="prepared datasets (default: $TFDS_DATA_DIR)")
    parser.add_argument("--dataset", default="imagenet2012", help="its training split is read")
    parser.add_argument("--size", type=positive, default=224, help="pixels")
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument(
        "--batches", type=positive, default=60, help="timed per candidate and round; with --memory: all"
    )
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--memory", action="store_true", help="watch the resident set over 5,000 batches instead")
    parser.add_argument("--variants", action="store_true", help="other numbers of threads and workers beside them")
    arguments = parser.parse_args()

    config = get_config()
    config.data.image_size = arguments.size
    reader = Reader(find_dataset(arguments.dataset, arguments.data_dir), "train", config)
    if arguments.memory:
        print(watch_memory(stream(reader, config, arguments.batch), max(arguments.batches, 5000)))
        return
    images = encoded_images(reader)

    def variant(**fields: int) -> Iterator[int]:
        other: RunConfig = config.copy_and_resolve_references()
        other.data.update(fields)
        return stream(reader, other, arguments.batch)

    candidates: dict[str, Iterator[int]] = {"this pipeline": stream(reader, config, arguments.batch)}
    candidates["bare loop"] = bare_loop([image for image, _ in images], config, arguments.batch)
    if arguments.variants:
        for threads in (1, 2, 4, 8):
            candidates[f"{threads} threads"] = variant(threads=threads)
        candidates |= {f"{n} workers of 1 thread": variant(workers=n, threads=1) for n in (1, 2)}
    peers: dict[str, Callable[[], Iterator[int]]] = {
        "tf.data": lambda: tf_data(images, config, arguments.batch, ""),
        "tf.data, INTEGER_FAST": lambda: tf_data(images, config, arguments.batch, "INTEGER_FAST"),
    }
    if importlib.util.find_spec("tensorflow") is None:
        print("tf.data is left out: TensorFlow is not installed")
        peers = {}
    candidates |= {name: make() for name, make in peers.items()}
    print(f"{len(images)} images of {reader.name}, {arguments.size} pixels, {CORES} cores")
    print(compare(candidates, arguments.rounds, arguments.batches))


if __name__ == "__main__":
    main()
