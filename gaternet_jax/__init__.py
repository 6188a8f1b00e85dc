"""GaterNet in JAX/Flax: a global gater selects, per image, the filters of a CNN."""

from gaternet_jax.checkpoint import load_model
from gaternet_jax.models.build import build_model
from gaternet_jax.models.gaternet import GaterNet, Outputs
from gaternet_jax.models.gates import GateSite

__all__ = ["GateSite", "GaterNet", "Outputs", "build_model", "load_model"]
