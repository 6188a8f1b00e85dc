"""Opens a split by the pipeline that the config asks for."""

import tensorflow_datasets as tfds

from gaternet_jax.config import Config
from gaternet_jax.data.batches import Share, Split
from gaternet_jax.data.memory import load_split
from gaternet_jax.data.reader import Reader
from gaternet_jax.data.stream import StreamSplit


def open_split(builder: tfds.core.DatasetBuilder, split: str, config: Config, share: Share) -> Split:
    """Opens a split of a dataset.

    Args:
        builder: from `find_dataset`.
        split: a split's name, or part of one: "train", "train[:5000]", "test".
        config: the whole config of the run; data.pipeline = memory decodes the split here, with a progress bar.
        share: the part of each batch that is wanted, see `this_process`.

    Raises:
        UserError: no such split, an empty one, or one with an image that cannot be read.
    """
    reader = Reader(builder, split, config)
    return load_split(reader, share) if config.data.pipeline == "memory" else StreamSplit(reader, config, share)
