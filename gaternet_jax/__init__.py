"""GaterNet in JAX/Flax: a global gater selects, per image, the filters of a CNN."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gaternet_jax.checkpoint import load_model
    from gaternet_jax.models.build import build_model
    from gaternet_jax.models.gaternet import GaterNet, Outputs
    from gaternet_jax.models.gates import GateSite

__all__ = ["GateSite", "GaterNet", "Outputs", "build_model", "load_model"]

_MODULES = {
    "GateSite": "gaternet_jax.models.gates",
    "GaterNet": "gaternet_jax.models.gaternet",
    "Outputs": "gaternet_jax.models.gaternet",
    "build_model": "gaternet_jax.models.build",
    "load_model": "gaternet_jax.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: processes that only read images start without JAX."""
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)
