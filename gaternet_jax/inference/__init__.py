"""Gates that save time: compaction, specialists, per-image execution, and a Predictor over all of them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gaternet_jax.inference.predictor import Predictor

__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    """Imports `Predictor` on first use."""
    if name != "Predictor":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return importlib.import_module("gaternet_jax.inference.predictor").Predictor
