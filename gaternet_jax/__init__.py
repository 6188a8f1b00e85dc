"""GaterNet in JAX/Flax: a global gater selects, per image, the filters of a CNN."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gaternet_jax.errors import UserError
    from gaternet_jax.gating import GateSite, count_macs, find_sites, gate, losses, skip_closed
    from gaternet_jax.gating.gater import Gater
    from gaternet_jax.gating.semhash import sem_hash
    from gaternet_jax.inference.onnx_writer import write_onnx as write_onnx
    from gaternet_jax.inference.predictor import Predictor
    from gaternet_jax.models.build import build_model
    from gaternet_jax.models.gaternet import GaterNet, Outputs
    from gaternet_jax.models.presets import create_model, list_models
    from gaternet_jax.run import Run, load_run
    from gaternet_jax.training.checkpoint import load_model

    __version__: str

__all__ = [  # without write_onnx, which needs the package onnx
    "GateSite",
    "Gater",
    "GaterNet",
    "Outputs",
    "Predictor",
    "Run",
    "UserError",
    "__version__",
    "build_model",
    "count_macs",
    "create_model",
    "find_sites",
    "gate",
    "list_models",
    "load_model",
    "load_run",
    "losses",
    "sem_hash",
    "skip_closed",
]

_MODULES = {
    "GateSite": "gaternet_jax.gating",
    "Gater": "gaternet_jax.gating.gater",
    "GaterNet": "gaternet_jax.models.gaternet",
    "Outputs": "gaternet_jax.models.gaternet",
    "Predictor": "gaternet_jax.inference.predictor",
    "Run": "gaternet_jax.run",
    "UserError": "gaternet_jax.errors",
    "build_model": "gaternet_jax.models.build",
    "count_macs": "gaternet_jax.gating",
    "create_model": "gaternet_jax.models.presets",
    "find_sites": "gaternet_jax.gating",
    "gate": "gaternet_jax.gating",
    "list_models": "gaternet_jax.models.presets",
    "load_model": "gaternet_jax.training.checkpoint",
    "load_run": "gaternet_jax.run",
    "losses": "gaternet_jax.gating",
    "sem_hash": "gaternet_jax.gating.semhash",
    "skip_closed": "gaternet_jax.gating",
    "write_onnx": "gaternet_jax.inference.onnx_writer",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: processes that only read images start without JAX."""
    if name == "__version__":
        return importlib.metadata.version("gaternet-jax")
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, "__version__"})
