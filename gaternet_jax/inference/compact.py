"""Compaction: a smaller model without the filters that calibration never opened.

Filters that are never open go, with their row in the gater's head; gates that are always open go, and their filters
stay; BatchNorm is folded into the convolutions. For an image whose gates do what calibration saw, the outputs are the
same. For another one the compacted model is an approximation: `departures` counts them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from gaternet_jax.checkpoint import Checkpoints
from gaternet_jax.config import Config
from gaternet_jax.errors import UserError
from gaternet_jax.inference.narrow import check_gated, narrow_model
from gaternet_jax.inference.selection import Selection, covered, kept_gates, select, to_json
from gaternet_jax.inference.widths import BackboneTimes, count_per_site, fill
from gaternet_jax.models.build import count_parameters
from gaternet_jax.models.functional import split_model
from gaternet_jax.models.gaternet import GaterNet, Outputs
from gaternet_jax.models.gates import GateSite
from gaternet_jax.models.macs import MacCounter
from gaternet_jax.workdir import COMPACTION, check_new_folder, save_config


def plan_compaction(gates: Any, sites: tuple[GateSite, ...], times: BackboneTimes | None = None) -> Selection:
    """What to keep.

    Args:
        gates: of the calibration images, [N, G].
        sites: of the model.
        times: filters that were never open are kept, gated, where a layer is faster with them; None: never.

    Raises:
        UserError: no image, or gates of another model.
    """
    check_gates(gates, sites)
    keep, always = (gates > 0).any(0), (gates > 0).all(0)
    if times is not None:
        widths = times.choose(count_per_site(keep, sites))
        keep = fill(keep, widths, sites, (gates > 0).mean(0))
    return select(sites, keep, ~always)


def check_gates(gates: Any, sites: tuple[GateSite, ...]) -> None:
    """Raises UserError unless these are the gates of at least one image."""
    size = sum(site.size for site in sites)
    if gates.ndim != 2 or not len(gates) or gates.shape[1] != size:
        raise UserError(f"calibration needs the gates of at least one image, [N, {size}]; got {list(gates.shape)}")


def departures(gates: Any, sites: tuple[GateSite, ...], selection: Selection) -> np.ndarray:
    """Which images a compacted model only approximates: they open a filter that went, or close one without a gate.

    Args:
        gates: of the whole model, [N, G].
        sites: of the whole model.
        selection: what was kept.

    Returns:
        bool [N].
    """
    opened, stays = gates > 0, covered(sites, selection)
    always = stays.copy()
    always[kept_gates(sites, selection)] = False
    return (opened & ~stays).any(1) | (~opened & always).any(1)


def expand(outputs: Outputs, sites: tuple[GateSite, ...], selection: Selection) -> Outputs:
    """Outputs of a compacted model with the gates of the whole one: 0 for filters that went, 1 for those without gate.

    Their scores are minus and plus infinity.
    """
    stays = covered(sites, selection)
    shape, remaining = (len(outputs.gates), len(stays)), kept_gates(sites, selection)
    gates = np.broadcast_to(stays.astype(np.float32), shape).copy()
    scores = np.where(gates > 0, np.inf, -np.inf).astype(np.float32)
    gates[:, remaining], scores[:, remaining] = outputs.gates, outputs.gate_scores
    arrays: list[Any] = [outputs.logits, gates, scores]
    return Outputs(*arrays)


def save_compacted(out: Path, config: Config, labels: list[str], compacted: GaterNet, selection: Selection) -> None:
    """Writes a folder that `load_model` takes.

    Raises:
        UserError: the folder is not empty.
    """
    check_new_folder(out)
    save_config(config, labels, out)
    (out / COMPACTION).write_text(json.dumps({"format": 1, "selection": to_json(selection)}) + "\n", encoding="utf-8")
    _, params, stats = split_model(compacted)
    with Checkpoints(out) as checkpoints:
        checkpoints.save_model(params, stats)


def describe_compaction(model: GaterNet, compacted: GaterNet, selection: Selection, image_size: int) -> dict:
    """What went: parameters, macs, and filters by site."""
    before, after = MacCounter(model, image_size), MacCounter(compacted, image_size)
    by_site = {
        site.name: {
            "filters": site.size,
            "kept": len(selection[site.name].kept),
            "always_open": len(selection[site.name].kept) - selection[site.name].gated,
        }
        for site in model.gate_sites
    }
    return {
        "parameters": [count_parameters(model), count_parameters(compacted)],
        "macs_backbone": [before.dense, after.dense],
        "macs_gater": [before.gater, after.gater],
        "filters": [sum(site[key] for site in by_site.values()) for key in ("filters", "kept", "always_open")],
        "sites": by_site,
    }


def compact_model(model: GaterNet, gates: Any, times: BackboneTimes | None = None) -> tuple[GaterNet, Selection]:
    """The compacted model for the gates [N, G] of calibration images, and what it kept; see `plan_compaction`."""
    check_gated(model)
    selection = plan_compaction(gates, model.gate_sites, times)
    return narrow_model(model, selection), selection
