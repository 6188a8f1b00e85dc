"""Gates that are the same for every image.

A fixed gate has a score that does not depend on the image: its weights in the head are zero. A model of which gates
are fixed is a model like any other, which can be saved, evaluated and trained further: a fixed gate stays as it is,
because its score is far from where SemHash has a gradient. Inference and export leave out what is fixed closed.
"""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.gating.local import LocalHead
from gaternet_jax.gating.semhash import binary_gates
from gaternet_jax.models.gaternet import GaterNet

FIXED_SCORE = 100.0  # of a gate that is fixed open; minus that of one that is fixed closed


def fixed_gates(model: GaterNet) -> tuple[np.ndarray, np.ndarray]:
    """Finds gates that are closed for every image, and gates that are open, bool [G] each."""
    closed, opened = (np.zeros(sum(site.size for site in model.gate_sites), bool) for _ in range(2))
    for scores, gates in _heads(model):
        constant = ~np.asarray(scores.kernel.get_value()).any(0)
        positive = np.asarray(binary_gates(scores.bias.get_value()[None]))[0] > 0
        closed[gates], opened[gates] = constant & ~positive, constant & positive
    return closed, opened


def fix_gates(model: GaterNet, closed: np.ndarray, opened: np.ndarray) -> GaterNet:
    """Makes a copy of a model with some of its gates, bool [G] each, closed or open for every image."""
    fixed = nnx.clone(model)
    for scores, gates in _heads(fixed):
        kernel, bias = np.array(scores.kernel.get_value()), np.array(scores.bias.get_value())
        kernel[:, (closed | opened)[gates]] = 0
        bias[closed[gates]], bias[opened[gates]] = -FIXED_SCORE, FIXED_SCORE
        scores.kernel.set_value(jnp.asarray(kernel))
        scores.bias.set_value(jnp.asarray(bias))
    return fixed


def _heads(model: GaterNet) -> Iterator[tuple[Any, np.ndarray]]:
    """Finds the layers that score gates, and the numbers of those gates."""
    if model.gater is not None:
        yield model.gater.head.scores, np.arange(model.gater.head.scores.out_features)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, LocalHead):
            yield module.scores, np.concatenate([np.arange(site.size) + site.offset for site in module.sites])
