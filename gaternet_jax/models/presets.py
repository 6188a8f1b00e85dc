"""Models by name: a backbone, one for a dataset, or a row of the paper's tables.

resnet56                                 for 10 classes; ImageNet's networks for 1,000
cifar100_resnet56                        for a dataset
paper/cifar100_resnet164_gated           a row of the paper's Tables 1 to 3
"""

import difflib
import fnmatch
from typing import Any

from gaternet_jax.config import ModelConfig, default
from gaternet_jax.errors import UserError
from gaternet_jax.models.build import build_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.registry import family_of, is_backbone, known_backbones
from gaternet_jax.validation import check_fields

_RESNET18 = {"extractor": "resnet18", "bottleneck": 256}  # the paper's extractor; 256 follows from its parameters

# Fields of config.model that go with a dataset.
DATASETS: dict[str, dict[str, Any]] = {
    "cifar10": {"num_classes": 10},
    "cifar100": {"num_classes": 100},
    "imagenet": {"num_classes": 1000, "gater": _RESNET18},
}

# Rows of the paper's tables, as fields of config.model. What the paper does not print (widths, ratios, bottlenecks)
# follows from the parameters that it does: docs/paper_to_code.md.
_KINDS: dict[str, dict[str, Any]] = {"plain": {"gating": "none"}, "gated": {"gating": "last"}}


def _with_baselines(backbone: str, width: int, se_ratio: int) -> dict[str, dict[str, Any]]:
    wider, se = {"gating": "none", "width": width}, {"gating": "none", "se_ratio": se_ratio}
    return {kind: {"backbone": backbone, **fields} for kind, fields in (*_KINDS.items(), ("wider", wider), ("se", se))}


def _without_baselines(backbone: str) -> dict[str, dict[str, Any]]:
    return {kind: {"backbone": backbone, **fields} for kind, fields in _KINDS.items()}


_CIFAR = {
    "resnet20": _with_baselines("resnet20", width=23, se_ratio=4),
    "resnet56": _with_baselines("resnet56", width=18, se_ratio=4),
    "resnet164": _with_baselines("resnet164_paper", width=18, se_ratio=8),
}
_NETWORKS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "cifar10": {
        **_CIFAR,
        **{name: _without_baselines(name) for name in ("densenet100", "densenet250", "densenet190")},
        **{name: _without_baselines(f"{name}_paper") for name in ("shake26_2x64d", "shake26_2x96d")},
    },
    "cifar100": {
        **_CIFAR,
        # 8 gives 0.55 M parameters, 111 to 136 the 0.60 M that are printed
        "resnet20": _CIFAR["resnet20"] | {"gated": _CIFAR["resnet20"]["gated"] | {"gater": {"bottleneck": 128}}},
    },
    "imagenet": {
        "resnet34": _with_baselines("resnet34", width=80, se_ratio=16),
        "resnet101": _with_baselines("resnet101", width=74, se_ratio=16),
        "resnet152": _with_baselines("resnet152", width=75, se_ratio=16),
        "inceptionv4": _without_baselines("inceptionv4"),
    },
}
PAPER = {
    f"paper/{dataset}_{network}_{kind}": (dataset, fields)
    for dataset, networks in _NETWORKS.items()
    for network, kinds in networks.items()
    for kind, fields in kinds.items()
}


def list_models(pattern: str = "*") -> list[str]:
    """Lists the names that `create_model` takes.

    Families have further members, e.g. resnet74 and densenet40_k12.

    Args:
        pattern: as of the shell: "*" stands for anything, "?" for a letter.

    Example:
        >>> gx.list_models("paper/cifar10_densenet100_*")
        ['paper/cifar10_densenet100_plain', 'paper/cifar10_densenet100_gated']
    """
    of_datasets = [
        f"{dataset}_{name}"
        for dataset in DATASETS
        for name in known_backbones()
        if (dataset == "imagenet") == _is_large(name)
    ]
    return [name for name in (*known_backbones(), *of_datasets, *PAPER) if fnmatch.fnmatchcase(name, pattern)]


def create_model(
    name: str, *, gating: str | None = None, num_classes: int | None = None, seed: int = 0, **fields: Any
) -> GaterNet:
    """Creates a model by its name, with fresh parameters, in training mode.

    Args:
        name: see `list_models`.
        gating: "none", "last" (the last convolution of each block, the default) or "all".
        num_classes: length of the logits; None: those of the dataset.
        seed: seed of the initial parameters.
        **fields: further fields of config.model, those of the gater with "gater_" before them (config.py has all of
            them): width=8, dtype="bfloat16", gater_scope="local".

    Raises:
        UserError: unknown name, field or value.

    Example:
        >>> model = gx.create_model("cifar10_resnet8", gating="all", width=8, gater_width=8)
        >>> sum(site.size for site in model.gate_sites)
        112
    """
    if "backbone" in fields:
        raise UserError(f"backbone='{fields['backbone']}' contradicts the name '{name}', which says the backbone")
    given = {"gating": gating, "num_classes": num_classes}
    return build_model(model_config(name, fields | {k: v for k, v in given.items() if v is not None}), seed)


def model_config(name: str, fields: dict[str, Any] | None = None) -> ModelConfig:
    """Makes the `model` part of a config, by a model's name; arguments and errors as of `create_model`."""
    config = default()
    dataset, _, backbone = name.rpartition("/")[2].partition("_")
    if name in PAPER:
        dataset, row = PAPER[name]
        config.model.update(DATASETS[dataset])
        config.model.update(row)
    elif is_backbone(name):
        config.model.update({**DATASETS["imagenet" if _is_large(name) else "cifar10"], "backbone": name})
    elif dataset in DATASETS and is_backbone(backbone):
        config.model.update({**DATASETS[dataset], "backbone": backbone})
    else:
        near = difflib.get_close_matches(name, list_models(), n=5, cutoff=0.5)
        raise UserError(
            f"unknown model '{name}'; "
            + (f"names like it: {', '.join(near)}" if near else "gaternet_jax.list_models() lists those that exist")
        )
    with config.ignore_type():  # `check_fields` names what is of another type
        for field, value in (fields or {}).items():
            part: Any = config.model.gater if field.startswith("gater_") else config.model
            part[field.removeprefix("gater_")] = value
    check_fields(config)
    return config.model


def _is_large(backbone: str) -> bool:
    return family_of(backbone).image_size > 64
