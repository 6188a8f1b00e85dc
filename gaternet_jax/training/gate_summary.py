"""Gates during training, for TensorBoard: how a fixed batch of images fares from evaluation to evaluation."""

import functools
from typing import Any

import cv2
import jax
import numpy as np
from PIL import Image, ImageDraw

from gaternet_jax.gating import GateSite
from gaternet_jax.gating.sites import group_gates
from gaternet_jax.training.metrics import MetricWriter
from gaternet_jax.training.processes import is_primary

SHOWN = 8  # images, in one row
SIDE = 96  # pixels of an image shown, height and width
CAPTION = 16  # pixels, the height of the line below


class GateSummary:
    """Watches the first batch of every evaluation; of several processes the primary one, its own rows.

    It computes nothing on the devices: the evaluation gives the gates. Hence processes need not wait for each other.

    Args:
        sites: of the model; without any, nothing is written.
    """

    def __init__(self, sites: tuple[GateSite, ...]):
        self._stages = group_gates(sites, "stage")
        self._enabled = bool(sites) and is_primary()
        self._gates: jax.Array | None = None
        self._mask = np.empty(0, bool)
        self._images = np.empty(0, np.uint8)

    def look(self, batch: dict[str, jax.Array], gates: jax.Array) -> None:
        """Takes an evaluation's first batch, and its gates, bool [B, G]; does not wait for them."""
        if not self._enabled:
            return
        self._gates = gates
        if not self._mask.size:  # the first evaluation; the batch is the same in each
            self._mask = _own_rows(batch["mask"])
            self._images = _own_rows(batch["image"])[self._mask][:SHOWN]

    def write(self, writer: MetricWriter, step: int) -> None:
        """Writes what was seen last, once."""
        gates, self._gates = self._gates, None
        if gates is not None:
            writer.show(step, functools.partial(self._view, gates))

    def _view(self, gates: jax.Array) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Computes the open fractions of each stage, and of each image shown."""
        readable = _own_rows(gates)[self._mask]
        if not len(readable):
            return {}, {}
        scalars = {f"probe/open_{stage}": float(readable[:, of].mean()) for stage, of in self._stages.items()}
        scalars["probe/input_dependent"] = float((readable.any(0) & ~readable.all(0)).mean())
        return scalars, {"probe/open_gates": contact_sheet(self._images, readable.mean(1))}


def contact_sheet(images: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Draws images side by side, each with its fraction of open gates below it.

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
    """Gives the rows on this process's devices, in order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
