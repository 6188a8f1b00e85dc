"""Are outputs and a training step on the accelerator those of the CPU, and how far off are faster precisions?"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator.networks import config_of, random_images, training
from benchmarks.accelerator.results import Task
from gaternet_jax.config import RunConfig
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.errors import UserError
from gaternet_jax.models.functional import merge_model, split_model


def tasks(tiny: bool, data_dir: str) -> Iterator[Task]:
    """Yields the comparisons: in float32 at the highest and at the default precision, and in bfloat16."""
    del data_dir
    networks = {"resnet20": ("resnet20", "resnet20", 32, 0), "resnet50": ("resnet50", "resnet18", 224, 0)}
    if tiny:
        networks = {"resnet8": ("resnet8", "resnet8", 16, 4)}
    for name, (backbone, extractor, size, width) in networks.items():
        make = functools.partial(config_of, backbone, extractor, image_size=size, width=width)
        expected = functools.cache(functools.partial(_on_the_cpu, make(), 2 if tiny else 16))
        for label, precision, dtype in (
            ("float32, highest", "highest", "float32"),
            ("float32, default", "default", "float32"),
            ("bfloat16", "default", "bfloat16"),
        ):
            found = functools.partial(_outputs, make(dtype=dtype), precision, 2 if tiny else 16, jax.devices()[0])
            yield Task(f"{name}, {label}", functools.partial(_compare, found, expected))


def _compare(found_on_device: Callable[[], dict], expected_on_cpu: Callable[[], dict]) -> dict:
    found, expected = found_on_device(), expected_on_cpu()

    def relative(name: str) -> float:
        return abs(found[name] / expected[name] - 1)

    update = np.linalg.norm(expected["params"] - expected["before"])
    return {
        "logits_largest": float(np.abs(expected["logits"]).max()),
        "logits_difference": float(np.abs(found["logits"] - expected["logits"]).max()),
        "score_difference": float(np.abs(found["scores"] - expected["scores"]).max()),
        "gates": int(expected["gates"].size),
        "gates_that_differ": int((found["gates"] != expected["gates"]).sum()),
        "loss_relative_difference": relative("loss"),
        "gradient_norm_relative_difference": relative("norm"),
        "update_relative_difference": float(np.linalg.norm(found["params"] - expected["params"]) / update),
    }


def _on_the_cpu(config: RunConfig, images: int) -> dict:
    return _outputs(config, "highest", images, _cpu())


def _cpu() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(f"parity needs the CPU beside the accelerator; leave JAX_PLATFORMS unset ({error})") from None


def _outputs(config: RunConfig, precision: str, images: int, device: Any) -> dict:
    """Of a network that the CPU initialises: random numbers are not equal to the bit everywhere."""
    with jax.default_device(_cpu()):
        step, state, model = training(config)
    with jax.default_device(device), jax.default_matmul_precision(precision):
        state = jax.device_put(state, device)
        batch = random_images(images, config.data.image_size)
        before = _flat(state.params)
        model.eval()
        graphdef, _, _ = split_model(model)

        @jax.jit
        def forward(params, stats, pixels):
            return merge_model(graphdef, params, stats)(normalize(pixels, config.data))

        outputs = jax.device_get(forward(state.params, state.stats, batch["image"]))
        state, metrics = jax.jit(step)(state, batch, jax.random.key(0))
        return {
            "logits": np.float32(outputs.logits),
            "gates": outputs.gates,
            "scores": np.float32(outputs.gate_scores),
            "loss": float(metrics["loss"]),
            "norm": float(metrics["gradient_norm"]),
            "params": _flat(state.params),
            "before": before,
        }


def _flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)])
