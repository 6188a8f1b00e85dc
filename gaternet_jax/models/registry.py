"""Names to backbones: the families that exist."""

import dataclasses
import re
from collections.abc import Callable

from gaternet_jax.errors import UserError
from gaternet_jax.models.backbone import Backbone, BackboneOptions
from gaternet_jax.models.blocks import basic, bottleneck
from gaternet_jax.models.densenet import DenseNet
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
    if options.zero_init_residual:
        raise UserError("model.zero_init_residual=True was asked of a DenseNet, which has no residual to start at zero")
    return DenseNet(depth, dataclasses.replace(options, width=options.width or growth))


@register(r"shake26_2x([1-9]\d*)d", ("shake26_2x32d", "shake26_2x64d", "shake26_2x96d"))
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
