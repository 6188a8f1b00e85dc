"""Configs to models, and the width at which a plain network has as many parameters as a gated one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from gaternet_jax.config import CHOICES, Config
from gaternet_jax.errors import UserError
from gaternet_jax.models.backbone import BackboneOptions
from gaternet_jax.models.gater import Gater, GaterHead
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.keys import init_keys
from gaternet_jax.models.registry import build_backbone


def build_model(config: Config, seed: int = 0) -> GaterNet:
    """Builds the model that a config describes, with fresh parameters, in training mode.

    Args:
        config: the `model` part of a run's config (fields: config.py).
        seed: seed of the initial parameters.

    Raises:
        UserError: unknown model, gating, gater scope or dtype, or gating asked of a backbone without gate sites.
    """
    for field, value in (("gating", config.gating), ("gater.scope", config.gater.scope), ("dtype", config.dtype)):
        known = CHOICES[f"model.{field}"]
        if value not in known:
            raise UserError(f"unknown {field} '{value}'; known: {', '.join(known)}")
    if config.as_many_parameters_as and config.gating != "none":
        raise UserError("model.as_many_parameters_as is for a plain network; set model.gating='none'")
    if config.num_classes < 1:
        raise UserError(
            f"model.num_classes={config.num_classes} is known only with a dataset; give the number of classes"
        )
    locally = config.gating != "none" and config.gater.scope == "local"
    options = BackboneOptions(
        channels=config.channels,
        num_classes=config.num_classes,
        width=match_width(config) if config.as_many_parameters_as else config.width or None,
        gating=config.gating,
        local_bottleneck=config.gater.bottleneck if locally else 0,
        local_bias=config.gater.initial_bias,
        squeeze_ratio=config.squeeze_ratio,
        zero_init_residual=config.zero_init_residual,
        dtype=jnp.dtype(config.dtype),
        rngs=init_keys(seed),
    )
    backbone = build_backbone(config.backbone, options)
    num_gates = sum(site.size for site in backbone.gate_sites)
    if config.gating != "none" and num_gates == 0:
        raise UserError(
            f"gating '{config.gating}' was asked of '{config.backbone}', which has no gate sites; "
            "set config.model.gating='none' or choose another backbone"
        )
    if config.gating == "none" or locally:
        return GaterNet(backbone, gater=None)
    extractor = build_backbone(config.gater.extractor, extractor_options(config, options))
    head = GaterHead(
        extractor.num_features,
        config.gater.bottleneck,
        num_gates,
        batch_norm=config.gater.batch_norm,
        initial_bias=config.gater.initial_bias,
        rngs=options.rngs,
    )
    return GaterNet(backbone, Gater(extractor, head))


def extractor_options(config: Config, options: BackboneOptions) -> BackboneOptions:
    """The gater's extractor: a plain network without output layer, otherwise built like the backbone."""
    return dataclasses.replace(
        options,
        num_classes=None,
        width=config.gater.width or None,
        gating="none",
        local_bottleneck=0,
        squeeze_ratio=0,
    )


def abstract_model(config: Config) -> GaterNet:
    """The model that `config` describes, with shapes in place of parameters: quick, and without memory."""
    return nnx.eval_shape(lambda: build_model(config))


def empty_model(config: Config) -> GaterNet:
    """The model that `config` describes, with zeros in place of parameters: to be filled from a checkpoint."""
    graphdef, state = nnx.split(abstract_model(config))
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state))


def count_parameters(model: nnx.Module | None) -> int:
    """Parameters of a model or a part of one; of None, 0."""
    return 0 if model is None else sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def match_width(config: Config) -> int:
    """The width at which the plain backbone's parameter count comes nearest to that of the gated model.

    Args:
        config: the `model` part of a run's config; its `as_many_parameters_as` names the gating of the gated model.
    """
    gated = abstract_model(_changed(config, gating=config.as_many_parameters_as, as_many_parameters_as=""))
    target = count_parameters(gated)

    def plain_count(width: int) -> int:
        return count_parameters(abstract_model(_changed(config, width=width, as_many_parameters_as="")))

    # Every layer has (in x out) parameters with both proportional to the width: the count is quadratic in it, up to
    # rounding. Solve the parabola through three widths, then look at its neighbours.
    own = gated.backbone.width
    widths = [own, own + max(own // 4, 2), 2 * own]
    a, b, c = np.polyfit(widths, [plain_count(width) for width in widths], 2)
    solution = int((-b + np.sqrt(b * b - 4 * a * (c - target))) / (2 * a))
    # It grows with the width: the nearest is the last width that stays below the target, or the next.
    below = max(solution, 1)
    counts = {below: plain_count(below)}
    while counts[below] > target and below > 1:
        below -= 1
        counts[below] = plain_count(below)
    while max(counts.values()) <= target:
        counts[max(counts) + 1] = plain_count(max(counts) + 1)
    return min(sorted(counts), key=lambda width: abs(counts[width] - target))


def _changed(config: Config, **fields) -> Config:
    changed = ConfigDict(config.to_dict())
    changed.update(fields)
    return changed
