"""Time from nothing to the first training step (build, trace, compile, run), or to the first answer of each mode.

    python -m benchmarks.compile_time [--models=resnet20,resnet56,resnet164]
    python -m benchmarks.compile_time --inference

Gated models on CIFAR shapes, float32; each in a fresh compilation (the compilation cache is off). Training: batch 128.
Inference: a `Predictor` for batches of 64, without measuring how to cut them; all modes but dense compute the gates of
64 calibration images first.
"""

import argparse
import itertools
import time

import jax
import numpy as np

from benchmarks.train_step import images
from gaternet_jax import Predictor
from gaternet_jax.config import default
from gaternet_jax.inference.engines import ENGINES, choose_engine
from gaternet_jax.inference.predictor import MODES
from gaternet_jax.models.build import build_model
from gaternet_jax.training.mesh import make_mesh, replicated, split_by_batch
from gaternet_jax.training.setup import make_training
from gaternet_jax.training.step import jit_step


def measure(name: str) -> dict[str, float]:
    """Seconds of each part, for a backbone."""
    marks = [time.perf_counter()]
    config, mesh = default(), make_mesh(jax.devices()[:1])
    config.model.backbone = name
    training = make_training(config, lambda _: 0.1)
    state = jax.device_put(training.state, replicated(mesh))
    batch, key = jax.device_put(images(128), split_by_batch(mesh)), jax.random.key(0)
    marks.append(time.perf_counter())
    lowered = jit_step(training.step, mesh).lower(state, batch, key)
    marks.append(time.perf_counter())
    step = lowered.compile()
    marks.append(time.perf_counter())
    jax.block_until_ready(step(state, batch, key))
    marks.append(time.perf_counter())
    parts = [after - before for before, after in itertools.pairwise(marks)]
    return dict(zip(("build", "trace", "compile", "first step"), parts, strict=True)) | {"all": marks[-1] - marks[0]}


def prepare(name: str, engine: str) -> dict[str, float]:
    """Seconds until each mode of a backbone has given its first answer."""
    config = default()
    config.model.backbone, config.model.gating = name, "all"
    model, taken = build_model(config.model), {}
    pixels = np.random.default_rng(0).normal(size=(64, 32, 32, 3)).astype(np.float32)
    for mode in MODES:
        if mode != "auto":
            jax.clear_caches()
            calibration = None if mode == "dense" else pixels
            start = time.perf_counter()
            predict = Predictor(model, mode, calibration, batch_sizes=(64,), tune=False, engine=engine)
            predict(pixels)
            taken[mode] = time.perf_counter() - start
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet20,resnet56,resnet164", help="comma-separated")
    parser.add_argument("--inference", action="store_true", help="the modes of inference, not the training step")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    names = arguments.models.split(",")
    if arguments.inference:
        engines = [engine for engine in ENGINES if engine in ("xla", choose_engine("auto"))]
        rows = {f"{name}, {engine}": prepare(name, engine) for name in names for engine in engines}
    else:
        rows = {name: measure(name) for name in names}
    columns = list(next(iter(rows.values())))
    print("| seconds | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for name, parts in rows.items():
        print(f"| {name} | " + " | ".join(f"{parts[column]:.1f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
