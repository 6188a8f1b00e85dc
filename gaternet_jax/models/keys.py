"""Keys of the initial parameters."""

from typing import Any

import jax


class InitKeys:
    """A stand-in for `nnx.Rngs` while a model is built, with the same keys.

    It counts in Python. `nnx.Rngs` counts in an array, which under a trace (`nnx.eval_shape`) makes building a
    network quadratic in its depth: 1.1 s instead of 0.2 s for ResNet-110.

    Args:
        seed: of the initial parameters.
    """

    def __init__(self, seed: int):
        self._key, self._count = jax.random.key(seed), 0

    def params(self) -> jax.Array:
        """The next key."""
        key = jax.random.fold_in(self._key, self._count)
        self._count += 1
        return key


def init_keys(seed: int) -> Any:
    """Typed as whatever a Flax layer wants for `rngs`."""
    return InitKeys(seed)
