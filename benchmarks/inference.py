"""Time of a gated model in every mode, beside its multiply-accumulates; PyTorch where installed.

    python -m benchmarks.inference --backbone=resnet56 --extractor=resnet20
    python -m benchmarks.inference --backbone=resnet50 --extractor=resnet18 --image_size=224 --rounds=5

Gates are engineered: a fraction of each convolution's filters is open. "compact" sees one pattern; "dynamic" has its
width profiles from other patterns; "specialists" see ten, as the paper observes them by class, each image with one of
them. All modes run in every round, and medians count. The baseline is the masked model as XLA compiles it, on the whole
batch; all else runs as `Predictor` runs it, in the engine that --engines names. The gater is included everywhere;
"gater" is it alone, which no mode leaves out.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaternet_jax.config import default
from gaternet_jax.inference.compaction import fix_gates
from gaternet_jax.inference.engines import ENGINES, choose_engine
from gaternet_jax.inference.modes import Modes
from gaternet_jax.inference.network import Network
from gaternet_jax.inference.predictor import Predictor
from gaternet_jax.models.build import build_model
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet, Outputs
from gaternet_jax.models.mac_counter import MacCounter

CLASSES = 10  # patterns of gates for specialists
SETTLE = 0.05  # seconds until the threads of another framework sleep
BURST = 0.03  # seconds of calls, one after the other, that are timed together; a longer one is timed alone
LONG = 0.5  # seconds; what takes longer is not run once before
Runs = dict[str, Callable[[np.ndarray], Any]]  # functions of normalised images [B, H, W, C]


def pattern(model: GaterNet, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """bool [G]: so many filters of each convolution, at random."""
    keep = np.zeros(sum(site.size for site in model.gate_sites), bool)
    for site in model.gate_sites:
        keep[site.offset + rng.permutation(site.size)[: round(fraction * site.size)]] = True
    return keep


def open_only(model: GaterNet, keep: np.ndarray) -> None:
    """Makes the gater open these filters for every image; not by weights of zero, which no mode would compute."""
    assert model.gater is not None
    scores: Any = model.gater.head.scores
    scores.kernel.set_value(jnp.full_like(scores.kernel.get_value(), 1e-9))
    scores.bias.set_value(jnp.where(jnp.asarray(keep), 9.0, -9.0))


def masked(model: GaterNet) -> Callable:
    """The model as XLA compiles it, on whole batches."""
    graphdef, params, stats = split_model(model)
    forward = jax.jit(lambda params, stats, images: merge_model(graphdef, params, stats)(images))
    return lambda images: jax.block_until_ready(forward(params, stats, images))


def pytorch(model: GaterNet) -> Runs:
    """The masked model in PyTorch; nothing where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    from benchmarks.pytorch_inference import MaskedGaterNet

    masked = MaskedGaterNet(model)

    def run(network):
        def infer(images):
            with torch.inference_mode():
                return network(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())

        return infer

    return {"PyTorch, masked": run(masked), "PyTorch, masked, compiled": run(torch.compile(masked, dynamic=False))}


def medians(runs: dict[Any, Callable], images: np.ndarray, rounds: int) -> dict[Any, float]:
    """Seconds of a call of each; all in every round, in random order, so that none always follows the same other one.
    Quick ones run once before, so that they do not meet another's caches, then for as long as `BURST`."""
    for run in runs.values():
        run(images)
    taken: dict[Any, list[float]] = {name: [] for name in runs}
    rng, names = np.random.default_rng(0), list(runs)
    for _ in range(rounds):
        for number in rng.permutation(len(names)):
            run = runs[name := names[number]]
            time.sleep(SETTLE)
            seconds = _seconds(run, images)
            taken[name].append(seconds if seconds > LONG else _seconds(run, images, int(BURST / seconds) + 1))
    return {name: float(np.median(times)) for name, times in taken.items()}


def _seconds(run: Callable, images: np.ndarray, calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run(images)
    return (time.perf_counter() - start) / calls


def modes(model: GaterNet, keep: np.ndarray, others: np.ndarray, images: np.ndarray, engine: str) -> Runs:
    """Every mode of `Predictor`, and the gater alone.

    Args:
        model: opens the filters `keep`, bool [G]; in compact mode no others are left, and these keep their gates.
        others: patterns of gates that are as open, float32 [CLASSES, G].
        images: a batch.
        engine: one of ENGINES.
    """
    batch_size, size = images.shape[:2]
    options: dict[str, Any] = dict(batch_sizes=(batch_size,), engine=engine)
    dense = Predictor(model, "dense", **options)
    ways = Modes(Network(model, size, engine), images)
    runs: Runs = {"gater": lambda images: ways.gates(images, batch_size), "dense": dense.__call__}
    closed = ~keep
    runs["compact"] = Predictor(fix_gates(model, closed, np.zeros_like(closed)), "dense", **options).__call__
    dynamic = ways.dynamic(others)
    runs["dynamic"] = lambda images: Outputs(*dynamic(images, batch_size))
    if batch_size > 1:
        specialists = Clustered(ways, others).specialists(others.repeat(20, 0))
        runs["specialists"] = lambda images: Outputs(*specialists(images, batch_size))
    return runs


class Clustered(Modes):
    """Modes whose gates are replaced, after the gater has run, by patterns of the images' classes.

    Args:
        modes: of the same network.
        patterns: float32 [CLASSES, G].
    """

    def __init__(self, modes: Modes, patterns: np.ndarray):
        super().__init__(modes.network, modes.example)
        self._patterns = patterns[np.arange(len(modes.example)) % CLASSES]

    def gates(self, images: Any, count: int) -> list[Any]:
        super().gates(images, count)
        return [self._patterns[:count], self._patterns[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet56")
    parser.add_argument("--extractor", default="resnet20")
    parser.add_argument("--image_size", type=int, default=32, help="pixels")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--open", type=float, nargs="+", default=[0.75, 0.5, 0.25], help="fractions of open gates")
    parser.add_argument("--engines", choices=ENGINES, nargs="+", default=[choose_engine("auto")])
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    config, size, rng = default().model, arguments.image_size, np.random.default_rng(0)
    config.backbone, config.gater.extractor, config.gating = arguments.backbone, arguments.extractor, "all"
    model = build_model(config)
    model.eval()
    macs = MacCounter(model, size)
    print("| batch | open | mode | ms | speed-up | MAC ratio | realised |\n|--|--|--|--|--|--|--|", flush=True)
    for batch_size in arguments.batch_sizes:
        images = rng.normal(size=(batch_size, size, size, 3)).astype(np.float32)
        peers = pytorch(model)  # their work does not depend on the gates
        for fraction in arguments.open:
            keep = pattern(model, fraction, rng)
            open_only(model, keep)
            others = np.stack([pattern(model, fraction, rng) for _ in range(CLASSES)]).astype(np.float32)
            runs: Runs = {"masked": masked(model)}
            for engine in arguments.engines:
                found = modes(model, keep, others, images, engine)
                runs |= {f"{name}, {engine}": run for name, run in found.items()}
            seconds = medians(runs | peers, images, arguments.rounds)
            ratio = (macs.gater + float(macs.count(jnp.asarray(keep[None]))[0])) / (macs.gater + macs.dense)
            for name, taken in seconds.items():
                relative = taken / seconds["masked"]
                saves = name.startswith(("compact", "dynamic", "specialists"))
                realised = f"{ratio:.2f} | {(1 - relative) / (1 - ratio):.0%}" if saves else " | "
                print(
                    f"| {batch_size} | {fraction:.0%} | {name} | {taken * 1e3:.2f} | {1 / relative:.2f} | {realised} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
