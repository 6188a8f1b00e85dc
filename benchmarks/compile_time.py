"""Time from nothing to the first training step: build, trace, compile, run.

    python -m benchmarks.compile_time [--models=resnet20,resnet56,resnet164]

Gated models on CIFAR shapes, batch 128, float32; each in a fresh compilation (the compilation cache is off).
"""

import argparse
import itertools
import time

import jax

from benchmarks.train_step import images
from gaternet_jax.config import default
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet20,resnet56,resnet164", help="comma-separated")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    rows = {name: measure(name) for name in arguments.models.split(",")}
    columns = list(next(iter(rows.values())))
    print("| seconds | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for name, parts in rows.items():
        print(f"| {name} gated | " + " | ".join(f"{parts[column]:.1f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
