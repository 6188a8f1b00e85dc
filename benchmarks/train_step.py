"""Time of a training step: backbone alone, gater alone, GaterNet; with PyTorch beside them if it is installed.

    python -m benchmarks.train_step [--backbone=resnet20] [--batch=128] [--rounds=9]

CIFAR shapes, float32. In each round every candidate runs once, in turn, so that a machine whose speed drifts slows
all of them; the table has medians, and ratios of the medians of one run.
"""

import argparse
import itertools
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.accelerator.networks import replicated_copy, training
from gaternet_jax.config import default
from gaternet_jax.data.memory import DeviceSplit
from gaternet_jax.models.build import build_model
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.training.dispatch import StepLoop, stack_batches
from gaternet_jax.training.mesh import (
    make_mesh,
    replicate,
    split_by_batch,
    split_second_axis,
    stop_flags,
    this_process,
    to_devices,
)
from gaternet_jax.training.step import jit_step

STEPS = 4  # in one dispatch
Candidates = dict[str, Callable[[], object]]


def images(batch: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (batch, 32, 32, 3), np.uint8),
        "label": random.integers(0, 10, batch).astype(np.int32),
    }


def jax_training(config, batch: int) -> Callable[[], object]:
    """A whole training step of the model that `config` describes, augmentation included."""
    mesh = make_mesh(jax.devices()[:1])
    train_step, state, _ = training(config)
    state = replicated_copy(state, mesh)
    data = jax.device_put(images(batch), split_by_batch(mesh))
    step, key = jit_step(train_step, mesh), jax.random.key(0)

    def run():
        nonlocal state
        state, metrics = step(state, data, key)
        jax.block_until_ready(metrics)

    return run


def jax_dispatch(config, batch: int, steps: int) -> Callable[[], object]:
    """So many training steps in one dispatch, with the images on the device."""
    mesh = make_mesh(jax.devices()[:1])
    made = images(steps * batch)
    split = DeviceSplit("made up", made["image"], made["label"], np.ones(steps * batch, bool), this_process())
    train_step, state, _ = training(config)
    state, key, (go_on, _) = replicated_copy(state, mesh), jax.random.key(0), stop_flags(mesh)
    loop = StepLoop(train_step, mesh, steps, replicate(split.resident, mesh))
    stacked = stack_batches(split.train_batches(batch, 0, 0), itertools.repeat(steps), steps)
    feeds = to_devices(stacked, split_second_axis(mesh))

    def run():
        nonlocal state
        state, metrics = loop(state, next(feeds), go_on, steps, key)
        jax.block_until_ready(metrics)

    return run


def jax_inference(config, batch: int) -> Callable[[], object]:
    model = build_model(config.model)
    model.eval()
    graphdef, params, stats = split_model(model)
    forward = jax.jit(lambda params, stats, x: merge_model(graphdef, params, stats)(x).logits)
    data = jnp.zeros((batch, 32, 32, 3))
    return lambda: jax.block_until_ready(forward(params, stats, data))


def pytorch_candidates(depth: int, batch: int) -> Candidates:
    """The same GaterNet in PyTorch (eager); empty where PyTorch is not installed."""
    try:
        import torch

        from benchmarks.pytorch_gaternet import GaterNet
    except ImportError:
        return {}
    model = GaterNet(depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    labels = torch.randint(0, 10, (batch,))

    def train():
        model.train()
        logits, gates, _ = model(torch.zeros(batch, 3, 32, 32))
        loss = torch.nn.functional.cross_entropy(logits, labels) + 0.1 * gates.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def infer(size):
        model.eval()
        with torch.inference_mode():
            return model(torch.zeros(size, 3, 32, 32))

    return {
        f"PyTorch, train, batch {batch}": train,
        "PyTorch, inference, batch 1": lambda: infer(1),
        f"PyTorch, inference, batch {batch}": lambda: infer(batch),
    }


def medians(candidates: Candidates, rounds: int) -> dict[str, float]:
    """Median milliseconds of each candidate; all run in turn, after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in tqdm(range(rounds + 2), desc="Rounds"):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    batch, depth = arguments.batch, int(arguments.backbone.removeprefix("resnet"))

    gated, plain, gater = default(), default(), default()
    gated.model.backbone = plain.model.backbone = arguments.backbone
    plain.model.gating = gater.model.gating = "none"
    gater.model.backbone = gated.model.gater.extractor
    # The gater alone is its extractor with an output layer of as many units as the bottleneck has.
    gater.model.num_classes = 10
    candidates: Candidates = {
        f"backbone alone, train, batch {batch}": jax_training(plain, batch),
        f"gater alone, train, batch {batch}": jax_training(gater, batch),
        f"GaterNet, train, batch {batch}": jax_training(gated, batch),
        f"GaterNet, train, {STEPS} steps a dispatch, batch {batch}": jax_dispatch(gated, batch, STEPS),
        "GaterNet, inference, batch 1": jax_inference(gated, 1),
        f"GaterNet, inference, batch {batch}": jax_inference(gated, batch),
    }
    candidates |= pytorch_candidates(depth, batch)
    result = medians(candidates, arguments.rounds)

    dispatch = next(name for name in result if f"{STEPS} steps" in name)
    result[dispatch] /= STEPS
    backbone, gater_time, whole, *_ = result.values()
    device = jax.devices()[0].device_kind
    print(
        f"\n{arguments.backbone}, {device} ({platform.machine()}), jax {jax.__version__}, {arguments.rounds} rounds\n"
    )
    print("| what | median ms |\n|---|---|")
    for name, milliseconds in result.items():
        print(f"| {name} | {milliseconds:.1f} |")
    print(f"\nGaterNet / (backbone + gater) = {whole / (backbone + gater_time):.3f}")
    print(f"a step of {STEPS} in a dispatch / a step alone = {result[dispatch] / whole:.3f}")
    for name, milliseconds in result.items():
        if name.startswith("PyTorch"):
            ours = result[name.replace("PyTorch", "GaterNet")]
            print(f"{name}: {milliseconds / ours:.2f} x the time of JAX")


if __name__ == "__main__":
    main()
