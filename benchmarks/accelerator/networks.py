"""The networks that are measured, and their training states."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gaternet_jax.config import RunConfig, default
from gaternet_jax.training.mesh import replicate
from gaternet_jax.training.setup import make_training
from gaternet_jax.training.state import TrainState
from gaternet_jax.training.step import Step


def config_of(
    backbone: str, extractor: str, *, image_size: int, gating: str = "last", dtype: str = "float32", width: int = 0
) -> RunConfig:
    """The config of a gated network; gating="none" gives the backbone alone."""
    config = default()
    config.model.update(backbone=backbone, gating=gating, dtype=dtype, width=width)
    config.model.gater.update(extractor=extractor, width=width)
    config.model.num_classes = 1000 if image_size > 64 else 10
    config.data.image_size = image_size
    return config


def gater_alone(config: RunConfig) -> RunConfig:
    """The gater as a network of its own: its extractor with an output layer."""
    alone = config.copy_and_resolve_references()
    alone.model.update(backbone=config.model.gater.extractor, gating="none")
    return alone


def random_images(count: int, image_size: int) -> dict[str, np.ndarray]:
    """Made-up images and labels."""
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (count, image_size, image_size, 3), np.uint8),
        "label": random.integers(0, 10, count).astype(np.int32),
    }


def training(config: RunConfig) -> tuple[Step, TrainState, Any]:
    """The training step of a network, its first state on the default device, and the model."""
    made = make_training(config, lambda _: 0.1)
    # A copy: the training step overwrites its state, and the model still holds these arrays.
    return made.step, jax.tree.map(jnp.copy, made.state), made.model


def replicated_copy(state: TrainState, mesh: Mesh) -> TrainState:
    """A copy on all devices that may be overwritten."""
    return replicate(jax.tree.map(np.asarray, state), mesh)
