"""The gates that a model opens for some images: what compaction and specialists are made for."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from gaternet_jax.config import DataConfig, RunConfig
from gaternet_jax.data.batches import BatchShard
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.errors import UserError
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet, Outputs
from gaternet_jax.workdir import load_dataset

BATCH_SIZE = 100


def read_split(workdir: str | Path, config: RunConfig, split: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads the first images of a split of a run's dataset, as evaluation sees them, and the run's labels of them.

    Args:
        workdir: of the run.
        config: its config, perhaps with another data.data_dir.
        split: a split's name, or part of one.
        limit: how many images.

    Returns:
        uint8 [N, H, W, C]; int32 [N]; N is `limit`, or fewer if there are fewer.

    Raises:
        UserError: no such dataset or split, other classes than the run's, or not one image.
    """
    from gaternet_jax.data.splits import open_run_split  # TFDS: whoever predicts does without

    images, labels, read = [], [], 0
    batches = open_run_split(load_dataset(workdir), config, split, BatchShard(0, 1)).eval_batches(BATCH_SIZE)
    for batch in batches:
        mask = np.asarray(batch["mask"])
        images.append(np.asarray(batch["image"])[mask])
        labels.append(np.asarray(batch["label"])[mask])
        read += int(mask.sum())
        if read >= limit:
            break
    if not read:
        raise UserError(f"split '{split}' of {config.data.name} has no image; choose another one")
    return np.concatenate(images)[:limit], np.concatenate(labels)[:limit]


def run_model(model: GaterNet, images: Any, data: DataConfig | None = None) -> Outputs:
    """Outputs for many images, batch by batch; arrays of NumPy.

    Args:
        model: in evaluation mode.
        images: normalised floats [N, H, W, C], or uint8 if `data` is given.
        data: the `data` part of a run's config, which says how to normalise.
    """
    graphdef, params, stats = split_model(model)

    @jax.jit
    def forward(params, stats, batch):
        return merge_model(graphdef, params, stats)(batch if data is None else normalize(batch, data))

    outputs: list[Outputs] = []
    for start in range(0, len(images), BATCH_SIZE):
        batch = images[start : start + BATCH_SIZE]
        padded = np.pad(batch, ((0, min(BATCH_SIZE, len(images)) - len(batch)), (0, 0), (0, 0), (0, 0)))
        found = jax.device_get(forward(params, stats, padded))
        outputs.append(Outputs(*(array[: len(batch)] for array in found)))
    joined: list[Any] = [np.concatenate(arrays) for arrays in zip(*outputs, strict=True)]
    return Outputs(*joined)
