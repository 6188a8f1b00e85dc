"""A trained run in one object: model, config, names of the classes, and how images are brought to the model.

run = load_run("runs/cifar10-resnet56")
outputs = run.model(run.preprocess(["cat.png"]))
run.labels[outputs.logits[0].argmax()]
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from gaternet_jax.config import RunConfig
from gaternet_jax.errors import UserError
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.paths import expand_home
from gaternet_jax.training.checkpoint import Which, load_model
from gaternet_jax.workdir import load_config, load_labels

if TYPE_CHECKING:
    from gaternet_jax.inference.predictor import Predictor

CALIBRATION_IMAGES = 1000  # of the run's training split


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained run.

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
        from gaternet_jax.data.preprocess import normalize
        from gaternet_jax.inference.inputs import to_array

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
    """
    workdir = expand_home(workdir)
    config, labels = load_config(workdir), load_labels(workdir)
    return Run(workdir, load_model(workdir, checkpoint, tell=tell), config, labels)


def make_predictor(run: Run | str | Path, mode: str = "auto", **options: Any) -> "Predictor":
    """Makes the `Predictor` of a run, which takes files, PIL images and pixels.

    Args:
        run: from `load_run`, or its folder.
        mode: of the Predictor. compact and specialists are calibrated on images of the run's training split, unless
            there is a `calibration` among the options.
        options: other arguments of the Predictor.

    Raises:
        UserError: as of `load_run` and of the Predictor; or there are no images to calibrate on.
    """
    from gaternet_jax.inference.calibration import read_split
    from gaternet_jax.inference.predictor import Predictor

    run = run if isinstance(run, Run) else load_run(run)
    if mode in ("compact", "specialists") and options.get("calibration") is None:
        split = run.config.data.train_split
        options["calibration"], _ = read_split(run.workdir, run.config, split, CALIBRATION_IMAGES)
    return Predictor(run.model, mode, data=run.config.data, **options)
