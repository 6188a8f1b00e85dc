"""What single filters are good for: the accuracy per class with a filter forced shut, and forced open.

The gates of all images are known, so that an image needs the backbone once per filter, with that filter's gate turned
over: turned over is shut for an image that opens it, and open for the others; the rest is as it was.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gaternet_jax.analysis.observe import Observations
from gaternet_jax.config import RunConfig
from gaternet_jax.data.batches import pad_rows
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.gating import GateSite
from gaternet_jax.gating.local import LocalPass
from gaternet_jax.models.functional import Tree, merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.progress import progress_bar

BATCH_SIZE = 100  # images; activations of one batch and one filter are in memory at a time


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Holds accuracies per class, fractions; NaN for a class without images in the sample.

    Attributes:
        filters: int64 [F], gates.
        images_by_class: int64 [K], of the sample.
        as_is: float64 [K].
        shut: float64 [F, K], with a filter forced shut for all images.
        opened: float64 [F, K], with it forced open.
    """

    filters: np.ndarray
    images_by_class: np.ndarray
    as_is: np.ndarray
    shut: np.ndarray
    opened: np.ndarray


class _TurnedOver(LocalPass):
    """Lets blocks decide for themselves, and turns one gate over; what later blocks see changes with it."""

    def __init__(self, gate: jax.Array):
        super().__init__(None, None)
        self.gate = gate

    def of(self, site: GateSite) -> jax.Array:
        return turn_over(super().of(site), self.gate - site.offset)


def turn_over(gates: jax.Array, gate: jax.Array) -> jax.Array:
    """Inverts column `gate` of gates [B, G]; leaves them as they are where there is no such column."""
    return jnp.where(jnp.arange(gates.shape[1])[None] == gate, 1 - gates, gates)


def ablate(
    model: GaterNet,
    config: RunConfig,
    images: np.ndarray,
    numbers: np.ndarray,
    observations: Observations,
    filters: np.ndarray,
) -> Ablation | None:
    """Forces filters shut and open, one at a time.

    Args:
        model: in evaluation mode, with gates from a gater or from its blocks.
        config: of its run.
        images: uint8 [S, H, W, C], a sample as the model takes it.
        numbers: int [S], which images of the observations these are.
        observations: what the model did with them undisturbed.
        filters: int [F], gates.

    Returns:
        None if no image of the sample is of known class, or there are no filters.
    """
    labels = observations.labels[numbers]
    images, numbers, labels = images[labels >= 0], numbers[labels >= 0], labels[labels >= 0]
    if not len(images) or not len(filters):
        return None
    before, gates = observations.predictions[numbers], observations.gates[numbers]
    after = _predict_turned_over(model, config, images, gates, filters)  # [F, S]
    is_open = gates[:, filters].T
    num_classes = len(observations.class_names)

    def by_class(predictions: np.ndarray) -> np.ndarray:  # [..., S] -> [..., K]
        right = predictions == labels
        with np.errstate(invalid="ignore"):
            counts = [right[..., labels == label].sum(-1) for label in range(num_classes)]
            return np.stack(counts, -1) / images_by_class

    images_by_class = np.bincount(labels, minlength=num_classes)
    return Ablation(
        filters=filters,
        images_by_class=images_by_class,
        as_is=by_class(before),
        shut=by_class(np.where(is_open, after, before)),
        opened=by_class(np.where(is_open, before, after)),
    )


def _predict_turned_over(
    model: GaterNet, config: RunConfig, images: np.ndarray, gates: np.ndarray, filters: np.ndarray
) -> np.ndarray:
    """Predicts classes, int32 [F, S], with each of the filters' gates turned over."""
    graphdef, params, stats = split_model(model)

    @jax.jit
    def predict(params: Tree, stats: Tree, images: jax.Array, gates: jax.Array, filters: jax.Array) -> jax.Array:
        merged, normalized = merge_model(graphdef, params, stats), normalize(images, config.data)

        def with_one(gate: jax.Array) -> jax.Array:
            turned = _TurnedOver(gate) if merged.gater is None else turn_over(gates.astype(jnp.float32), gate)
            return merged.backbone(normalized, turned).argmax(-1)

        return jax.lax.map(with_one, filters)  # one after the other: activations of one filter at a time

    size = min(BATCH_SIZE, len(images))
    predictions = []
    with progress_bar(f"Forcing {len(filters)} filters", len(images), unit="image") as bar:
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            padded = pad_rows(images[part], size), pad_rows(gates[part], size)
            outputs = jax.device_get(predict(params, stats, *padded, filters))
            predictions.append(outputs[:, : len(images[part])])
            bar.update(len(images[part]))
    return np.concatenate(predictions, 1)
