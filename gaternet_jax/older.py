"""What earlier versions wrote, as this one names it."""

from typing import Any

RENAMED = {"model.squeeze_ratio": "model.se_ratio", "model.as_many_parameters_as": "model.match_params_of"}
GATINGS = {"residual": "last"}
ADDED = {"model.gater.auxiliary_weight": 0.0}  # what models did before there was the field


def bring_up_to_date(saved: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Renames what earlier versions called otherwise, and gives fields that they lacked the value they worked by.

    Args:
        saved: the fields of a config.json, by name; none if it was no config.
        known: this version's, with their defaults.
    """
    fields = {RENAMED.get(field, field): value for field, value in saved.items()}
    for field in ("model.gating", "model.match_params_of"):
        if isinstance(value := fields.get(field), str):
            fields[field] = GATINGS.get(value, value)
    if not fields:
        return fields
    fields = ADDED | fields
    if "model.dense_ungated" not in fields:
        of_densenet = str(fields.get("model.backbone", "")).startswith("densenet")
        fields["model.dense_ungated"] = "none" if of_densenet else known["model.dense_ungated"]  # else without effect
    return fields
