"""The one operation of gating, and where a function does it.

    maps = gate(maps, gates[:, 0:16], "stage1.conv")

It is a multiplication in a `jax.jit` of a telling name: it can be seen in a traced program, and gradients, `vmap` and
everything else that knows `jit` knows gates.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gaternet_jax.errors import UserError

_MARK = re.compile(r"gate:(\d+):(.*)", re.DOTALL)


class GateSite(NamedTuple):
    """Tells where the gates of one `gate` call stand: filter i of `name` is multiplied by gate `offset + i`.

    Attributes:
        name: as given to `gate`, or "gate3" for the fourth call that has none; in this package's networks the path of
            the gated convolution, e.g. "stage2.block1.conv2".
        offset: index of its first gate among those of all sites, one behind the other.
        size: number of its gates: one per channel.

    Example:
        >>> gx.GateSite("stage1.block1.conv2", offset=16, size=16).gates
        slice(16, 32, None)
    """

    name: str
    offset: int
    size: int

    @property
    def gates(self) -> slice:
        """Says where its gates stand in the gate vector."""
        return slice(self.offset, self.offset + self.size)

    @property
    def unit(self) -> str:
        """Names its block, or itself: "stage2.block1" of "stage2.block1.conv2" and of "stage2.block1.branch1.conv2"."""
        return ".".join(self.name.split(".")[:-1][:2]) or self.name

    @property
    def stage(self) -> str:
        """Names its stage: "stage2" of "stage2.block1.conv2", "block1" of "block1_layer3.conv1"."""
        return self.name.split(".")[0].split("_")[0]


def gate(maps: jax.Array, gates: jax.Array, name: str | None = None) -> jax.Array:
    """Multiplies each channel by its gate: a gate of 0 replaces the channel by zeros (GaterNet eq. 5).

    Args:
        maps: [B, ..., C], channels last; the result has this shape and type.
        gates: [B, C]; converted to the type of `maps`. UserError: they do not fit.
        name: of this place in the network, for reports.

    Example:
        >>> gx.gate(jnp.ones((2, 4, 4, 3)), jnp.array([[1, 0, 1], [0, 0, 1]]))[1, 0, 0]
        Array([0., 0., 1.], dtype=float32)
    """
    maps, gates = jnp.asarray(maps), jnp.asarray(gates)
    where = "" if name is None else f" of '{name}'"
    if maps.ndim < 2:
        raise UserError(f"the maps{where} must have the shape [batch, ..., channels]; got {list(maps.shape)}")
    wanted = (maps.shape[0], maps.shape[-1])
    if gates.shape != wanted:
        raise UserError(
            f"maps {list(maps.shape)}, channels last, need gates of shape {list(wanted)}, [batch, channels]; the "
            f"gates{where} have {list(gates.shape)}: pass the slice of the gate vector that belongs to these channels"
        )
    return _marker(maps.ndim, name)(maps, gates)


@functools.cache
def _marker(rank: int, name: str | None) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Jits the multiplication. Its name says the rank of the maps: `vmap`, which changes that, leaves the name."""

    def multiply(maps, gates):
        gates = jax.lax.convert_element_type(jax.lax.expand_dims(gates, range(1, rank - 1)), maps.dtype)
        return jax.lax.mul(maps, gates)  # as `*`, without the call that this is in a jaxpr

    multiply.__name__ = multiply.__qualname__ = f"gate:{rank}:{name or ''}"
    return jax.jit(multiply)


def marked(equation: Any) -> tuple[str, bool] | None:
    """Tells the name of a `gate` call in a jaxpr, "" if it was given none, and whether it still is as it was written;
    `vmap` and gradients change that. None for other equations."""
    name = equation.params["name"] if equation.primitive.name == "jit" else ""
    if (match := _MARK.fullmatch(name)) is None:
        return None
    maps, *gates = (variable.aval.shape for variable in equation.invars)
    is_as_written = len(maps) == int(match[1]) and gates == [(maps[0], maps[-1])] and len(equation.outvars) == 1
    return match[2], is_as_written
