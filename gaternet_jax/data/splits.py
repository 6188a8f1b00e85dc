"""Opens a split by the pipeline that the config asks for."""

import tensorflow_datasets as tfds

from gaternet_jax.config import Config
from gaternet_jax.data.batches import Share, Split
from gaternet_jax.data.memory import DeviceSplit, MemorySplit, decoded_size, host_memory, load_split
from gaternet_jax.data.reader import Reader
from gaternet_jax.data.stream import StreamSplit
from gaternet_jax.errors import UserError


def open_split(
    builder: tfds.core.DatasetBuilder, split: str, config: Config, share: Share, device_memory: int = 0
) -> Split:
    """Opens a split of a dataset.

    Args:
        builder: from `find_dataset`.
        split: a split's name, or part of one: "train", "train[:5000]", "test".
        config: the whole config of the run; data.pipeline = memory or device decodes the split here, with a progress
            bar.
        share: the part of each batch that is wanted, see `this_process`.
        device_memory: bytes of an accelerator, see `parallel.device_memory`; 0 where there is none, or where the caller
            cannot hold images there.

    Raises:
        UserError: no such split, an empty one, one with an image that cannot be read, or one too large for the memory.
    """
    reader = Reader(builder, split, config)
    pipeline = choose_pipeline(config, decoded_size(reader), device_memory)
    if pipeline == "stream":
        return StreamSplit(reader, config, share)
    if pipeline == "device" and device_memory and decoded_size(reader) > device_memory // 2:
        raise UserError(
            f"split '{reader.name}' takes {decoded_size(reader) / 2**30:.1f} GiB decoded, more than half of a device's "
            f"{device_memory / 2**30:.1f} GiB; use --config.data.pipeline=memory, or stream"
        )
    return load_split(reader, share, DeviceSplit if pipeline == "device" else MemorySplit)


def choose_pipeline(config: Config, size: int, device_memory: int) -> str:
    """data.pipeline, or what `auto` stands for: the first of device, memory, stream that a split fits comfortably.

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
