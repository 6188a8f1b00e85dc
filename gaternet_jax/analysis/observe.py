"""One pass over a split: every image's gates, prediction and confidence; what all analyses start from."""

import dataclasses

import numpy as np

from gaternet_jax.models.gates import GateSite


@dataclasses.dataclass(frozen=True)
class Observations:
    """What a model did with the images of a split, in the split's order.

    Attributes:
        gates: bool [N, G].
        labels: int32 [N]; -1 where an image's class is not known.
        predictions: int32 [N], the most probable class.
        confidences: float32 [N], its probability.
        macs: float32 [N], multiply-accumulates of the backbone with the open filters, relative to dense.
        sites: which gates belong to which convolution.
        class_names: by label.
    """

    gates: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray
    macs: np.ndarray
    sites: tuple[GateSite, ...]
    class_names: tuple[str, ...]
