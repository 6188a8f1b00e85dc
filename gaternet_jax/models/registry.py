"""Names to models: the backbones that exist, and `build_model`."""

import dataclasses
import re
from collections.abc import Callable

import jax.numpy as jnp

from gaternet_jax.config import CHOICES, Config
from gaternet_jax.errors import UserError
from gaternet_jax.models.backbone import Backbone, BackboneOptions
from gaternet_jax.models.blocks import basic, bottleneck
from gaternet_jax.models.densenet import DenseNet
from gaternet_jax.models.gater import Gater, GaterHead
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.keys import init_keys
from gaternet_jax.models.resnet import ResNet
from gaternet_jax.models.shake_shake import ShakeShake

# A family: the pattern of its names, names worth listing, and what builds a member from the pattern's match.
_FAMILIES: list[tuple[re.Pattern[str], tuple[str, ...], Callable[[re.Match[str], BackboneOptions], Backbone]]] = []


def register(pattern: str, examples: tuple[str, ...]):
    """Adds a family of backbones.

    The decorated function gets the regular expression's match and BackboneOptions; it returns a Backbone, or raises
    UserError when no such member exists. Families are tried in the order in which they were registered.
    """

    def add(builder: Callable[[re.Match[str], BackboneOptions], Backbone]):
        _FAMILIES.append((re.compile(pattern), examples, builder))
        return builder

    return add


# He et al. 2016, table 1.
_IMAGENET = {
    "18": (basic, (2, 2, 2, 2)),
    "34": (basic, (3, 4, 6, 3)),
    "50": (bottleneck, (3, 4, 6, 3)),
    "101": (bottleneck, (3, 4, 23, 3)),
    "152": (bottleneck, (3, 8, 36, 3)),
}


@register(r"resnet(18|34|50|101|152)", ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"))
def _imagenet_resnet(match: re.Match[str], options: BackboneOptions) -> Backbone:
    block, blocks = _IMAGENET[match[1]]
    return ResNet(block, blocks, large_images=True, options=options)


@register(
    r"resnet(\d+)(_basic|_bottleneck)?",
    ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet164"),
)
def _cifar_resnet(match: re.Match[str], options: BackboneOptions) -> Backbone:
    """Basic blocks where the depth is 6n + 2, bottlenecks where it is 9n + 2; where both fit, basic up to 163."""
    depth, kind = int(match[1]), match[2]
    fits = {"_basic": depth >= 8 and depth % 6 == 2, "_bottleneck": depth >= 11 and depth % 9 == 2}
    if kind is None:
        kind = "_basic" if fits["_basic"] and (depth < 164 or not fits["_bottleneck"]) else "_bottleneck"
    if not fits[kind]:
        raise UserError(
            f"no CIFAR ResNet has depth {depth}; depths are 6n + 2 with basic blocks and 9n + 2 with bottlenecks "
            f"(name them resnetD_basic or resnetD_bottleneck where both fit): {', '.join(known_backbones())}"
        )
    layers, block = (6, basic) if kind == "_basic" else (9, bottleneck)
    return ResNet(block, ((depth - 2) // layers,) * 3, large_images=False, options=options)


_GROWTH = {100: 12, 190: 40}  # Huang et al. 2017, table 2


@register(r"densenet(\d+)(?:_k(\d+))?", ("densenet100", "densenet190"))
def _densenet(match: re.Match[str], options: BackboneOptions) -> Backbone:
    depth, growth = int(match[1]), int(match[2]) if match[2] else _GROWTH.get(int(match[1]))
    if depth < 10 or depth % 6 != 4 or not (growth or options.width):
        raise UserError(
            f"no DenseNet-BC is '{match[0]}'; depths are 6n + 4, and others than 100 (k = 12) and 190 (k = 40) "
            "name their growth rate: densenet40_k12"
        )
    return DenseNet(depth, dataclasses.replace(options, width=options.width or growth))


@register(r"shake26_2x(\d+)d", ("shake26_2x32d", "shake26_2x64d", "shake26_2x96d"))
def _shake_shake(match: re.Match[str], options: BackboneOptions) -> Backbone:
    return ShakeShake(dataclasses.replace(options, width=options.width or int(match[1])))


def known_backbones() -> list[str]:
    """Names that `build_model` takes; families with a free depth list the usual ones."""
    return [name for _, examples, _ in _FAMILIES for name in examples]


def is_backbone(name: str) -> bool:
    """Whether a family takes this name; it may still have no such member."""
    return any(pattern.fullmatch(name) for pattern, _, _ in _FAMILIES)


def build_backbone(name: str, options: BackboneOptions) -> Backbone:
    """Builds a registered backbone, e.g. "resnet20".

    Raises:
        UserError: unknown name; the message lists those that exist.
    """
    for pattern, _, builder in _FAMILIES:
        if match := pattern.fullmatch(name):
            return builder(match, options)
    raise UserError(f"unknown model '{name}'; known models: {', '.join(known_backbones())}")


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
    locally = config.gating != "none" and config.gater.scope == "local"
    options = BackboneOptions(
        channels=config.channels,
        num_classes=config.num_classes,
        width=config.width or None,
        gating=config.gating,
        local_bottleneck=config.gater.bottleneck if locally else 0,
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
