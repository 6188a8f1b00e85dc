"""Time of a gated model in every mode, beside its multiply-accumulates.

    python -m benchmarks.inference --backbone=resnet56 --extractor=resnet20

Gates are engineered: a fraction of each convolution's filters is open. "compact" and "dynamic" see one pattern;
"specialists" see ten, as the paper observes them by class, each image with one of them. All modes run in turn, and
medians count. The baseline is the masked model as XLA compiles it; gater included on both sides.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaternet_jax.config import default
from gaternet_jax.inference.dynamic import make_dynamic
from gaternet_jax.inference.narrow import narrow_model
from gaternet_jax.inference.predictor import MEASURED_PIXELS
from gaternet_jax.inference.selection import everything, select
from gaternet_jax.inference.specialists import Specialists, plan_specialists
from gaternet_jax.inference.tuning import ConvTimes, pack
from gaternet_jax.inference.widths import BackboneTimes
from gaternet_jax.models.build import build_model
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.macs import MacCounter

CLASSES = 10  # patterns of gates for specialists


def pattern(model: GaterNet, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """bool [G]: so many filters of each convolution, at random."""
    keep = np.zeros(sum(site.size for site in model.gate_sites), bool)
    for site in model.gate_sites:
        keep[site.offset + rng.permutation(site.size)[: round(fraction * site.size)]] = True
    return keep


def open_only(model: GaterNet, keep: np.ndarray) -> None:
    """Makes the gater open these filters for every image."""
    assert model.gater is not None
    scores: Any = model.gater.head.scores
    scores.kernel.set_value(jnp.zeros_like(scores.kernel.get_value()))
    scores.bias.set_value(jnp.where(jnp.asarray(keep), 9.0, -9.0))


def compiled(model: GaterNet) -> Callable:
    """A function of images."""
    graphdef, params, stats = split_model(model)
    forward = jax.jit(lambda params, stats, images: merge_model(graphdef, params, stats)(images))
    return lambda images: jax.block_until_ready(forward(params, stats, images))


def medians(runs: dict[str, Callable], images: np.ndarray, rounds: int) -> dict[str, float]:
    """Seconds of each, all in turn."""
    for run in runs.values():
        run(images)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(images)
            taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in taken.items()}


def clustered(model: GaterNet, patterns: np.ndarray, plan, image_size: int, times: ConvTimes) -> Callable:
    """Specialists whose gater is replaced, after it has run, by patterns of the images' classes."""
    specialists = Specialists(model, plan, image_size, times)
    gater = specialists.gater

    def gater_then_patterns(images):
        jax.block_until_ready(gater(images))
        gates = patterns[np.arange(len(images)) % CLASSES].astype(np.float32)
        return gates, gates

    specialists.gater = gater_then_patterns
    return specialists


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet56")
    parser.add_argument("--extractor", default="resnet20")
    parser.add_argument("--image_size", type=int, default=32, help="pixels")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--open", type=float, nargs="+", default=[0.75, 0.5, 0.25], help="fractions of open gates")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    config, size, rng = default().model, arguments.image_size, np.random.default_rng(0)
    config.backbone, config.gater.extractor, config.gating = arguments.backbone, arguments.extractor, "all"
    model = build_model(config)
    model.eval()
    sites, dense_macs = model.gate_sites, MacCounter(model, size)
    print("| batch | open | mode | ms | speed-up | MAC ratio | realised |\n|--|--|--|--|--|--|--|", flush=True)
    for batch_size in arguments.batch_sizes:
        images = rng.normal(size=(batch_size, size, size, 3)).astype(np.float32)
        times = ConvTimes(max(min(batch_size, MEASURED_PIXELS // size**2), 1))
        for fraction in arguments.open:
            keep = pattern(model, fraction, rng)
            open_only(model, keep)
            narrow = pack(narrow_model(model, select(sites, keep, np.ones_like(keep))), size, times)
            runs: dict[str, Callable] = {
                "masked": compiled(model),
                "dense": compiled(pack(narrow_model(model, everything(sites)), size, times)),
                "compact": compiled(narrow),
            }
            if batch_size == 1:
                runs["dynamic"] = compiled(make_dynamic(model, size, times))
            else:
                patterns = np.stack([pattern(model, fraction, rng) for _ in range(CLASSES)])
                plan = plan_specialists(patterns.repeat(20, 0), sites, BackboneTimes(model, size, times), batch_size)
                runs["specialists"] = clustered(model, patterns, plan, size, times)
            seconds, narrow_macs = medians(runs, images, arguments.rounds), MacCounter(narrow, size)
            ratio = (narrow_macs.gater + narrow_macs.dense) / (dense_macs.gater + dense_macs.dense)
            for name, taken in seconds.items():
                relative = taken / seconds["masked"]
                realised = (
                    f"{ratio:.2f} | {(1 - relative) / (1 - ratio):.0%}" if name not in ("masked", "dense") else " | "
                )
                print(
                    f"| {batch_size} | {fraction:.0%} | {name} | {taken * 1e3:.2f} | {1 / relative:.2f} | {realised} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
