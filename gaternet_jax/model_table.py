"""A table of models: parameters, gates and multiply-accumulates (MACs), from shapes alone."""

from collections.abc import Collection, Iterator, Sequence

from gaternet_jax.config import ModelConfig, default
from gaternet_jax.models.build import abstract_model
from gaternet_jax.models.functional import parameters_of
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.mac_counter import trace_macs
from gaternet_jax.models.presets import DATASETS
from gaternet_jax.models.registry import family_of, is_backbone
from gaternet_jax.variants import PLACEMENTS, apply_variant

HEADER = (
    "model", "parameters", "gater", "gates", "MACs dense", "MACs, all open", "MACs, half open",
)  # fmt: skip


def model_config(variant: str) -> tuple[ModelConfig, int]:
    """Makes a config for a variant at the usual size of its images, and gives that size in pixels."""
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
        count, sizes = trace_macs(model, image_size), weights(model)
        self.sites = count.sites
        self.layers = {layer.name: layer for layer in count.layers}
        self.positions = {layer.name: layer.macs // sizes[f"{layer.name}.kernel"] for layer in count.layers}

    def macs(self, sizes: dict[str, int], gated: Collection[str], fraction: float) -> tuple[float, float]:
        """Counts the MACs of a variant's backbone, with some of the gates of each site open, and of its gater.

        Args:
            sizes: the variant's, from `weights`.
            gated: names of the sites that it has.
            fraction: of the gates of each of them that is open.
        """
        widths = [site.size * (fraction if site.name in gated else 1.0) for site in self.sites]
        parts = {"backbone": 0.0, "gater": 0.0}
        for path, size in sizes.items():
            name = path.removesuffix(".kernel")
            if name != path:
                left = self.layers[name].left(widths) if name in self.layers else 1.0
                parts[name.partition(".")[0]] += size * self.positions.get(name, 1) * left
        return parts["backbone"], parts["gater"]


def weights(model: GaterNet) -> dict[str, int]:
    """Gives the numbers of parameters of each kind and layer, by their paths in the model."""
    return {path: parameter.size for path, parameter in parameters_of(model).items()}


def describe(name: str, variants: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yields the rows of one model."""
    most = "all" if {*variants} & {*PLACEMENTS, "local"} else "plain"
    config, image_size = model_config(f"{name}-{most}")
    whole = abstract_model(config)
    traced = Traced(whole, image_size)
    for variant in variants:
        model = whole if variant == most else abstract_model(model_config(f"{name}-{variant}")[0])
        sizes, gated = weights(model), {site.name for site in model.gate_sites}
        gates, of_gater = sum(site.size for site in model.gate_sites), "gater."
        dense, gater = traced.macs(sizes, gated, 1.0)
        half, _ = traced.macs(sizes, gated, 0.5)
        yield (
            f"{name}-{variant}",
            f"{sum(size for path, size in sizes.items() if not path.startswith(of_gater)):,}",
            f"{sum(size for path, size in sizes.items() if path.startswith(of_gater)):,}" if model.gater else "-",
            f"{gates:,}" if gates else "-",
            millions(dense),
            millions(gater + dense),
            millions(gater + half) if gates else "-",
        )


def millions(macs: float) -> str:
    return f"{macs / 1e6:,.1f} M"
