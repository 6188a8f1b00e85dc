"""Configs to models, and the width at which a plain network has as many parameters as a gated one."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from gaternet_jax.config import ModelConfig, check_choices
from gaternet_jax.errors import UserError
from gaternet_jax.gating.gater import Gater
from gaternet_jax.models.backbone import BackboneOptions
from gaternet_jax.models.functional import parameters_of
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.registry import build_backbone
from gaternet_jax.nn.keys import InitKeys, Keys, KeysWanted, ShapesOnly


def build_model(config: ModelConfig, seed: int = 0) -> GaterNet:
    """Builds the model that a config describes, with fresh parameters, in training mode.

    Args:
        config: the `model` part of a run's config (fields: config.py).
        seed: seed of the initial parameters.

    Raises:
        UserError: unknown model, gating, gater scope or dtype, or gating asked of a backbone without gate sites.

    Example:
        >>> config = gx.load_run("runs/digits").config
        >>> model = gx.build_model(config.model, seed=1)  # as that of the run before it was trained
    """
    return _build(config, InitKeys(seed))


def _build(config: ModelConfig, keys: Keys) -> GaterNet:
    check_choices(config, "model")
    if config.match_params_of and config.gating != "none":
        raise UserError("model.match_params_of is for a plain network; set model.gating='none'")
    if config.num_classes < 1:
        raise UserError(
            f"model.num_classes={config.num_classes} is known only with a dataset; give the number of classes"
        )
    locally = config.gating != "none" and config.gater.scope == "local"
    options = BackboneOptions(
        channels=config.channels,
        num_classes=config.num_classes,
        width=match_width(config) if config.match_params_of else config.width or None,
        gating=config.gating,
        local_bottleneck=config.gater.bottleneck if locally else 0,
        local_bias=config.gater.initial_bias,
        dense_ungated=config.dense_ungated,
        se_ratio=config.se_ratio,
        zero_init_residual=config.zero_init_residual,
        dtype=jnp.dtype(config.dtype),
        rngs=keys,
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
    gater = Gater(
        extractor,
        num_gates,
        bottleneck=config.gater.bottleneck,
        batch_norm=config.gater.batch_norm,
        initial_bias=config.gater.initial_bias,
        num_classes=config.num_classes if config.gater.auxiliary_weight else None,
        rngs=options.rngs,
    )
    return GaterNet(backbone, gater)


def extractor_options(config: ModelConfig, options: BackboneOptions) -> BackboneOptions:
    """Describes the gater's extractor: a plain network without output layer, otherwise built like the backbone."""
    return dataclasses.replace(
        options,
        num_classes=None,
        width=config.gater.width or None,
        gating="none",
        local_bottleneck=0,
        se_ratio=0,
    )


def abstract_model(config: ModelConfig) -> GaterNet:
    """Builds the model that `config` describes, with shapes in place of parameters: quick, and without memory."""
    try:
        return _build(config, ShapesOnly())
    except KeysWanted:  # layers of others; tracing them takes several times as long
        return nnx.eval_shape(lambda: build_model(config))


def empty_model(config: ModelConfig) -> GaterNet:
    """Builds the model that `config` describes, with zeros in place of parameters: to be filled from a checkpoint."""
    graphdef, state = nnx.split(abstract_model(config))
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state))


def count_parameters(model: nnx.Module | None) -> int:
    """Counts the parameters of a model or a part of one; of None, 0."""
    return sum(parameter.size for parameter in parameters_of(model).values())


def match_width(config: ModelConfig) -> int:
    """Finds the width at which the plain backbone's parameter count comes nearest to that of the gated model.

    Args:
        config: the `model` part of a run's config; its `match_params_of` names the gating of the gated model.
    """
    gated = abstract_model(_changed(config, gating=config.match_params_of, match_params_of=""))
    target = count_parameters(gated)

    @functools.cache
    def plain_count(width: int) -> int:
        return count_parameters(abstract_model(_changed(config, width=width, match_params_of="")))

    # Nearly all layers have (in x out) parameters with both proportional to the width.
    relative = target / count_parameters(gated.backbone)
    width = max(round(gated.backbone.width * math.sqrt(relative)), 1)
    # Counts grow with the width: the nearest is the last one that stays below the target, or the next.
    while plain_count(width) > target and width > 1:
        width -= 1
    while plain_count(width + 1) <= target:
        width += 1
    return min(width, width + 1, key=lambda width: abs(plain_count(width) - target))


def _changed(config: ModelConfig, **fields) -> ModelConfig:
    changed = config.copy_and_resolve_references()
    changed.update(fields)
    return changed
