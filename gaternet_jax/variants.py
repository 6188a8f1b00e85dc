"""The grammar of variants: `configs/cifar10.py:resnet56-plain`."""

from gaternet_jax.config import Config
from gaternet_jax.errors import UserError
from gaternet_jax.models.registry import is_backbone, known_backbones

PLACEMENTS = ("residual", "all")  # which convolutions are gated
BASELINES = ("plain", "wider", "se", "local")


def apply_variant(config: Config, variant: str) -> Config:
    """Applies a variant such as "resnet56", "resnet56-all" or "resnet56-wider".

    plain: the backbone without gates. wider: the same with the width at which it has as many parameters as the gated
    model. se: without gates, with squeeze-and-excitation. local: each block decides its own gates.

    Args:
        config: an unlocked config.
        variant: [MODEL][-residual|-all][-plain|-wider|-se|-local]; "" leaves the card as it is.

    Raises:
        UserError: a part that is not known; the message lists those that are.
    """
    parts = variant.split("-") if variant else []
    if parts and is_backbone(parts[0]):
        config.model.backbone = parts.pop(0)
    unknown = [part for part in parts if part not in PLACEMENTS + BASELINES]
    if unknown:
        raise UserError(
            f"unknown part '{unknown[0]}' of the config variant '{variant}'. A variant is MODEL-PLACEMENT-BASELINE, "
            f"each part optional: MODEL one of {', '.join(known_backbones())}; PLACEMENT one of "
            f"{', '.join(PLACEMENTS)}; BASELINE one of {', '.join(BASELINES)}"
        )
    placements = [part for part in parts if part in PLACEMENTS]
    baselines = [part for part in parts if part in BASELINES]
    if len(placements) > 1 or len(baselines) > 1:
        raise UserError(f"the config variant '{variant}' has two parts of one kind; give one of {', '.join(parts)}")
    if placements:
        config.model.gating = placements[0]
    for baseline in baselines:
        if baseline == "local":
            config.model.gater.scope = "local"
            continue
        if baseline == "wider":
            config.model.as_many_parameters_as = config.model.gating
        if baseline == "se":
            config.model.squeeze_ratio = 16  # Hu et al. 2018
        config.model.gating = "none"
    return config
