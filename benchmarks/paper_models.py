"""The networks of the paper's Tables 1 to 3: gates and parameters as printed and as ours, and the configs of them.

`python -m benchmarks.tables` writes this table into docs/paper_to_code.md.
"""

import importlib
from typing import NamedTuple

from benchmarks.published import GATES, TABLE_1, TABLE_2, TABLE_3
from gaternet_jax.config import RunConfig
from gaternet_jax.models.build import abstract_model, count_parameters
from gaternet_jax.models.presets import PAPER, model_config

NAMES = {
    "resnet20": "ResNet-20", "resnet56": "ResNet-56", "resnet164": "ResNet-164", "densenet100": "DenseNet-BC 100-12",
    "densenet250": "DenseNet-BC 250-24", "densenet190": "DenseNet-BC 190-40", "shake26_2x64d": "Shake-Shake 26 2x64d",
    "shake26_2x96d": "Shake-Shake 26 2x96d", "resnet34": "ResNet-34", "resnet101": "ResNet-101",
    "resnet152": "ResNet-152", "inceptionv4": "Inception-v4",
}  # fmt: skip
KINDS = {"plain": "", "wider": "-Wider", "se": "-SE", "gated": "-Gated"}
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
VARIANTS = {"plain": "-plain", "wider": "-wider", "se": "-se", "gated": ""}

# Rows that a variant alone does not mean: another variant, and fields.
FIELDS = {
    ("cifar100", "resnet20", "gated"): ("gated", {"model.gater.bottleneck": 128}),
    ("imagenet", "resnet101", "wider"): ("plain", {"model.width": 74}),
    ("imagenet", "resnet152", "wider"): ("plain", {"model.width": 75}),
}
WHY = {
    ("cifar100", "resnet20", "gated"): "a bottleneck of 8 has 0.55 M, 111 to 136 have 0.60 M; 128 assumed",
    ("imagenet", "resnet101", "wider"): "a width of 74; 77 comes nearest to the gated network (`-wider`)",
    (
        "imagenet",
        "resnet152",
        "wider",
    ): "no width has that: 74 has 80.07 M, 75 this; 76 comes nearest to the gated network",
    ("imagenet", "inceptionv4", "plain"): "TensorFlow's and timm's count is ours; where 44.50 M come from is not known",
    ("imagenet", "inceptionv4", "gated"): "open: beyond the backbone's 1.82 M, another 1.60 M",
}


class Row(NamedTuple):
    """A network of the paper's tables.

    Attributes:
        key: dataset, network and kind, as in published.py.
        gates, parameters: as printed; 0 gates where there are none; millions.
        our_gates, our_parameters: of the preset, not rounded.
        why: what there is to say about it.
    """

    key: tuple[str, str, str]
    gates: int
    parameters: float
    our_gates: int
    our_parameters: int
    why: str

    @property
    def agrees(self) -> bool:
        return self.gates == self.our_gates and f"{self.our_parameters / 1e6:.2f}" == f"{self.parameters:.2f}"


def rows() -> list[Row]:
    """Builds every network, by shapes only."""
    found = []
    for key, (parameters, *_) in {**TABLE_1, **TABLE_2, **TABLE_3}.items():
        model = abstract_model(model_config(preset(key)))
        gates = sum(site.size for site in model.gate_sites)
        printed = GATES[key[1]] if key[2] == "gated" else 0
        found.append(Row(key, printed, parameters, gates, count_parameters(model), WHY.get(key, "")))
    return found


def preset(key: tuple[str, str, str]) -> str:
    """The name of the preset of a row."""
    return "paper/" + "_".join(key)


def command(key: tuple[str, str, str]) -> tuple[str, dict[str, int]]:
    """The config of a row: card:variant, and further fields."""
    dataset, _, kind = key
    kind, fields = FIELDS.get(key, (kind, {}))
    return f"{dataset}:{PAPER[preset(key)][1]['backbone']}{VARIANTS[kind]}", fields


def config_of(key: tuple[str, str, str]) -> RunConfig:
    """The config of a row, as `main` makes it of what stands in the table."""
    variant, fields = command(key)
    card, _, of_card = variant.partition(":")
    config = importlib.import_module(f"gaternet_jax.configs.{card}").get_config(of_card)
    config.update_from_flattened_dict(fields)
    return config


def block(_) -> str:
    """The table, Markdown."""
    lines = [
        "| network | config | gates, printed | ours | parameters, printed | ours | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows():
        dataset, network, kind = row.key
        variant, fields = command(row.key)
        card, _, of_card = variant.partition(":")
        setting = " ".join([f"configs/{card}.py:{of_card}", *(f"--config.{k}={v}" for k, v in fields.items())])
        gates, our_gates = (f"{number:,}" if number else "" for number in (row.gates, row.our_gates))
        lines.append(
            f"| {NAMES[network]}{KINDS[kind]}, {DATASETS[dataset]} | `{setting}` | {gates} | {our_gates} "
            f"| {row.parameters:.2f} M | {row.our_parameters / 1e6:.2f} M | {row.why} |"
        )
    return "\n".join(lines)
