"""Time of a training step: backbone alone, gater alone, GaterNet; with PyTorch beside them if it is installed.

    python -m benchmarks.train_step [--backbone=resnet20] [--batch=128] [--rounds=9]

CIFAR shapes, float32. In each round every candidate runs once, in turn, so that a machine whose speed drifts slows
all of them; the table has medians, and ratios of the medians of one run.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gaternet_jax.config import default
from gaternet_jax.losses import make_gate_loss
from gaternet_jax.models.build import build_model
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.macs import MacCounter
from gaternet_jax.optimizer import make_optimizer
from gaternet_jax.parallel import make_mesh, replicated, split_by_batch
from gaternet_jax.state import init_state
from gaternet_jax.step import jit_step, make_train_step

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
    optimizer = make_optimizer(config.optimizer, lambda _: 0.1)
    model = build_model(config.model)
    gate_loss = make_gate_loss(config.loss, model.gate_sites, MacCounter(model, config.data.image_size))
    graphdef, params, stats = split_model(model)
    state = jax.device_put(init_state(params, stats, optimizer), replicated(mesh))
    data = jax.device_put(images(batch), split_by_batch(mesh))
    step, key = (
        jit_step(make_train_step(graphdef, optimizer, lambda _: 0.1, gate_loss, config), mesh),
        jax.random.key(0),
    )

    def run():
        nonlocal state
        state, metrics = step(state, data, key)
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
        "GaterNet, inference, batch 1": jax_inference(gated, 1),
        f"GaterNet, inference, batch {batch}": jax_inference(gated, batch),
    }
    candidates |= pytorch_candidates(depth, batch)
    result = medians(candidates, arguments.rounds)

    backbone, gater_time, whole, *_ = result.values()
    device = jax.devices()[0].device_kind
    print(
        f"\n{arguments.backbone}, {device} ({platform.machine()}), jax {jax.__version__}, {arguments.rounds} rounds\n"
    )
    print("| what | median ms |\n|---|---|")
    for name, milliseconds in result.items():
        print(f"| {name} | {milliseconds:.1f} |")
    print(f"\nGaterNet / (backbone + gater) = {whole / (backbone + gater_time):.3f}")
    for name, milliseconds in result.items():
        if name.startswith("PyTorch"):
            ours = result[name.replace("PyTorch", "GaterNet")]
            print(f"{name}: {milliseconds / ours:.2f} x the time of JAX")


if __name__ == "__main__":
    main()
