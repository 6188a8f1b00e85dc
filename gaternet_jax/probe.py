"""Gates during training, for TensorBoard: how a fixed batch of images fares from evaluation to evaluation."""

import functools
from typing import Any

import cv2
import jax
import numpy as np
from PIL import Image, ImageDraw

from gaternet_jax.distributed import is_primary
from gaternet_jax.metrics import MetricWriter
from gaternet_jax.models.gates import GateSite, group_gates

SHOWN = 8  # images, in one row
SIDE = 96  # pixels of an image shown, height and width
CAPTION = 16  # pixels, the height of the line below


class Probe:
    """Watches the first batch of every evaluation; of several processes the primary one, its own rows.

    It computes nothing on the devices: the evaluation gives the gates. Hence processes need not wait for each other.

    Args:
        sites: of the model; without any, nothing is written.
    """

    def __init__(self, sites: tuple[GateSite, ...]):
        self._stages = group_gates(sites, "stage")
        self._enabled = bool(sites) and is_primary()
        self._gates: jax.Array | None = None
        self._mask: np.ndarray | None = None
        self._images: np.ndarray | None = None

    def look(self, batch: dict[str, jax.Array], gates: jax.Array) -> None:
        """Takes an evaluation's first batch, and its gates, bool [B, G]; does not wait for them."""
        if not self._enabled:
            return
        self._gates = gates
        if self._images is None:  # the same in each evaluation
            self._mask = _own_rows(batch["mask"])
            self._images = _own_rows(batch["image"])[self._mask][:SHOWN]

    def write(self, writer: MetricWriter, step: int) -> None:
        """Writes what was seen last: open fractions of each stage, and of each image shown; once."""
        if self._gates is None or self._mask is None or self._images is None:
            return
        gates, self._gates = _own_rows(self._gates)[self._mask], None
        if not len(gates):
            return
        scalars = {f"probe/open_{stage}": float(gates[:, numbers].mean()) for stage, numbers in self._stages.items()}
        scalars["probe/input_dependent"] = float((gates.any(0) & ~gates.all(0)).mean())
        sheet = functools.partial(contact_sheet, self._images, gates.mean(1))
        writer.show(step, scalars, "probe/open_gates", sheet)


def contact_sheet(images: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Images side by side, each with its fraction of open gates below it.

    Args:
        images: uint8 [N, H, W, C].
        fractions: [N] or more.

    Returns:
        uint8 [SIDE + CAPTION, N * SIDE, 3].
    """
    sheet = np.full((SIDE + CAPTION, len(images) * SIDE, 3), 255, np.uint8)
    for place, image in enumerate(images):
        enlarged: Any = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        sheet[:SIDE, place * SIDE : (place + 1) * SIDE] = enlarged.reshape(SIDE, SIDE, -1)
    picture = Image.fromarray(sheet)
    draw = ImageDraw.Draw(picture)
    for place, fraction in zip(range(len(images)), fractions, strict=False):
        draw.text((place * SIDE + 4, SIDE + 2), f"{fraction:.1%} open", fill="black")
    return np.asarray(picture)


def _own_rows(array: jax.Array) -> np.ndarray:
    """The rows on this process's devices, in order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
