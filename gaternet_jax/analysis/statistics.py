"""What a gater does over a split, in numbers: which filters open, how often, for which classes.

observations -> counts -> rates -> information about the class, overlap of classes
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from gaternet_jax.analysis.observe import Observations
from gaternet_jax.files import write_file
from gaternet_jax.gating import GateSite
from gaternet_jax.gating.sites import group_gates

ALWAYS_OFF, INPUT_DEPENDENT, ALWAYS_ON = range(3)
KIND_NAMES = ("always off", "input-dependent", "always on")
ALMOST = 0.01  # a gate whose open rate is within this of 0 or 1 almost never changes (assumed; paper silent)
PARTS = 10  # of the images ordered by confidence


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Says what the gates of a split are like. Numbers that need classes are NaN where no image's class is known.

    Attributes:
        sites: which gates belong to which convolution.
        class_names: by label.
        images_by_class: int64 [K], images whose class is known.
        open_rate: float64 [G], the fraction of images for which a gate is open.
        open_rate_by_class: float64 [K, G], the same over the images of a class; NaN for a class without images.
        kinds: uint8 [G]; 0 always off, 1 input-dependent, 2 always on.
        almost_constant: bool [G], input-dependent gates whose open rate is within ALMOST of 0 or of 1.
        open_per_image: int32 [N], open gates.
        mutual_information: float64 [G], between a gate and the class, bits, over the images whose class is known.
        overlap: float64 [K, K], weighted Jaccard index of two classes' open filters: with r the open rates of a class
            and s those of another, sum(min(r, s)) / sum(max(r, s)); 1 where both open nothing.
        overlap_dependent: float64 [K, K], the same over the input-dependent gates alone.
        accuracy: fraction of the images of known class that are classified rightly.
        by_confidence: images ordered by confidence, in PARTS parts of (nearly) one size, the least confident first;
            each has images, confidence (mean), accuracy (of known classes; NaN if none), open_gates (mean).
        macs: minimum, mean, maximum and standard deviation over the images, relative to dense.
    """

    sites: tuple[GateSite, ...]
    class_names: tuple[str, ...]
    images_by_class: np.ndarray
    open_rate: np.ndarray
    open_rate_by_class: np.ndarray
    kinds: np.ndarray
    almost_constant: np.ndarray
    open_per_image: np.ndarray
    mutual_information: np.ndarray
    overlap: np.ndarray
    overlap_dependent: np.ndarray
    accuracy: float
    by_confidence: tuple[dict[str, float], ...]
    macs: dict[str, float]

    @property
    def has_classes(self) -> bool:
        """Tells whether the class of any image is known."""
        return bool(self.images_by_class.any())

    @property
    def chance_information(self) -> float:
        """Gives the bits that a gate ignorant of the class shows on average: the estimate's bias (Miller 1955)."""
        classes, images = int((self.images_by_class > 0).sum()), int(self.images_by_class.sum())
        return (classes - 1) / (2 * images * np.log(2)) if images else float("nan")

    def most_specific(self, count: int) -> np.ndarray:
        """Finds the input-dependent gates that tell most about the class: int64 [at most count], the most first."""
        if not self.has_classes:
            return np.zeros(0, np.int64)
        order = np.argsort(-self.mutual_information, kind="stable")
        return order[self.kinds[order] == INPUT_DEPENDENT][:count]

    def locate(self, gate: int) -> tuple[str, int]:
        """Gives the convolution of a gate, and the number of its filter there."""
        site = next(site for site in self.sites if site.offset <= gate < site.offset + site.size)
        return site.name, int(gate) - site.offset


def compute_statistics(observations: Observations) -> Statistics:
    """Computes the statistics of a split's gates; see `Statistics` for the definitions."""
    gates, labels, known = observations.gates, observations.labels, observations.labels >= 0
    num_classes = len(observations.class_names)
    images_by_class = np.bincount(labels[known], minlength=num_classes)
    open_by_class = np.stack([gates[labels == label].sum(0) for label in range(num_classes)])
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: a class without images
        rate_by_class = open_by_class / images_by_class[:, None]
    open_count = gates.sum(0)
    kinds = np.full(gates.shape[1], INPUT_DEPENDENT, np.uint8)
    kinds[open_count == 0] = ALWAYS_OFF
    kinds[open_count == len(gates)] = ALWAYS_ON
    open_rate = open_count / len(gates)
    rarely_changes = (open_rate <= ALMOST) | (open_rate >= 1 - ALMOST)
    right = observations.predictions == labels
    return Statistics(
        sites=observations.sites,
        class_names=observations.class_names,
        images_by_class=images_by_class,
        open_rate=open_rate,
        open_rate_by_class=rate_by_class,
        kinds=kinds,
        almost_constant=rarely_changes & (kinds == INPUT_DEPENDENT),
        open_per_image=gates.sum(1, dtype=np.int32),
        mutual_information=mutual_information(open_by_class, images_by_class),
        overlap=class_overlap(rate_by_class),
        overlap_dependent=class_overlap(rate_by_class[:, kinds == INPUT_DEPENDENT]),
        accuracy=float(right[known].mean()) if known.any() else float("nan"),
        by_confidence=_by_confidence(observations, right, known),
        macs=spread(observations.macs),
    )


def mutual_information(open_by_class: np.ndarray, images_by_class: np.ndarray) -> np.ndarray:
    """Gives I(gate; class) = sum over states, classes of p(state, class) log2(p(state, class) / p(state) p(class)).

    Args:
        open_by_class: int [K, G], images of a class for which a gate is open.
        images_by_class: int [K].

    Returns:
        float64 [G], bits; NaN without images. At most the entropy of the classes, and at most 1.
    """
    images = images_by_class.sum()
    if not images:
        return np.full(open_by_class.shape[1], np.nan)
    joint = np.stack([open_by_class, images_by_class[:, None] - open_by_class]) / images  # [2, K, G]
    independent = joint.sum(1, keepdims=True) * (images_by_class / images)[None, :, None]
    ratio = np.divide(joint, independent, out=np.ones_like(joint), where=joint > 0)  # 0 log 0 is 0
    return np.maximum((joint * np.log2(ratio)).sum((0, 1)), 0)


def class_overlap(rate_by_class: np.ndarray) -> np.ndarray:
    """Computes the weighted Jaccard index of all pairs of classes, float64 [K, K], of their open rates [K, G]."""
    num_classes = len(rate_by_class)
    overlap, opened = np.empty((num_classes, num_classes)), rate_by_class.sum(1)
    for label, rates in enumerate(rate_by_class):  # one row at a time: [K, K, G] may be large
        shared = np.minimum(rates[None], rate_by_class).sum(1)
        union = opened + opened[label] - shared
        overlap[label] = np.divide(shared, union, out=np.ones_like(shared), where=union != 0)
    return overlap


def spread(values: np.ndarray) -> dict[str, float]:
    """Gives minimum, mean, maximum and standard deviation."""
    values = values.astype(np.float64)
    return {
        "minimum": float(values.min()),
        "mean": float(values.mean()),
        "maximum": float(values.max()),
        "standard_deviation": float(values.std()),
    }


def unit_of(site: GateSite) -> str:
    """Names the unit of a convolution, see `GateSite.unit`."""
    return site.unit


def stage_of(site: GateSite) -> str:
    """Names the stage of a convolution, see `GateSite.stage`."""
    return site.stage


def count_kinds(kinds: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """Counts, by the names of the groups, how many of a group's gates are always off, input-dependent and always on."""
    return {
        name: dict(zip(KIND_NAMES, np.bincount(kinds[gates], minlength=3).tolist(), strict=True))
        for name, gates in groups.items()
    }


def _by_confidence(observations: Observations, right: np.ndarray, known: np.ndarray) -> tuple[dict[str, float], ...]:
    order = np.argsort(observations.confidences, kind="stable")
    open_per_image = observations.gates.sum(1)
    return tuple(
        {
            "images": len(part),
            "confidence": float(observations.confidences[part].mean()),
            "accuracy": float(right[part][known[part]].mean()) if known[part].any() else float("nan"),
            "open_gates": float(open_per_image[part].mean()),
        }
        for part in np.array_split(order, min(PARTS, len(order)))
    )


def to_json(statistics: Statistics, further: dict[str, Any]) -> dict[str, Any]:
    """Gives all of the statistics, for statistics.json; NaN becomes null.

    Args:
        statistics: what to tell.
        further: parts of the analysis to put beside them, e.g. the linear probe's.
    """
    units, stages = group_gates(statistics.sites, "unit"), group_gates(statistics.sites, "stage")
    kinds, dependent = statistics.kinds, statistics.kinds == INPUT_DEPENDENT
    overall = count_kinds(kinds, {"": np.arange(len(kinds))})[""]
    specific = [(gate, *statistics.locate(gate)) for gate in statistics.most_specific(20).tolist()]
    return plain(
        {
            "images": len(statistics.open_per_image),
            "images_of_known_class": int(statistics.images_by_class.sum()),
            "gates": len(kinds),
            "accuracy": statistics.accuracy,
            "kinds": {"overall": overall, "stages": count_kinds(kinds, stages), "units": count_kinds(kinds, units)},
            "input_dependent_that_almost_never_change": int(statistics.almost_constant.sum()),
            "open_gates_per_image": spread(statistics.open_per_image),
            "macs_per_image_relative_to_dense": statistics.macs,
            "mean_mutual_information_of_input_dependent": (
                float(statistics.mutual_information[dependent].mean()) if dependent.any() else None
            ),
            "mutual_information_expected_by_chance": statistics.chance_information,
            "most_specific_filters": [
                {"gate": gate, "convolution": name, "filter": number, "bits": statistics.mutual_information[gate]}
                for gate, name, number in specific
            ],
            "by_confidence": list(statistics.by_confidence),
            **further,
            "classes": [
                {"name": name, "images": int(images)}
                for name, images in zip(statistics.class_names, statistics.images_by_class, strict=True)
            ],
            "sites": [site._asdict() for site in statistics.sites],
            "overlap": statistics.overlap,
            "overlap_dependent": statistics.overlap_dependent,
            "per_gate": {
                "open_rate": statistics.open_rate,
                "kind": kinds,
                "mutual_information": statistics.mutual_information,
                "open_rate_by_class": statistics.open_rate_by_class,
            },
        }
    )


def save_statistics(path: Path, statistics: Statistics, further: dict[str, Any]) -> None:
    """Writes `to_json` to a file, one entry a line."""
    entries = to_json(statistics, further).items()
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in entries)
    write_file(path, f"{{\n{lines}\n}}\n")


def plain(value: Any) -> Any:
    """Gives a value as JSON takes it: lists, Python's numbers, floats of six digits (small files), None for NaN."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return None if np.isnan(value) else float(f"{value:.6g}")
    return value
