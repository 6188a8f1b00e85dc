"""Which channels of an array there are.

Channels are known in the program as runs: all channels of a stretch, none, or those of a site that are kept. How many
a site keeps (its width) is static; which, is an array that the compiled program is given.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ALL, NONE = -1, -2  # in place of a site's number


class Run(NamedTuple):
    """Describes `size` neighbouring channels, of which there are those that `site` keeps; ALL or NONE of them."""

    site: int
    size: int

    def count(self, widths: Any) -> Any:
        """Counts the channels that are kept when site k keeps widths[k]."""
        return widths[self.site] if self.site >= 0 else self.size if self.site == ALL else 0


class Channels(NamedTuple):
    """Describes the channels of one axis, run by run.

    Where axes were merged, (outer, channels, inner) are one axis: flattened maps [H * W * C] have outer = H * W.
    """

    runs: tuple[Run, ...]
    outer: int = 1
    inner: int = 1

    @property
    def size(self) -> int:
        """Counts the channels that there would be were all kept."""
        return self.outer * self.inner * sum(run.size for run in self.runs)

    @property
    def sites(self) -> frozenset[int]:
        """Gives the numbers of the sites that decide."""
        return frozenset(run.site for run in self.runs if run.site >= 0)

    def count(self, widths: Any) -> Any:
        """Counts the channels that are kept when site k keeps widths[k]: numbers, or arrays of them."""
        return self.outer * self.inner * sum(run.count(widths) for run in self.runs)

    def is_complete(self, widths: Sequence[int]) -> bool:
        """Tells whether all channels are kept."""
        return self.count(widths) == self.size

    def indices(self, keep: Sequence[jax.Array], widths: Sequence[int]) -> jax.Array:
        """Gives the positions of the kept channels among all, int32 [count]."""
        parts: list[Any] = [np.zeros(0, np.int32)]
        start = 0
        for run in self.runs:
            if run.count(widths) == run.size:
                parts.append(np.arange(start, start + run.size, dtype=np.int32))
            elif run.site >= 0:
                parts.append(start + jnp.asarray(keep[run.site], jnp.int32))
            start += run.size
        index = jnp.concatenate(parts)
        if self.outer == self.inner == 1:
            return index
        blocks, within = jnp.arange(self.outer, dtype=jnp.int32), jnp.arange(self.inner, dtype=jnp.int32)
        grid = (blocks[:, None, None] * start + index[None, :, None]) * self.inner + within[None, None, :]
        return grid.reshape(-1)

    def between(self, start: int, stop: int) -> "Channels | None":
        """Gives the channels of a slice; None where it cuts a site in two."""
        if self.outer != 1 or self.inner != 1:
            return None
        runs, position = [], 0
        for run in self.runs:
            size = min(stop, position + run.size) - max(start, position)
            if size > 0:
                if run.site >= 0 and size < run.size:
                    return None
                runs.append(Run(run.site, size))
            position += run.size
        return join(runs)

    def within(self, before: int, after: int) -> "Channels | None":
        """Gives these channels as a part of a longer axis of which nothing else is wanted."""
        if self.outer != 1 or self.inner != 1:
            return None
        return join([Run(NONE, before), *self.runs, Run(NONE, after)])

    def union(self, other: "Channels") -> "Channels | None":
        """Gives the channels that are wanted by the one or the other; None where that is no sequence of runs."""
        if self == other:
            return self
        if self.outer * self.inner * other.outer * other.inner != 1 or self.size != other.size:
            return None
        runs, edges = [], {edge for runs in (self.runs, other.runs) for edge in _edges(runs)}
        for edge in itertools.pairwise(sorted(edges)):
            parts = [channels.between(*edge) for channels in (self, other)]
            sites = {part.runs[0].site for part in parts if part}
            if None in parts or len(sites - {NONE}) > 1:
                return None
            runs.append(Run(max(sites), edge[1] - edge[0]))
        return join(runs)


def _edges(runs: Iterable[Run]) -> list[int]:
    """Finds where runs begin and end."""
    return list(itertools.accumulate((run.size for run in runs), initial=0))


def join(runs: Iterable[Run]) -> Channels:
    """Makes channels of runs one behind the other; neighbouring runs of ALL or NONE become one."""
    joined: list[Run] = []
    for run in runs:
        if joined and run.site < 0 and run.site == joined[-1].site:
            joined[-1] = Run(run.site, joined[-1].size + run.size)
        elif run.size:
            joined.append(run)
    return Channels(tuple(joined))


class Layout(NamedTuple):
    """Tells how an array is held of which only some channels, along an axis, are there.

    The absent ones are "zero", or "constant", one value for each channel that depends on parameters only; or nothing
    reads them.
    """

    axis: int
    channels: Channels
    absent: str = "unread"


def along(vector: Any, axis: int, rank: int) -> jax.Array:
    """Gives a vector [n] as an array of a rank that varies along one axis."""
    return jnp.reshape(vector, [-1 if place == axis else 1 for place in range(rank)])
