"""Images a second of training: GaterNet, its backbone alone, its gater alone, and PyTorch on the same card."""

import functools
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator.networks import config_of, gater_alone, random_images, replicated_copy, training
from benchmarks.accelerator.results import Task, seconds_per_call
from gaternet_jax.config import RunConfig
from gaternet_jax.data.batches import steps_per_epoch
from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.data.memory import DeviceSplit
from gaternet_jax.data.splits import open_split
from gaternet_jax.errors import UserError
from gaternet_jax.training.dispatch import StepLoop, stack_batches
from gaternet_jax.training.mesh import (
    device_memory,
    make_mesh,
    replicate,
    split_second_axis,
    stop_flags,
    this_process,
    to_devices,
)

CIFAR, IMAGENET = (32, 50_000), (224, 4_096)  # pixels; images on the device
BATCHES = (128, 512, 1024)
SMALL, LARGEST = 32, 512  # batches of ImageNet's size: what memory is counted at, and more than which tells no more
FITS = 0.8  # of the memory that a program may use


def tasks(tiny: bool, data_dir: str) -> Iterator[Task]:
    """Yields the measurements; those that answer most come first."""
    if tiny:
        config = config_of("resnet8", "resnet8", image_size=16, width=4)
        yield Task("tiny", functools.partial(cifar, config, 8, (1, 2), 16, 64, 0.05))
        yield Task("tiny PyTorch", functools.partial(pytorch, config, 8, "float32", compiled=False, budget=0.05))
        yield Task("tiny loader", functools.partial(loader, config, 8, "digits", data_dir, steps=2))
        return
    networks = [("resnet20", "resnet20"), ("resnet56", "resnet20")]
    modes = [(False, "float32"), (True, "float32"), (False, "bfloat16"), (True, "bfloat16")]
    for batch in BATCHES:
        for dtype in ("float32", "bfloat16"):
            for backbone, extractor in networks:
                whole = config_of(backbone, extractor, image_size=CIFAR[0], dtype=dtype)
                plain = config_of(backbone, extractor, image_size=CIFAR[0], dtype=dtype, gating="none")
                parts = {"gated": whole, "backbone alone": plain}
                if extractor != backbone:  # else the gater alone is the backbone alone
                    parts["gater alone"] = gater_alone(whole)
                for part, config in parts.items():
                    run = functools.partial(cifar, config, batch, (1, 10, 0), *CIFAR, 2.0)
                    yield Task(f"{backbone} {part}, batch {batch}, {dtype}", run)
                for compiled, precision in modes:
                    if precision == dtype:
                        run = functools.partial(pytorch, whole, batch, precision, compiled=compiled, budget=2.0)
                        name = f"PyTorch {'compiled' if compiled else 'eager'} {backbone}, batch {batch}, {precision}"
                        yield Task(name, run)
        if batch == BATCHES[0]:
            yield from large(data_dir)


def large(data_dir: str) -> Iterator[Task]:
    """Yields ResNet-50 at 224 x 224 pixels in bfloat16, at the largest batch that fits."""
    whole = config_of("resnet50", "resnet18", image_size=IMAGENET[0], dtype="bfloat16")
    plain = config_of("resnet50", "resnet18", image_size=IMAGENET[0], dtype="bfloat16", gating="none")
    largest: dict[str, int] = {}

    def measure(config: RunConfig) -> dict:
        if not largest:
            largest["batch"] = largest_batch(whole)
        return cifar(config, largest["batch"], (1, 10), IMAGENET[0], 2 * largest["batch"], 5.0)

    def peer(compiled: bool) -> dict:
        return pytorch(whole, largest.get("batch", 128), "bfloat16", compiled=compiled, budget=5.0)

    yield Task("resnet50 gated, bfloat16", functools.partial(measure, whole), 150)
    yield Task("PyTorch compiled resnet50, bfloat16", functools.partial(peer, True), 120)
    yield Task("PyTorch eager resnet50, bfloat16", functools.partial(peer, False))
    yield Task("resnet50 backbone alone, bfloat16", functools.partial(measure, plain), 90)
    yield Task("resnet50 gater alone, bfloat16", functools.partial(measure, gater_alone(whole)), 90)
    yield Task("resnet50 gated, loader", functools.partial(loader, whole, 128, "imagenet2012", data_dir, steps=40), 90)


def cifar(
    config: RunConfig, batch: int, steps: tuple[int, ...], image_size: int, images: int, budget: float
) -> dict[str, Any]:
    """Images a second of the training loop with images on the device, for numbers of steps in a dispatch.

    Args:
        config: of the network.
        batch: images a step.
        steps: numbers of steps in a dispatch; 0: an epoch.
        image_size: pixels.
        images: on the device.
        budget: seconds for each number.
    """
    mesh = make_mesh(jax.devices()[:1])
    made = random_images(images, image_size)
    split = DeviceSplit("made up", made["image"], made["label"], np.ones(images, bool), this_process())
    epoch = steps_per_epoch(images, batch)
    steps = tuple(min(count or epoch, epoch) for count in steps)
    step, state, _ = training(config)
    state, key = replicated_copy(state, mesh), jax.random.key(0)
    loop = StepLoop(step, mesh, max(steps), replicate(split.resident, mesh))
    go_on, _ = stop_flags(mesh)
    stacked = stack_batches(split.train_batches(batch, 0, 0), itertools.repeat(max(steps)), max(steps))
    feed = next(to_devices(stacked, split_second_axis(mesh), ahead=0))
    start = time.perf_counter()
    loop.compile(state, feed, go_on, key)
    result: dict[str, Any] = {"batch": batch, "compile_seconds": round(time.perf_counter() - start, 1)}

    def run(count: int):
        nonlocal state
        state, metrics = loop(state, feed, go_on, count, key)
        return metrics

    for count in dict.fromkeys(steps):
        seconds = seconds_per_call(functools.partial(run, count), jax.block_until_ready, budget=budget)
        result[f"images_per_second, {count} steps a dispatch"] = round(count * batch / seconds, 1)
    return result


def largest_batch(config: RunConfig) -> int:
    """Finds the largest batch, a power of two, whose training step fits, by the compiler's count for a small one.

    Raises:
        UserError: the small one does not fit.
    """
    mesh = make_mesh(jax.devices()[:1])
    limit = FITS * device_memory(mesh) or float("inf")
    step, state, _ = training(config)
    made = jax.eval_shape(lambda: random_images(SMALL, config.data.image_size))
    memory: Any = jax.jit(step, donate_argnums=0).lower(state, made, jax.random.key(0)).compile().memory_analysis()
    batch = SMALL
    while batch < LARGEST and memory.argument_size_in_bytes + 2 * batch / SMALL * memory.temp_size_in_bytes <= limit:
        batch *= 2
    if memory.argument_size_in_bytes + memory.temp_size_in_bytes > limit:
        raise UserError(f"not even a batch of {SMALL} fits into the device's memory")
    return batch


def pytorch(config: RunConfig, batch: int, dtype: str, *, compiled: bool, budget: float) -> dict[str, Any]:
    """Images a second of the same network in plain PyTorch: channels last, autocast, images on the device already.

    Raises:
        UserError: PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed")
    import torch

    from benchmarks.pytorch_inference import MaskedGaterNet

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.backends.cudnn.benchmark = True
    _, _, model = training(config)
    network: Any = MaskedGaterNet(model).train()
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    made = random_images(batch, config.data.image_size)
    pixels = torch.from_numpy(made["image"]).to(device).permute(0, 3, 1, 2).float() / 255 - 0.5
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(made["label"]).long().to(device)

    def forward():
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits, gates = network.with_gates(pixels)
            return torch.nn.functional.cross_entropy(logits.float(), labels) + 0.1 * gates.mean()

    loss_of: Callable = torch.compile(forward) if compiled else forward

    def run():
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()

    start = time.perf_counter()
    run()
    wait = (lambda _: torch.cuda.synchronize()) if cuda else (lambda _: None)
    wait(None)
    result: dict[str, Any] = {"batch": batch, "first_step_seconds": round(time.perf_counter() - start, 1)}
    seconds = seconds_per_call(run, wait, budget=budget)
    return result | {"images_per_second": round(batch / seconds, 1)}


def loader(config: RunConfig, batch: int, name: str, data_dir: str, *, steps: int) -> dict[str, Any]:
    """Images a second of the stream from files alone, and of training from it."""
    config = config.copy_and_resolve_references()
    config.data.pipeline, config.train.batch_size = "stream", batch
    mesh = make_mesh(jax.devices()[:1])
    split = open_split(find_dataset(name, data_dir), "train", config, this_process())
    batch = min(batch, split.num_images)
    batches = stack_batches(split.train_batches(batch, 0, 0), itertools.repeat(1), 1)
    next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    alone = steps * batch / (time.perf_counter() - start)
    step, state, _ = training(config)
    state, key, (go_on, _) = replicated_copy(state, mesh), jax.random.key(0), stop_flags(mesh)
    loop, metrics = StepLoop(step, mesh, 1), None
    feeds = to_devices(batches, split_second_axis(mesh))
    for _ in range(3):
        state, metrics = loop(state, next(feeds), go_on, 1, key)
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = loop(state, next(feeds), go_on, 1, key)
    jax.block_until_ready(metrics)
    trained = steps * batch / (time.perf_counter() - start)
    return {"batch": batch, "images_per_second, loader": round(alone, 1), "images_per_second, training": round(trained)}
