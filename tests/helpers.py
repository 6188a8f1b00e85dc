"""Small configs, a model of random weights, and made-up observations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.analysis.observe import Observations
from gaternet_jax.config import default
from gaternet_jax.configs.digits import get_config
from gaternet_jax.gating import GateSite
from gaternet_jax.models.backbone import BackboneOptions
from gaternet_jax.models.build import abstract_model
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.training.checkpoint import Checkpoints
from gaternet_jax.workdir import save_config

SMALL = {  # a shrunken member of each family: name, width
    "basic": ("resnet8", 4),
    "bottleneck": ("resnet11_bottleneck", 4),
    "imagenet": ("resnet18", 4),
    "densenet": ("densenet10", 4),
    "shake": ("shake26_2x4d", 0),
    "paper": ("resnet11_paper", 16),  # hidden maps have a fourth of it
    "inception": ("inceptionv4_1_1_1", 4),
}


def image_size(family, usual=16):
    """A size, pixels, that the shrunken member of a family can take."""
    return 75 if family == "inception" else usual


def digits_config(**overrides):
    """The digits card, shrunk so that a run takes seconds; overrides like {"train.epochs": 2.0}."""
    config = get_config()
    small = {
        "model.width": 8,
        "model.gater.width": 8,
        "train.epochs": 1.0,
        "train.eval_every_epochs": 1.0,
        "optimizer.warmup_epochs": 0.1,
        "optimizer.learning_rate": 0.2,
        "train.log_every_steps": 5,
        "train.eval_batch_size": 128,
    }
    config.update_from_flattened_dict(small | overrides)
    return config


def model_config(**overrides):
    """The `model` part of a config: a small gated ResNet for 3-channel images; of DenseNets, all layers are gated.

    Before training about half of the gates are open.
    """
    config = default().model
    small = {"backbone": "resnet8", "width": 4, "gater.extractor": "resnet8", "gater.width": 4, "dense_ungated": "none"}
    config.update_from_flattened_dict(small | {"gater.initial_bias": 0.0} | overrides)
    return config


def small_config(family, **overrides):
    """The `model` part of a config of the shrunken member of a family."""
    backbone, width = SMALL[family]
    return model_config(backbone=backbone, width=width, **overrides)


def backbone_options(**changes):
    """Options as a family's builder gets them: no gates, usual choices, parameters to be drawn."""
    usual = dict(
        channels=3, num_classes=10, width=None, gating="none", local_bottleneck=0, local_bias=0.0, dense_ungated="last",
        se_ratio=0, zero_init_residual=False, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0),
    )  # fmt: skip
    return BackboneOptions(**(usual | changes))


def random_model(config, seed=0):
    """A model in evaluation mode, of the `model` part of a config, with parameters and statistics from NumPy.

    Initialising parameters as for training compiles for ten seconds.
    """
    model = abstract_model(config)
    model.eval()
    graphdef, params, stats = split_model(model)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        if path[-1].key in ("var", "scale"):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            values = rng.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 4))
        return jnp.asarray(values, leaf.dtype)

    return merge_model(graphdef, *jax.tree_util.tree_map_with_path(fill, (params, stats)))


def run_model(model, images):
    """What the model itself, masked, gives for normalised images."""
    graphdef, *arrays = split_model(model)
    return jax.device_get(jax.jit(lambda arrays, images: merge_model(graphdef, *arrays)(images))(arrays, images))


def random_observations(seed, images=40, classes=3, widths=(5, 8, 6), unknown=0):
    """Made-up observations: gates of all three kinds; the class of the first `unknown` images is not known."""
    random = np.random.default_rng(seed)
    names = [f"stage{i // 2 + 1}.block{i % 2 + 1}.conv2" for i in range(len(widths))]
    labels = random.integers(0, classes, images).astype(np.int32)
    rates = random.uniform(-0.3, 1.3, (classes, sum(widths)))
    gates = random.random((images, sum(widths))) < rates[labels]
    gates[:, 0], gates[:, -1] = False, True
    predictions = np.where(random.random(images) < 0.7, labels, (labels + 1) % classes).astype(np.int32)
    labels[:unknown] = -1
    return Observations(
        gates=gates,
        labels=labels,
        predictions=predictions,
        confidences=random.uniform(0.3, 1, images).astype(np.float32),
        macs=random.uniform(0.4, 0.6, images).astype(np.float32),
        sites=tuple(map(GateSite, names, itertools.accumulate(widths, initial=0), widths)),
        class_names=tuple(f"class {i}" for i in range(classes)),
    )


def save_random_model(workdir, change=lambda model: None, label="{}", **overrides):
    """Saves a digits model with random weights, changed, as a conversion would; gives its config."""
    config = digits_config(**{"train.eval_batch_size": 16} | overrides)
    model = random_model(config.model)
    change(model)
    save_config(config, [label.format(i) for i in range(10)], workdir)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save_model(*split_model(model)[1:])
    return config


def prefer_two(model):
    """Raises the third logit above all others."""
    model.backbone.fc.bias.set_value(model.backbone.fc.bias.get_value().at[2].add(50.0))
