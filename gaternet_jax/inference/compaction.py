"""Compaction: filters that calibration never opened are fixed closed, and those of sites that it always opened open.

What is fixed closed, inference and export leave out (fixed.py). For an image whose gates do what calibration saw, the
outputs are the same. For another one the compacted model is an approximation: `departures` counts them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gaternet_jax.config import RunConfig
from gaternet_jax.errors import UserError
from gaternet_jax.gating import GateSite
from gaternet_jax.inference.fixed import fix_gates, fixed_gates
from gaternet_jax.inference.network import Network
from gaternet_jax.models.functional import split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.training.checkpoint import Checkpoints
from gaternet_jax.workdir import check_new_folder, save_config


def plan_compaction(gates: Any, sites: Sequence[GateSite]) -> tuple[np.ndarray, np.ndarray]:
    """Chooses gates to fix, bool [G] each: closed, if never open; open, if always open in a site where no gate varies.

    `gates` [N, G] are those of calibration images; see `check_gates`.
    """
    check_gates(gates, sites)
    closed, opened = ~(gates > 0).any(0), (gates > 0).all(0)
    for site in sites:
        opened[site.gates] &= (closed | opened)[site.gates].all()
    return closed, opened


def compact_model(model: GaterNet, gates: Any) -> GaterNet:
    """Makes the compacted model for the gates [N, G] of calibration images; see `plan_compaction`."""
    check_gated(model)
    return fix_gates(model, *plan_compaction(gates, model.gate_sites))


def departures(gates: Any, compacted: GaterNet) -> np.ndarray:
    """Tells which images a compacted model only approximates, bool [N]:
    those whose gates [N, G] of the whole model close or open one that is fixed."""
    closed, opened = fixed_gates(compacted)
    return ((gates > 0) & closed | (gates <= 0) & opened).any(1)


def check_gates(gates: Any, sites: Sequence[GateSite]) -> None:
    """Raises UserError unless these are the gates of at least one image."""
    size = sum(site.size for site in sites)
    if gates.ndim != 2 or not len(gates) or gates.shape[1] != size:
        raise UserError(f"calibration needs the gates of at least one image, [N, {size}]; got {list(gates.shape)}")


def check_gated(model: GaterNet) -> None:
    """Raises UserError for a plain model."""
    if not model.gate_sites:
        raise UserError(
            "a plain model has no gates, so that there is nothing to leave out; use mode 'dense', or train a gated one"
        )


def save_compacted(out: Path, config: RunConfig, labels: list[str], compacted: GaterNet) -> None:
    """Writes a folder that `load_model` takes; UserError: it is not empty."""
    check_new_folder(out)
    save_config(config, labels, out)
    _, params, stats = split_model(compacted)
    with Checkpoints(out) as checkpoints:
        checkpoints.save_model(params, stats)


def describe_compaction(model: GaterNet, compacted: GaterNet, image_size: int) -> dict:
    """Tells what went: parameters that inference needs, macs, and filters by site."""
    (closed, opened), counter = fixed_gates(compacted), MacCounter(model, image_size)
    networks = [Network(each, image_size, "xla") for each in (model, compacted)]
    sites = {}
    for site in model.gate_sites:
        kept, always_open = int((~closed[site.gates]).sum()), int(opened[site.gates].sum())
        sites[site.name] = {"filters": site.size, "kept": kept, "always_open": always_open}
    return {
        "parameters": [network.count_parameters() for network in networks],
        "macs_backbone": [counter.dense, int(counter.count(jnp.asarray(~closed[None], jnp.float32))[0])],
        "filters": [closed.size, int((~closed).sum()), int(opened.sum())],
        "sites": sites,
    }
