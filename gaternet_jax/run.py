"""A trained run in one object: model, config, names of the classes, and how images are brought to the model.

run = load_run("runs/cifar10-resnet56")
outputs = run.model(run.preprocess(["cat.png"]))
run.labels[outputs.logits[0].argmax()]
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaternet_jax.config import RunConfig
from gaternet_jax.data.inputs import to_array
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.errors import UserError
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.paths import expand_home
from gaternet_jax.training.checkpoint import Which, load_model
from gaternet_jax.workdir import load_config, load_labels


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Holds all that a trained run needs to predict; `load_run` makes one.

    Attributes:
        workdir: its folder.
        model: in evaluation mode.
        config: the whole config, locked.
        labels: the names of the classes, by label.
    """

    workdir: Path
    model: GaterNet
    config: RunConfig
    labels: list[str]

    def preprocess(self, images: Any) -> jax.Array:
        """Brings images to what the model takes: read, cut and normalised as the run's evaluation images are.

        Args:
            images: image files or PIL images of any size, one or a list; or pixels of the model's size, an array uint8
                [B, H, W, C] or a list of such images.

        Returns:
            float32 [B, H, W, C].

        Raises:
            UserError: files that cannot be read, or arrays of another type or shape.
        """
        pixels = to_array(images, self.config.data, self.model.backbone.channels)
        size, channels = self.config.data.image_size, self.model.backbone.channels
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, channels):
            raise UserError(
                f"images must be uint8 pixels of shape [batch, {size}, {size}, {channels}], files or PIL images; got "
                f"{pixels.dtype} {list(pixels.shape)}. What is normalised already goes to the model as it is"
            )
        return normalize(jnp.asarray(pixels), self.config.data)


def load_run(workdir: str | Path, checkpoint: Which = "best", *, tell: bool = False) -> Run:
    """Loads a training run, a conversion or a compaction.

    Args:
        workdir, checkpoint, tell: as for `load_model`.

    Raises:
        UserError: as of `load_model`; or labels.txt does not fit the model.

    Example:
        >>> run = gx.load_run("runs/digits")
        >>> outputs = run.model(run.preprocess(np.zeros((1, 8, 8, 1), np.uint8)))  # or files: run.preprocess(["4.png"])
        >>> run.labels[outputs.logits[0].argmax()] in run.labels
        True
    """
    workdir = expand_home(workdir)
    config, labels = load_config(workdir), load_labels(workdir)
    return Run(workdir, load_model(workdir, checkpoint, tell=tell), config, labels)
