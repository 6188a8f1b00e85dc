"""Images of a run to calibrate on: what compaction and specialists are made for."""

import itertools
from pathlib import Path

import numpy as np

from gaternet_jax.config import RunConfig
from gaternet_jax.data.batches import BatchShard
from gaternet_jax.errors import UserError
from gaternet_jax.workdir import load_dataset

BATCH_SIZE = 100


def read_split(workdir: str | Path, config: RunConfig, split: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads the first images of a split of a run's dataset, as evaluation sees them, and the run's labels of them.

    Args:
        workdir, config: of the run; data.data_dir may be another.
        split: a split's name, or part of one.
        limit: how many images, N, at most.

    Returns:
        uint8 [N, H, W, C]; int32 [N].

    Raises:
        UserError: no such dataset or split, other classes than the run's, or not one image.
    """
    from gaternet_jax.data.splits import open_run_split  # TFDS: whoever predicts does without

    batches = open_run_split(load_dataset(workdir), config, split, BatchShard(0, 1)).eval_batches(BATCH_SIZE)
    rows = (row for batch in batches for row in zip(batch["image"], batch["label"], batch["mask"], strict=True))
    kept = list(itertools.islice(((image, label) for image, label, is_image in rows if is_image), limit))
    if not kept:
        raise UserError(f"split '{split}' of {config.data.name} has no image; choose another one")
    images, labels = (np.stack(arrays) for arrays in zip(*kept, strict=True))
    return images, labels
