"""Prints the models as a table: parameters, gates and multiply-accumulates (MACs).

    python -m gaternet_jax.tools.models
    python -m gaternet_jax.tools.models --models=resnet20,resnet56 --variants=residual,wider,se

Only shapes are computed. CIFAR models: 32 x 32 images, 10 classes, ResNet-20 gater; ImageNet models: 224 x 224
images, 1,000 classes, ResNet-18 gater. MACs per image are those of backbone and gater together, with all gates open
and with half of each layer's gates open.
"""

import argparse
import sys

from tqdm import tqdm

from gaternet_jax.command_line import command_line
from gaternet_jax.config import Config, default
from gaternet_jax.models.build import abstract_model, count_parameters
from gaternet_jax.models.macs import MacCounter
from gaternet_jax.models.registry import known_backbones
from gaternet_jax.paths import expand_arguments
from gaternet_jax.variants import BASELINES, PLACEMENTS, apply_variant

HEADER = (
    "model", "parameters", "gater", "gates", "MACs dense", "MACs, all open", "MACs, half open",
)  # fmt: skip


def model_config(variant: str) -> tuple[Config, int]:
    """A config for a variant at the usual size of its images, and that size in pixels."""
    config = default()
    large = variant.split("-")[0] in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
    if large:
        config.model.num_classes = 1000
        config.model.gater.extractor = "resnet18"
        config.model.gater.bottleneck = 16
    return apply_variant(config, variant).model, 224 if large else 32


def describe(variant: str) -> tuple[str, ...]:
    """One row of the table."""
    config, size = model_config(variant)
    model = abstract_model(config)
    macs = MacCounter(model, size)
    gates = sum(site.size for site in model.gate_sites)
    backbone, gater = count_parameters(model.backbone), count_parameters(model.gater)
    return (
        variant,
        f"{backbone:,}",
        f"{gater:,}" if model.gater else "-",
        f"{gates:,}" if gates else "-",
        millions(macs.dense),
        millions(macs.gater + macs.dense),
        millions(macs.gater + macs.evenly(0.5)) if gates else "-",
    )


def millions(macs: float) -> str:
    return f"{macs / 1e6:,.1f} M"


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ("plain", *PLACEMENTS, *(name for name in BASELINES if name != "plain"))
    parser.add_argument("--models", default=",".join(known_backbones()), help="comma-separated (default: all)")
    parser.add_argument("--variants", default=",".join(every), help="comma-separated (default: all)")
    arguments = parser.parse_args(expand_arguments(argv))
    variants = [
        f"{model}-{variant}" for model in arguments.models.split(",") for variant in arguments.variants.split(",")
    ]
    rows = [describe(variant) for variant in tqdm(variants, desc="Counting", disable=not sys.stderr.isatty())]
    widths = [max(len(row[i]) for row in [HEADER, *rows]) for i in range(len(HEADER))]
    for row in (HEADER, tuple("-" * width for width in widths), *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
