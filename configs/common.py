"""The grammar of variants: `configs/cifar10.py:resnet56-plain`."""

from gaternet_jax.config import Config
from gaternet_jax.errors import UserError
from gaternet_jax.models.registry import known_backbones


def apply_variant(config: Config, variant: str) -> Config:
    """Applies a variant such as "resnet56" or "resnet56-plain".

    Args:
        config: an unlocked config.
        variant: [backbone][-plain]; "" leaves the card as it is.

    Raises:
        UserError: a part that is not known; the message lists those that are.
    """
    backbone, *modifiers = variant.split("-")
    if backbone == "plain":
        backbone, modifiers = "", ["plain", *modifiers]
    if backbone:
        if backbone not in known_backbones():
            raise UserError(
                f"unknown part '{backbone}' of the config variant '{variant}'; "
                f"a variant is MODEL, MODEL-plain or plain, with MODEL one of {', '.join(known_backbones())}"
            )
        config.model.backbone = backbone
    for modifier in modifiers:
        if modifier != "plain":
            raise UserError(f"unknown part '{modifier}' of the config variant '{variant}'; known: plain")
        config.model.gating = "none"
    return config
