"""Opens a split by the pipeline that the config asks for."""

import sys
from collections.abc import Sequence

import tensorflow_datasets as tfds

from gaternet_jax.config import RunConfig, check_choices
from gaternet_jax.data.batches import BatchShard, Split
from gaternet_jax.data.datasets import find_dataset, record_dataset
from gaternet_jax.data.memory import DeviceSplit, MemorySplit, decoded_size, host_memory, load_split
from gaternet_jax.data.reader import Reader
from gaternet_jax.data.record import DatasetRecord, check_same_dataset
from gaternet_jax.errors import UserError, not_installed


def open_run_split(
    run: DatasetRecord, config: RunConfig, split: str, shard: BatchShard, device_memory: int = 0
) -> Split:
    """Opens a split for the model of a run, with the run's labels.

    Args:
        run: the dataset that the run learnt, from `load_dataset`.
        config: the run's config, perhaps with another data.name or data.data_dir.
        split, shard, device_memory: as for `open_split`.

    Raises:
        UserError: as `find_dataset`, `check_same_dataset` and `open_split`.
    """
    data = config.data
    if not data.name:
        raise UserError("the run does not tell which dataset its model is for; write data.name in its config.json")
    builder = find_dataset(data.name, data.data_dir, run)
    found = record_dataset(builder)
    labels = check_same_dataset(run, found)
    if data.name == run.name and run.digest not in ("", found.digest):
        print(f"Note: '{found.name}' {found.version} is not what the run was trained on", file=sys.stderr)
    return open_split(builder, split, config, shard, device_memory, labels)


def open_split(
    builder: tfds.core.DatasetBuilder,
    split: str,
    config: RunConfig,
    shard: BatchShard,
    device_memory: int = 0,
    labels: Sequence[int] | None = None,
) -> Split:
    """Opens a split of a dataset.

    Args:
        builder: from `find_dataset`.
        split: a split's name, or part of one: "train", "train[:5000]", "test".
        config: the whole config of the run; data.pipeline = memory or device decodes the split here, with a progress
            bar.
        shard: the part of each batch that is wanted, see `this_process`.
        device_memory: bytes of an accelerator, see `parallel.device_memory`; 0 where there is none, or where the caller
            cannot hold images there.
        labels: the model's label of each class of the dataset; None: the same.

    Raises:
        UserError: no such split, an empty one, one with an image that cannot be read or has no label, or one too large
            for the memory.
    """
    check_choices(config.data, "data")
    reader = Reader(builder, split, config, labels)
    pipeline = choose_pipeline(config, decoded_size(reader), device_memory)
    if pipeline == "stream":
        try:
            from gaternet_jax.data.stream import StreamSplit
        except ModuleNotFoundError as error:
            raise not_installed("data.pipeline=stream", str(error.name), "data") from None
        return StreamSplit(reader, config, shard)
    if pipeline == "device" and device_memory and decoded_size(reader) > device_memory // 2:
        raise UserError(
            f"split '{reader.name}' takes {decoded_size(reader) / 2**30:.1f} GiB decoded, more than half of a device's "
            f"{device_memory / 2**30:.1f} GiB; use --config.data.pipeline=memory, or stream"
        )
    return load_split(reader, shard, DeviceSplit if pipeline == "device" else MemorySplit)


def choose_pipeline(config: RunConfig, size: int, device_memory: int) -> str:
    """Gives data.pipeline; for `auto`, chooses the first of device, memory, stream that a split fits comfortably.

    Args:
        config: the whole config of the run.
        size: bytes of the split, decoded.
        device_memory: see `open_split`.
    """
    if config.data.pipeline != "auto":
        return config.data.pipeline
    if config.data.train_crop == "random":
        return "stream"
    if size <= device_memory // 8:
        return "device"
    return "memory" if size <= host_memory() // 4 else "stream"
