"""Compaction: gates that are fixed, the same for every image, and what they close is left out.

A fixed gate has a score that does not depend on the image: its weights in the head are zero. A model of which gates
are fixed is a model like any other, which can be saved, evaluated and trained further: a fixed gate stays as it is,
because its score is far from where SemHash has a gradient. Inference and export leave out what is fixed closed.

Compaction fixes filters that calibration never opened closed, and those of sites that it always opened open. For an
image whose gates do what calibration saw, the outputs are the same. For another one the compacted model is an
approximation: `departures` counts them.
"""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.gating.local import LocalHead
from gaternet_jax.gating.semhash import binary_gates
from gaternet_jax.models.gaternet import GaterNet

FIXED_SCORE = 100.0  # of a gate that is fixed open; minus that of one that is fixed closed


def fixed_gates(model: GaterNet) -> tuple[np.ndarray, np.ndarray]:
    """Finds gates that are closed for every image, and gates that are open, bool [G] each."""
    closed, opened = np.zeros((2, sum(site.size for site in model.gate_sites)), bool)
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


def compact_model(model: GaterNet, gates: Any) -> GaterNet:
    """Makes the compacted model for the gates [N, G] of calibration images.

    Fixed closed are gates that are never open; fixed open those that always are, in a site where no gate varies.
    UserError: a plain model.
    """
    check_gated(model)
    closed, opened = ~(gates > 0).any(0), (gates > 0).all(0)
    for site in model.gate_sites:
        opened[site.gates] &= (closed | opened)[site.gates].all()
    return fix_gates(model, closed, opened)


def departures(gates: Any, compacted: GaterNet) -> np.ndarray:
    """Tells which images a compacted model only approximates, bool [N]:
    those whose gates [N, G] of the whole model close or open one that is fixed."""
    closed, opened = fixed_gates(compacted)
    return ((gates > 0) & closed | (gates <= 0) & opened).any(1)


def check_gated(model: GaterNet) -> None:
    """Raises UserError for a plain model."""
    if not model.gate_sites:
        raise UserError(
            "a plain model has no gates, so that there is nothing to leave out; use mode 'dense', or train a gated one"
        )
