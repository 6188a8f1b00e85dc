"""Prints the models as a table: parameters, gates and multiply-accumulates (MACs).

    python -m gaternet_jax.tools.models
    python -m gaternet_jax.tools.models --models=resnet20,resnet56 --variants=last,wider,se

Only shapes are computed. CIFAR models: 32 x 32 images, 10 classes, ResNet-20 gater; ImageNet models: 224 x 224 images
(Inception-v4: 299 x 299), 1,000 classes, ResNet-18 gater. MACs per image are those of backbone and gater together,
with all gates open and with half of each layer's gates open.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import jax
from flax import nnx
from tqdm import tqdm

from gaternet_jax.command_line import command_line
from gaternet_jax.config import Config, default
from gaternet_jax.models.build import abstract_model, count_parameters
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.macs import trace_macs
from gaternet_jax.models.presets import DATASETS
from gaternet_jax.models.registry import family_of, is_backbone, known_backbones
from gaternet_jax.paths import expand_arguments
from gaternet_jax.variants import BASELINES, PLACEMENTS, apply_variant

HEADER = (
    "model", "parameters", "gater", "gates", "MACs dense", "MACs, all open", "MACs, half open",
)  # fmt: skip


def model_config(variant: str) -> tuple[Config, int]:
    """A config for a variant at the usual size of its images, and that size in pixels."""
    backbone = variant.partition("-")[0]
    size = family_of(backbone).image_size if is_backbone(backbone) else 0
    config = default()
    config.model.update(DATASETS["imagenet" if size > 64 else "cifar10"])
    return apply_variant(config, variant).model, size


class Traced:
    """Counts the variants of a model by one trace of the one that has all the gates.

    How often a kernel is applied, and which of its channels have gates, depends neither on the width nor on how many of
    the gates a variant has; the layers that only some variants have see pooled maps, once.

    Args:
        model: that one.
        image_size: height and width of its images, pixels.
    """

    def __init__(self, model: GaterNet, image_size: int):
        count, weights = trace_macs(model, image_size), kernels(model)
        self.sites = count.sites
        self.layers = {layer.name: layer for layer in count.layers}
        self.positions = {layer.name: layer.macs // weights[layer.name] for layer in count.layers}

    def macs(self, model: GaterNet, fraction: float) -> tuple[float, float]:
        """Macs of a variant's backbone, with this fraction of the gates of each site open, and of its gater."""
        gated = {site.name for site in model.gate_sites}
        widths = [site.size * (fraction if site.name in gated else 1.0) for site in self.sites]
        parts = {"backbone": 0.0, "gater": 0.0}
        for name, weights in kernels(model).items():
            left = self.layers[name].left(widths) if name in self.layers else 1.0
            parts[name.partition(".")[0]] += weights * self.positions.get(name, 1) * left
        return parts["backbone"], parts["gater"]


def kernels(model: GaterNet) -> dict[str, int]:
    """Numbers of weights of all convolutions and linear layers, by their path in the model."""
    leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda node: isinstance(node, nnx.Variable))
    named = ((jax.tree_util.keystr(path, simple=True, separator="."), leaf.size) for path, leaf in leaves)
    return {name.removesuffix(".kernel"): size for name, size in named if name.endswith(".kernel")}


def describe(name: str, variants: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yields the rows of one model."""
    most = "all" if {*variants} & {*PLACEMENTS, "local"} else "plain"
    config, image_size = model_config(f"{name}-{most}")
    whole = abstract_model(config)
    traced = Traced(whole, image_size)
    for variant in variants:
        model = whole if variant == most else abstract_model(model_config(f"{name}-{variant}")[0])
        gates = sum(site.size for site in model.gate_sites)
        (dense, gater), (half, _) = traced.macs(model, 1.0), traced.macs(model, 0.5)
        yield (
            f"{name}-{variant}",
            f"{count_parameters(model.backbone):,}",
            f"{count_parameters(model.gater):,}" if model.gater else "-",
            f"{gates:,}" if gates else "-",
            millions(dense),
            millions(gater + dense),
            millions(gater + half) if gates else "-",
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
    names = tqdm(arguments.models.split(","), desc="Counting", disable=not sys.stderr.isatty())
    rows = [row for name in names for row in describe(name, arguments.variants.split(","))]
    widths = [max(len(row[i]) for row in [HEADER, *rows]) for i in range(len(HEADER))]
    for row in (HEADER, tuple("-" * width for width in widths), *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
