"""The authors' released checkpoints: names and shapes to ours.

The format: a PyTorch pickle {"backbone_state_dict": {...}, "gater_state_dict": {...}} of ResNet-Gated on CIFAR, keys
such as "module.stage2.block1.conv1.weight" (released code); or the same tensors as people save them again.
"""

import re
from typing import Any

import jax
import numpy as np
from flax import nnx

from gaternet_jax.config import ModelConfig
from gaternet_jax.errors import UserError
from gaternet_jax.models.build import build_model
from gaternet_jax.models.functional import Tree, split_model

# Ours -> theirs, where the paths differ by more than the leaf's name.
_MODULES = {
    "gater.extractor": "gater.resnet",
    "gater.head.bottleneck": "gater.resnet.newfc",
    "gater.head.scores": "gater.fnn.fc.0",
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module")  # keys that a state dict is under
_NETWORKS = {"backbone", "gater"}
_COUNTERS = ("num_batches_tracked", "n_averaged")  # of PyTorch; nothing here depends on them


def infer_model(tensors: dict[str, np.ndarray], config: ModelConfig) -> ModelConfig:
    """Fills in a `model` config from the shapes: depths, widths, bottleneck, classes.

    Args:
        tensors: from `flatten_released`.
        config: the `model` part of a run's config, changed in place.

    Raises:
        UserError: the tensors that tell these are missing.
    """
    try:
        config.num_classes, _ = tensors["backbone.fc.weight"].shape
        config.width, config.channels = tensors["backbone.conv.weight"].shape[:2]
        config.gater.width = tensors["gater.resnet.conv.weight"].shape[0]
        config.gater.bottleneck, _ = tensors["gater.resnet.newfc.weight"].shape
    except KeyError as error:
        raise UserError(f"not a released GaterNet checkpoint: {error} is missing") from None
    except ValueError:
        raise UserError("not a released GaterNet checkpoint: a weight has another number of dimensions") from None
    if config.channels != 3:
        raise UserError(
            f"a released GaterNet sees RGB images; this one's first convolution has {config.channels} channels"
        )
    config.backbone = f"resnet{_depth(tensors, 'backbone')}"
    config.gater.extractor = f"resnet{_depth(tensors, 'gater.resnet')}"
    config.gater.batch_norm = False
    config.gating = "last"
    return config


def _depth(tensors: dict[str, np.ndarray], prefix: str) -> int:
    """Gives 6n + 2, with n the highest block number of the first stage."""
    pattern = re.compile(re.escape(prefix) + r"\.stage1\.block(\d+)\.")
    blocks = [int(match[1]) for name in tensors if (match := pattern.match(name))]
    if not blocks:
        raise UserError(f"not a released GaterNet checkpoint: it has no {prefix}.stage1.block1")
    return 6 * max(blocks) + 2


def flatten_released(checkpoint: object) -> dict[str, np.ndarray]:
    """Gives {"backbone.stage1.block1.conv1.weight": array, ...} of a checkpoint's contents, float32.

    The contents: the authors' two state dicts, or one state dict of a module that has `backbone` and `gater`, as it is
    or within one of WRAPPERS. Prefixes of what PyTorch wraps a model in are dropped.

    Raises:
        UserError: contents of another kind, a value that is no tensor of finite floats, or two of one name.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, value in _find_state(checkpoint).items():
        if name.endswith(_COUNTERS):
            continue
        if (ours := _without_wrappers(name)) in tensors:
            raise UserError(f"not a released GaterNet checkpoint: it has two tensors {ours}, the second as {name}")
        tensors[ours] = _to_float32(ours, value)
    return tensors


def _find_state(contents: object, depth: int = 0) -> dict[str, object]:
    """Finds the state dict in what was saved, both networks in one."""
    networks = {"backbone": "backbone_state_dict", "gater": "gater_state_dict"}
    if not isinstance(contents, dict):
        raise UserError(
            f"not a released GaterNet checkpoint: expected the keys {sorted(networks.values())}, or names that begin "
            f"with backbone. and gater., found {type(contents).__name__}"
        )
    if set(networks.values()) <= contents.keys():
        state = {}
        for network, key in networks.items():
            if not isinstance(contents[key], dict):
                raise UserError(f"not a released GaterNet checkpoint: {key} is a {type(contents[key]).__name__}")
            state |= {f"{network}.{name}": value for name, value in contents[key].items()}
        return state
    names = [str(name) for name in contents]
    if any(_NETWORKS & set(name.split(".")) and "." in name for name in names):
        # Beside the tensors people keep an epoch, arguments, an optimizer's state.
        return {str(name): value for name, value in contents.items() if hasattr(value, "shape")}
    for key in WRAPPERS:
        if isinstance(contents.get(key), dict) and depth < 3:
            return _find_state(contents[key], depth + 1)
    raise UserError(
        f"not a released GaterNet checkpoint: expected the keys {sorted(networks.values())}, or names that begin with "
        f"backbone. and gater., found {sorted(names)[:5]}"
    )


def _without_wrappers(name: object) -> str:
    """Drops what DataParallel, torch.compile and outer modules put before a name."""
    parts = [part for part in str(name).split(".") if part not in ("module", "_orig_mod")]
    start = next((place for place, part in enumerate(parts) if part in _NETWORKS), 0)
    return ".".join(parts[start:])


def _to_float32(name: str, value: Any) -> np.ndarray:
    try:
        if hasattr(value, "detach"):  # a tensor or a parameter of PyTorch; NumPy has no bfloat16
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value
        array = np.asarray(value)
        if not jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
            raise TypeError(f"its type is {array.dtype}")
        array = array.astype(np.float32)
    except Exception as error:  # of sparse, quantised or packed tensors
        raise UserError(f"{name} is not a tensor of ordinary floats: {error}") from None
    if not np.isfinite(array).all():
        raise UserError(f"{name} has numbers that are NaN or infinite")
    return array


def convert_released(tensors: dict[str, np.ndarray], config: ModelConfig) -> tuple[Tree, Tree]:
    """Converts tensors to the parameters and BatchNorm statistics of the model that `config` describes.

    Args:
        tensors: from `flatten_released`.
        config: from `infer_model`.

    Raises:
        UserError: missing tensors, ones that the model does not have, or wrong shapes; all are named.
    """
    _, params, stats = split_model(nnx.eval_shape(lambda: build_model(config)))
    remaining, problems = dict(tensors), []

    def take(path, like):
        name = _released_name([entry.key for entry in path])
        if name not in remaining:
            problems.append(f"missing: {name} {_released_shape(like.shape)}")
            return None
        tensor = remaining.pop(name)
        if tensor.shape != _released_shape(like.shape):
            problems.append(f"wrong shape: {name} {tensor.shape}, expected {_released_shape(like.shape)}")
            return None
        return jax.numpy.asarray(np.transpose(tensor, (2, 3, 1, 0) if tensor.ndim == 4 else None), like.dtype)

    params = jax.tree_util.tree_map_with_path(take, params)
    stats = jax.tree_util.tree_map_with_path(take, stats)
    problems += [f"unknown: {name} {tensor.shape}" for name, tensor in remaining.items()]
    if problems:
        raise UserError(f"the checkpoint does not fit {config.backbone}-Gated:\n  " + "\n  ".join(problems))
    return params, stats


def _released_name(path: list[str]) -> str:
    *modules, leaf = path
    name = ".".join(modules)
    for ours, theirs in _MODULES.items():
        if name == ours or name.startswith(ours + "."):
            name = theirs + name.removeprefix(ours)
    return f"{name}.{_LEAVES[leaf]}"


def _released_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Transposes a shape: [kh, kw, in, out] -> [out, in, kh, kw]; [in, out] -> [out, in]."""
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]
