"""The one operation of gating, and where a function does it.

    maps = gate(maps, gates[:, 0:16], "stage1.conv")

A gate is multiplication; what sets it apart is that it can be seen in a traced program. It is a `jax.jit` of a telling
name, so that gradients, `vmap`, `jax.export` and everything else that knows `jit` knows gates. From where they stand
in the program follows which channels a closed gate makes superfluous (skip.py) and what that saves (macs.py).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_PREFIX = "gate"


class Site(NamedTuple):
    """Tells where the gates of one `gate` call stand.

    Attributes:
        name: as given to `gate`, or "gate3" for the fourth call that has none.
        offset: how many gates the sites before it have.
        size: how many it has: one per channel.
    """

    name: str
    offset: int
    size: int

    @property
    def gates(self) -> slice:
        """Where its gates stand among those of all sites, one behind the other."""
        return slice(self.offset, self.offset + self.size)


def gate(maps: jax.Array, gates: jax.Array, name: str | None = None) -> jax.Array:
    """Multiplies each channel by its gate: a gate of 0 replaces the channel by zeros (GaterNet eq. 5).

    Args:
        maps: [B, ..., C], channels last.
        gates: [B, C]; converted to the type of `maps`.
        name: of this place in the network, for reports.

    Returns:
        [B, ..., C], in the type of `maps`.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> gx.gate(jnp.ones((2, 4, 4, 3)), jnp.array([[1, 0, 1], [0, 0, 1]]))[1, 0, 0]
        Array([0., 0., 1.], dtype=float32)
    """
    maps, gates = jnp.asarray(maps), jnp.asarray(gates)
    where = "" if name is None else f" of '{name}'"
    if maps.ndim < 2:
        raise ValueError(f"the maps{where} must have the shape [batch, ..., channels]; got {list(maps.shape)}")
    wanted = (maps.shape[0], maps.shape[-1])
    if gates.shape != wanted:
        raise ValueError(
            f"maps {list(maps.shape)} need gates of shape {list(wanted)}, [batch, channels]; the gates{where} have "
            f"{list(gates.shape)}: pass the slice of the gate vector that belongs to these channels"
        )
    return _marker(maps.ndim, name)(maps, gates)


@functools.cache
def _marker(rank: int, name: str | None) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The jitted multiplication. Its name says the rank of the maps: `vmap`, which changes that, leaves the name."""

    def multiply(maps, gates):
        return maps * jax.lax.expand_dims(gates, range(1, rank - 1)).astype(maps.dtype)

    multiply.__name__ = multiply.__qualname__ = f"{_PREFIX}:{rank}:{name or ''}"
    return jax.jit(multiply)


def marked_name(equation: Any) -> str | None:
    """The name in a `gate` call of a jaxpr, "" if it was given none; None for other equations."""
    name = equation.params.get("name") if equation.primitive.name == "jit" else None
    if not isinstance(name, str) or not name.startswith(_PREFIX + ":") or name.count(":") < 2:
        return None
    return name.split(":", 2)[2]


def is_site(equation: Any) -> bool:
    """Whether an equation is a `gate` call as it was written: not one that `vmap` or a gradient has changed."""
    if marked_name(equation) is None or len(equation.invars) != 2 or len(equation.outvars) != 1:
        return False
    maps, gates = (variable.aval for variable in equation.invars)
    rank = int(equation.params["name"].split(":")[1])
    return maps.ndim == rank and gates.shape == (maps.shape[0], maps.shape[-1])
