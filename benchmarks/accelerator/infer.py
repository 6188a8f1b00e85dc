"""Time of inference in every mode, for networks whose gates are engineered, beside PyTorch on the same card."""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator.networks import config_of
from benchmarks.accelerator.results import Task, seconds_per_call
from benchmarks.inference import open_only, pattern
from benchmarks.mode_programs import programs
from gaternet_jax.config import RunConfig
from gaternet_jax.inference.engines import XLA
from gaternet_jax.models.build import build_model

OPEN = (0.5, 0.25, 0.75)  # fractions of open gates, the one that tells most first


def tasks(tiny: bool, data_dir: str) -> Iterator[Task]:
    """Yields the measurements: a network, a batch size and a fraction of open gates each."""
    del data_dir
    if tiny:
        config = config_of("resnet8", "resnet8", image_size=16, gating="all", width=4)
        yield Task("tiny", functools.partial(measure, config, 2, 0.5, 0.02))
        return
    resnet56 = config_of("resnet56", "resnet20", image_size=32, gating="all")
    resnet50 = config_of("resnet50", "resnet18", image_size=224, gating="all")
    for fraction in OPEN:
        for name, config, batches in (("resnet56", resnet56, (64, 1, 1024)), ("resnet50", resnet50, (64, 1, 256))):
            for batch in batches:
                run = functools.partial(measure, config, batch, fraction, 0.5)
                yield Task(f"{name}, batch {batch}, {fraction:.0%} open", run, 90)


def measure(config: RunConfig, batch: int, fraction: float, budget: float) -> dict[str, Any]:
    """Measures milliseconds of a batch by each of `programs`, images on the device, and how far its logits are off.

    Those that take gates run after the gater, whose time is part of theirs.

    Args:
        config: of the network.
        batch: images.
        fraction: of the filters of each convolution that is open.
        budget: seconds for each program.
    """
    model, random = build_model(config.model), np.random.default_rng(0)
    model.eval()
    keep = pattern(model, fraction, random)
    open_only(model, keep)
    size = config.data.image_size
    images, rows = jax.device_put(random.normal(size=(batch, size, size, 3)).astype(np.float32)), np.arange(batch)
    made = {name: (program, takes_gates) for name, program, takes_gates in programs(model, keep, size)}
    gater, _ = made.pop("gater")
    result: dict[str, Any] = {}
    expected = np.zeros(())
    for name, (program, takes_gates) in made.items():

        def run(program: XLA = program, takes_gates: bool = takes_gates) -> Any:
            return program(rows, images, *(gater(rows, images)[:1] if takes_gates else ()))

        try:
            seconds = seconds_per_call(run, jax.block_until_ready, budget=budget)
            logits = np.asarray(run()[0])
        except Exception as error:  # one program that a device does not run leaves the others to be measured
            result[f"{name}, error"] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
            continue
        if name == "masked":
            expected, result["largest_logit"] = logits, float(np.abs(logits).max())
        result[f"{name}, ms"] = round(1e3 * seconds, 3)
        result[f"{name}, difference"] = float(np.abs(logits - expected).max())
    for name, (run, wait) in _pytorch(model, np.array(images)).items():
        result[f"{name}, ms"] = round(1e3 * seconds_per_call(run, wait, budget=budget), 3)
    return result


def _pytorch(model: Any, images: np.ndarray) -> dict[str, tuple[Callable, Callable]]:
    """The masked model in PyTorch, channels last; nothing where it is not installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    from benchmarks.pytorch_inference import MaskedGaterNet

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    network: Any = MaskedGaterNet(model)
    network = network.to(device, memory_format=torch.channels_last)
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def run(network: Callable) -> Any:
        with torch.inference_mode():
            return network(pixels)

    def wait(_: Any) -> None:
        if cuda:
            torch.cuda.synchronize()

    runs = {"PyTorch eager": (functools.partial(run, network), wait)}
    if cuda:
        runs["PyTorch compiled"] = (functools.partial(run, torch.compile(network, dynamic=False)), wait)
    return runs
