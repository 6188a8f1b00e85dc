"""Random numbers of layers that draw them as they run, e.g. `nnx.Dropout(0.2, rngs=options.rngs)`.

Flax's own streams keep a key and a count in variables, which would have to be saved and restored. These hold nothing:
a key is a function of the key that the model is called with, of the layer, and of how often it has drawn in this call.
The training step calls the model with a key that is folded from that of the run and the step.
"""

import contextlib
import contextvars
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from gaternet_jax.errors import UserError

AFTER_SPLIT = 4  # folded in; 0 to 3 are the keys that `GaterNet` splits off
_call: contextvars.ContextVar[tuple[jax.Array | None, Counter[int]]] = contextvars.ContextVar("call")


@contextlib.contextmanager
def layer_keys(key: jax.Array | None) -> Iterator[None]:
    """Lets layers draw from `key` in this context; from None they cannot."""
    token = _call.set((key, Counter()))
    try:
        yield
    finally:
        _call.reset(token)


class LayerStream(nnx.RngStream):
    """Gives the keys of one layer.

    Args:
        number: of the layer, in the order of building.
        tag: what Flax calls the stream.
    """

    def __init__(self, number: int, tag: str):  # without a key and a count: those are variables
        self.number, self.tag = number, tag

    def __call__(self) -> jax.Array:
        """Gives the next key.

        Raises:
            UserError: the model was called without a key, or the layer runs outside of the model.
        """
        key, draws = _call.get((None, Counter()))
        if key is None:
            raise UserError("in training mode a layer draws random numbers: pass key=..., or call model.eval() first")
        draws[self.number] += 1
        for number in (AFTER_SPLIT, self.number, draws[self.number]):
            key = jax.random.fold_in(key, number)
        return key


class LayerStreams(nnx.Rngs):
    """Gives every layer that asks for random numbers a stream of its own; a base of what stands in for `nnx.Rngs`."""

    _layers = 0

    def __init__(self):  # without streams of Flax's own
        pass

    def __getitem__(self, name: str) -> Any:
        return _Fork(self, name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]


class _Fork:
    def __init__(self, streams: LayerStreams, name: str):
        self._streams, self._name = streams, name

    def fork(self) -> LayerStream:
        self._streams._layers += 1
        return LayerStream(self._streams._layers, self._name)
