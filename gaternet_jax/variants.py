"""The grammar of variants: `configs/cifar10.py:resnet56-plain-strong`."""

from collections.abc import Mapping

from gaternet_jax.config import RunConfig, flatten
from gaternet_jax.errors import UserError
from gaternet_jax.models.registry import is_backbone, known_backbones

PLACEMENTS = ("last", "all")  # which convolutions are gated
BASELINES = ("plain", "wider", "se", "local")
KINDS = (*BASELINES, "aux")  # of network, at most one; "aux" is the gated one
SE_RATIOS = {"resnet20": 4, "resnet56": 4, "resnet164_paper": 8}  # [D], see config.py; all others: Hu et al. 2018

# Fields of config.optimizer, for small images. The paper's recipe is not known, and plain networks alone differ by a
# point between these two: gating has to win under both. Each warms up for one epoch (He et al.: only ResNet-110).
RECIPES: Mapping[str, Mapping[str, object]] = {
    # He et al. 2016 (arXiv 1512.03385) section 4.2: at 32,000 and 48,000 of 64,000 steps.
    "he": dict(
        learning_rate=0.1,
        nesterov=False,
        weight_decay=1e-4,
        schedule="steps",
        decay_at=(0.5, 0.75),
        decay_factor=0.1,
    ),
    # As of chenyaofo/pytorch-cifar-models, there at batch 256.
    "strong": dict(learning_rate=0.1, nesterov=True, weight_decay=5e-4, schedule="cosine"),
}


def apply_variant(
    config: RunConfig, variant: str, recipes: Mapping[str, Mapping[str, object]] | None = None
) -> RunConfig:
    """Applies a variant such as "resnet56", "resnet56-all" or "resnet56-wider-strong".

    plain: the backbone without gates. wider: the same with the width at which it has as many parameters as the gated
    model. se: without gates, with squeeze-and-excitation. local: each block decides its own gates. aux: the gater's
    extractor learns to classify, too (docs/gating_study.md).

    Args:
        config: an unlocked config.
        variant: [MODEL][-last|-all][-plain|-wider|-se|-local|-aux][-RECIPE]; "" leaves the card as it is.
        recipes: those that suit the card, by name: fields of config.optimizer; None: it has but its own.

    Raises:
        UserError: a part that is not known; the message lists those that are.
    """
    recipes = recipes or {}
    parts = variant.split("-") if variant else []
    if parts and is_backbone(parts[0]):
        config.model.backbone = parts.pop(0)
    unknown = [part for part in parts if part not in (*PLACEMENTS, *KINDS, *recipes)]
    if unknown:
        named = f"MODEL-PLACEMENT-KIND{'-RECIPE' if recipes else ''}"
        raise UserError(
            f"unknown part '{unknown[0]}' of the config variant '{variant}'. A variant is {named}, "
            f"each part optional: MODEL one of {', '.join(known_backbones())}; PLACEMENT one of "
            f"{', '.join(PLACEMENTS)}; KIND one of {', '.join(KINDS)}"
            + (f"; RECIPE one of {', '.join(recipes)}" if recipes else "")
        )
    placements, kinds, chosen = ([part for part in parts if part in words] for words in (PLACEMENTS, KINDS, recipes))
    if max(len(placements), len(kinds), len(chosen)) > 1:
        raise UserError(f"the config variant '{variant}' has two parts of one kind; give one of {', '.join(parts)}")
    if placements:
        config.model.update(gating=placements[0])
    for kind in kinds:
        if kind == "local":
            config.model.gater.scope = "local"
        if kind == "aux":  # as in docs/gating_study.md: of gates that start wide open it makes no use
            config.model.gater.update(auxiliary_weight=1.0, batch_norm=True, initial_bias=2.0)
        if kind == "wider":
            config.model.update(match_params_of=config.model.gating)
        if kind == "se":
            config.model.se_ratio = SE_RATIOS.get(config.model.backbone, 16)
        if kind in ("plain", "wider", "se"):
            config.model.gating = "none"
    for recipe in chosen:
        config.optimizer.update(recipes[recipe])
    return config


def recipe_of(config: RunConfig) -> str:
    """Names the recipe whose fields a config has, whatever word or field brought them there; "" where none has."""
    found = dict(flatten(config.optimizer))
    for name, fields in RECIPES.items():
        if all(found[field] == value for field, value in fields.items()):
            return name
    return ""
