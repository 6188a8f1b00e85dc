"""Names to backbones: the families that exist. Each registers itself in its own file."""

import re
from collections.abc import Callable
from typing import NamedTuple

from gaternet_jax.errors import UserError
from gaternet_jax.gating.sites import number_sites
from gaternet_jax.models.backbone import Backbone, BackboneOptions

Builder = Callable[[re.Match[str], BackboneOptions], Backbone]


class Family(NamedTuple):
    """Describes the backbones of one pattern of names.

    Attributes:
        pattern: of the whole name.
        examples: names worth listing.
        image_size: usual height and width of their images, pixels.
        build: makes a member from the pattern's match.
    """

    pattern: re.Pattern[str]
    examples: tuple[str, ...]
    image_size: int
    build: Builder


_FAMILIES: list[Family] = []


def register(pattern: str, examples: tuple[str, ...], *, image_size: int = 32) -> Callable[[Builder], Builder]:
    """Adds a family of backbones.

    The decorated function gets the regular expression's match and BackboneOptions; it returns a Backbone, or raises
    UserError when no such member exists. Families are tried in the order in which they were registered.

    Args:
        pattern: regular expression that matches a member's whole name.
        examples: names worth listing.
        image_size: usual height and width of their images, pixels; above 64 they are taken to be ImageNet's networks.
    """

    def add(builder: Builder) -> Builder:
        _FAMILIES.append(Family(re.compile(pattern), examples, image_size, builder))
        return builder

    return add


def known_backbones() -> list[str]:
    """Lists names that `build_model` takes; families with a free depth list the usual ones."""
    return [name for family in _FAMILIES for name in family.examples]


def is_backbone(name: str) -> bool:
    """Tells whether a family takes this name; it may still have no such member."""
    return any(family.pattern.fullmatch(name) for family in _FAMILIES)


def family_of(name: str) -> Family:
    """Finds the family that takes this name.

    Raises:
        UserError: unknown name; the message lists those that exist.
    """
    for family in _FAMILIES:
        if family.pattern.fullmatch(name):
            return family
    raise UserError(f"unknown model '{name}'; known models: {', '.join(known_backbones())}")


def build_backbone(name: str, options: BackboneOptions) -> Backbone:
    """Builds a registered backbone, e.g. "resnet20".

    Raises:
        UserError: unknown name, or no such member of its family.
    """
    family = family_of(name)
    match = family.pattern.fullmatch(name)
    assert match is not None
    backbone = family.build(match, options)
    backbone.gate_sites = number_sites(backbone)
    return backbone
