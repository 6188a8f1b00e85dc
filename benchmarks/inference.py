"""Time of a gated model in every mode, beside its multiply-accumulates; PyTorch and ONNX Runtime where installed.

    python -m benchmarks.inference --backbone=resnet56 --extractor=resnet20
    python -m benchmarks.inference --backbone=resnet50 --extractor=resnet18 --image_size=224 --rounds=5

Gates are engineered: a fraction of each convolution's filters is open. "compact" and "dynamic" see one pattern;
"specialists" see ten, as the paper observes them by class, each image with one of them. All modes run in every
round, and medians count. The baseline is the masked model as XLA compiles it, on the whole batch; all else runs it in
parts, as `Predictor` does. The gater is included everywhere; "gater" is it alone, which no mode leaves out.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaternet_jax.config import default
from gaternet_jax.inference.dynamic import make_dynamic
from gaternet_jax.inference.narrow import narrow_model
from gaternet_jax.inference.onnx import export_onnx
from gaternet_jax.inference.parts import Parts, PartsRunner, choose_parts
from gaternet_jax.inference.predictor import compiled
from gaternet_jax.inference.selection import everything, select
from gaternet_jax.inference.specialists import Specialists, plan_specialists
from gaternet_jax.inference.tuning import ConvTimes, choose_algorithms
from gaternet_jax.inference.widths import BackboneTimes, count_per_site, fill
from gaternet_jax.models.build import build_model
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.macs import MacCounter

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
    """Makes the gater open these filters for every image."""
    assert model.gater is not None
    scores: Any = model.gater.head.scores
    scores.kernel.set_value(jnp.zeros_like(scores.kernel.get_value()))
    scores.bias.set_value(jnp.where(jnp.asarray(keep), 9.0, -9.0))


def masked(model: GaterNet) -> Callable:
    """The model as XLA compiles it, on whole batches."""
    graphdef, params, stats = split_model(model)
    forward = jax.jit(lambda params, stats, images: merge_model(graphdef, params, stats)(images))
    return lambda images: jax.block_until_ready(forward(params, stats, images))


def in_parts(model: GaterNet, parts: Parts) -> Callable:
    """As `Predictor` runs a model."""
    engine = compiled(model, parts)
    return lambda images: engine(images, len(images))


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


def onnx(name: str, model: GaterNet, image_size: int) -> Runs:
    """The model in ONNX Runtime, preprocessing of uint8 images included; nothing where it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("jax2onnx") is None:
        return {}
    import onnxruntime

    config, classes = default(), model.backbone.fc.out_features if model.backbone.fc else 0
    config.data.image_size = image_size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, config, [str(label) for label in range(classes)], path)
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return {f"ONNX Runtime, {name}": lambda images: session.run(None, {"images": images.astype(np.uint8)})}


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


def clustered(model: GaterNet, patterns: np.ndarray, image_size: int, batch_size: int) -> Callable:
    """Specialists whose gater is replaced, after it has run, by patterns of the images' classes."""
    runner = PartsRunner(choose_parts(batch_size, image_size))
    times = ConvTimes(runner.parts)
    backbone_times = BackboneTimes(model, image_size, times)
    plan = plan_specialists(patterns.repeat(20, 0), model.gate_sites, backbone_times, batch_size)
    specialists = Specialists(model, plan, image_size, runner, times)
    gater = specialists.gater

    def gater_then_patterns(images, chosen):
        jax.block_until_ready(gater(images, chosen))
        gates = patterns[chosen % CLASSES].astype(np.float32)
        return gates, gates

    specialists.gater = gater_then_patterns
    return lambda images: specialists(jax.device_put(images), len(images))


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
        parts, single = choose_parts(batch_size, size), choose_parts(batch_size, size, one_by_one=True)
        times, single_times = ConvTimes(parts), ConvTimes(single)
        backbone_times, whole = BackboneTimes(model, size, times), narrow_model(model, everything(sites))
        peers = pytorch(model) | onnx("dense", whole, size)  # their work does not depend on the gates
        for fraction in arguments.open:
            keep = pattern(model, fraction, rng)
            open_only(model, keep)
            kept = fill(keep, backbone_times.choose(count_per_site(keep, sites)), sites, keep)
            narrow = narrow_model(model, select(sites, kept, np.ones_like(keep)))
            peers |= onnx("compact", narrow, size)
            dense: Any = choose_algorithms(narrow_model(model, everything(sites)), size, times)
            runs: Runs = {
                "masked": masked(model),
                "gater": in_parts(dense.gater, parts),
                "dense": in_parts(dense, parts),
                "compact": in_parts(choose_algorithms(narrow, size, times), parts),
                "dynamic": in_parts(make_dynamic(model, size, single_times), single),
            }
            if batch_size > 1:
                patterns = np.stack([pattern(model, fraction, rng) for _ in range(CLASSES)])
                runs["specialists"] = clustered(model, patterns, size, batch_size)
            runs |= peers
            seconds = medians(runs, images, arguments.rounds)
            narrow_macs = MacCounter(narrow_model(model, select(sites, keep, np.ones_like(keep))), size)
            ratio = (narrow_macs.gater + narrow_macs.dense) / (dense_macs.gater + dense_macs.dense)
            for name, taken in seconds.items():
                relative = taken / seconds["masked"]
                saves = name in ("compact", "dynamic", "specialists")
                realised = f"{ratio:.2f} | {(1 - relative) / (1 - ratio):.0%}" if saves else " | "
                print(
                    f"| {batch_size} | {fraction:.0%} | {name} | {taken * 1e3:.2f} | {1 / relative:.2f} | {realised} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
