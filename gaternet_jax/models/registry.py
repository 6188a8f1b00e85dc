"""Names to models: the backbones that exist, and `build_model`."""

import re
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from gaternet_jax.config import Config
from gaternet_jax.errors import UserError
from gaternet_jax.models.backbone import Backbone
from gaternet_jax.models.gater import Gater, GaterHead
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.resnet import ResNet

GATINGS = ("none", "residual", "all")
DTYPES = ("float32", "bfloat16")

# A family: the pattern of its names, names worth listing, and what builds a member from the pattern's match.
_FAMILIES: list[tuple[re.Pattern[str], tuple[str, ...], Callable[..., Backbone]]] = []


def register(pattern: str, examples: tuple[str, ...]):
    """Adds a family of backbones.

    The decorated function gets the regular expression's match and the keywords channels, num_classes, width,
    gating, dtype and rngs; it returns a Backbone, or raises UserError when no such member exists.
    """

    def add(builder: Callable[..., Backbone]):
        _FAMILIES.append((re.compile(pattern), examples, builder))
        return builder

    return add


@register(r"resnet(\d+)", ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"))
def _cifar_resnet(match: re.Match[str], **options) -> ResNet:
    depth = int(match[1])
    if depth < 8 or depth % 6 != 2:
        raise UserError(f"no CIFAR ResNet has depth {depth}; depths are 6n + 2: {', '.join(known_backbones())}")
    return ResNet(depth, **options)


def known_backbones() -> list[str]:
    """Names that `build_model` takes; families with a free depth list the usual ones."""
    return [name for _, examples, _ in _FAMILIES for name in examples]


def build_backbone(name: str, **options) -> Backbone:
    """Builds a registered backbone.

    Args:
        name: e.g. "resnet20".
        **options: channels, num_classes (None: no output layer), width, gating, dtype, rngs.

    Raises:
        UserError: unknown name; the message lists those that exist.
    """
    for pattern, _, builder in _FAMILIES:
        if match := pattern.fullmatch(name):
            return builder(match, **options)
    raise UserError(f"unknown model '{name}'; known models: {', '.join(known_backbones())}")


def build_model(config: Config, seed: int = 0) -> GaterNet:
    """Builds the model that a config describes, with fresh parameters, in training mode.

    Args:
        config: the `model` part of a run's config (fields: configs/common.py).
        seed: seed of the initial parameters.

    Raises:
        UserError: unknown model, gating or dtype, or gating asked of a backbone without gate sites.
    """
    if config.gating not in GATINGS:
        raise UserError(f"unknown gating '{config.gating}'; known gatings: {', '.join(GATINGS)}")
    if config.dtype not in DTYPES:
        raise UserError(f"unknown compute type '{config.dtype}'; known types: {', '.join(DTYPES)}")
    common = dict(channels=config.channels, dtype=jnp.dtype(config.dtype), rngs=nnx.Rngs(seed))
    backbone = build_backbone(
        config.backbone, num_classes=config.num_classes, width=config.width, gating=config.gating, **common
    )
    if config.gating == "none":
        return GaterNet(backbone, gater=None)
    num_gates = sum(site.size for site in backbone.gate_sites)
    if num_gates == 0:
        raise UserError(
            f"gating '{config.gating}' was asked of '{config.backbone}', which has no gate sites; "
            "set config.model.gating='none' or choose another backbone"
        )
    extractor = build_backbone(
        config.gater.extractor, num_classes=None, width=config.gater.width, gating="none", **common
    )
    head = GaterHead(
        extractor.num_features,
        config.gater.bottleneck,
        num_gates,
        batch_norm=config.gater.batch_norm,
        rngs=common["rngs"],
    )
    return GaterNet(backbone, Gater(extractor, head))
