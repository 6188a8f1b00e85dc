"""Portraits in numbers: which images open a filter, and which open filters are unusual for an image's class."""

from typing import Any

import numpy as np

from gaternet_jax.analysis.observe import Observations
from gaternet_jax.analysis.statistics import Statistics

RARE = 0.1  # an open filter that fewer images of the class open is rare for it (assumed)


def filter_portrait(observations: Observations, statistics: Statistics, gate: int, count: int = 12) -> dict[str, Any]:
    """Picks images that open a filter and images that do not, at random (the same ones each time).

    Args:
        observations: of the split.
        statistics: of these observations.
        gate: its number.
        count: at most so many images of each kind.

    Returns:
        gate, convolution, filter (its number there), open_rate, mutual_information (bits); opened_by and shut_by,
        numbers of images, ascending; open_by_class and images_by_class, counts.
    """
    random = np.random.default_rng(gate)
    is_open, labels = observations.gates[:, gate], observations.labels
    name, number = statistics.locate(gate)
    by_class = np.bincount(labels[is_open & (labels >= 0)], minlength=len(statistics.class_names))
    return {
        "gate": gate,
        "convolution": name,
        "filter": number,
        "open_rate": statistics.open_rate[gate],
        "mutual_information": statistics.mutual_information[gate],
        "opened_by": np.sort(random.permutation(np.flatnonzero(is_open))[:count]),
        "shut_by": np.sort(random.permutation(np.flatnonzero(~is_open))[:count]),
        "open_by_class": by_class,
        "images_by_class": statistics.images_by_class,
    }


def image_portrait(observations: Observations, statistics: Statistics, image: int) -> dict[str, Any]:
    """Finds the filters that an image opens though fewer than RARE of its class do.

    Returns:
        image; label; prediction; confidence; open_gates, their number; rare, a list of gate and open_rate_in_class,
        the rarest first, empty where the class is not known.
    """
    label = int(observations.labels[image])
    opened = np.flatnonzero(observations.gates[image])
    rates = statistics.open_rate_by_class[label][opened] if label >= 0 else np.ones(len(opened))
    order = np.argsort(rates, kind="stable")
    return {
        "image": image,
        "label": label,
        "prediction": observations.predictions[image],
        "confidence": observations.confidences[image],
        "open_gates": len(opened),
        "rare": [{"gate": opened[i], "open_rate_in_class": rates[i]} for i in order if rates[i] < RARE],
    }


def unusual_images(observations: Observations, statistics: Statistics, count: int) -> np.ndarray:
    """Finds the images that open most filters which are rare for their class, the most first: int64 [at most count]."""
    rare = statistics.open_rate_by_class < RARE  # False where it is NaN
    known = np.flatnonzero(observations.labels >= 0)
    counts = np.zeros(len(observations.labels), np.int64)
    for label in np.unique(observations.labels[known]):
        of_class = observations.labels == label
        counts[of_class] = observations.gates[of_class][:, rare[label]].sum(1)
    return known[np.argsort(-counts[known], kind="stable")][:count]
