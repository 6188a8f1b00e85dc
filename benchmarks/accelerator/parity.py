"""Are outputs and a training step on the accelerator those of the CPU, and how far off are faster precisions?"""

from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.accelerator.networks import config_of, random_images, training
from benchmarks.accelerator.results import Task
from gaternet_jax.config import Config
from gaternet_jax.data.augment import normalize
from gaternet_jax.errors import UserError
from gaternet_jax.models.functional import merge_model, split_model


def tasks(tiny: bool, data_dir: str) -> Iterator[Task]:
    """Yields the comparisons: in float32 at the highest and at the default precision, and in bfloat16."""
    del data_dir
    networks = {"resnet20": ("resnet20", "resnet20", 32, 0), "resnet50": ("resnet50", "resnet18", 224, 0)}
    if tiny:
        networks = {"resnet8": ("resnet8", "resnet8", 16, 4)}
    for name, (backbone, extractor, size, width) in networks.items():
        for label, precision, dtype in (
            ("float32, highest", "highest", "float32"),
            ("float32, default", "default", "float32"),
            ("bfloat16", "default", "bfloat16"),
        ):
            config = config_of(backbone, extractor, image_size=size, dtype=dtype, width=width)
            images = 2 if tiny else 16

            def run(config=config, precision=precision, images=images) -> dict:
                return compare(config, precision, images)

            yield Task(f"{name}, {label}", run)


def compare(config: Config, precision: str, images: int) -> dict:
    """Differences between the default device and the CPU, which computes in float32 at the highest precision."""
    reference = config.copy_and_resolve_references()
    reference.model.dtype = "float32"
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(f"parity needs the CPU beside the accelerator; leave JAX_PLATFORMS unset ({error})") from None
    expected = _outputs(reference, "highest", images, cpu, cpu)
    found = _outputs(config, precision, images, jax.devices()[0], cpu)
    return {
        "logits_largest": float(np.abs(expected["logits"]).max()),
        "logits_difference": float(np.abs(found["logits"] - expected["logits"]).max()),
        "score_difference": float(np.abs(found["scores"] - expected["scores"]).max()),
        "gates": int(expected["gates"].size),
        "gates_that_differ": int((found["gates"] != expected["gates"]).sum()),
        "loss_relative_difference": float(abs(found["loss"] / expected["loss"] - 1)),
        "gradient_norm_relative_difference": float(abs(found["norm"] / expected["norm"] - 1)),
        "update_relative_difference": float(
            np.linalg.norm(found["params"] - expected["params"])
            / np.linalg.norm(expected["params"] - expected["before"])
        ),
    }


def _outputs(config: Config, precision: str, images: int, device: jax.Device, cpu: jax.Device) -> dict:
    """Of a network that the CPU initialises: random numbers are not equal to the bit everywhere."""
    with jax.default_device(cpu):
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
