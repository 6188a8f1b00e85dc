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
    """Describes neighbouring channels, of which there are those that `site` keeps; ALL or NONE of them."""

    site: int
    size: int
    copies: int = 1  # of each channel, side by side, where the axes behind were merged into this one

    @property
    def length(self) -> int:
        return self.size * self.copies

    def count(self, widths: Any) -> Any:
        """Counts the channels that are kept when site k keeps widths[k]."""
        return self.copies * (widths[self.site] if self.site >= 0 else self.size if self.site == ALL else 0)


class Channels(NamedTuple):
    """Describes the channels of one axis, run by run."""

    runs: tuple[Run, ...]

    @property
    def size(self) -> int:
        """Counts the channels that there would be were all kept."""
        return sum(run.length for run in self.runs)

    @property
    def sites(self) -> frozenset[int]:
        """Gives the numbers of the sites that decide."""
        return frozenset(run.site for run in self.runs if run.site >= 0)

    def count(self, widths: Any) -> Any:
        """Counts the channels that are kept when site k keeps widths[k]: numbers, or arrays of them."""
        return sum(run.count(widths) for run in self.runs)

    def is_complete(self, widths: Sequence[int]) -> bool:
        """Tells whether all channels are kept."""
        return self.count(widths) == self.size

    def indices(self, keep: Sequence[jax.Array], widths: Sequence[int]) -> jax.Array:
        """Gives the positions of the kept channels among all, int32 [count]."""
        kept: dict[Run, Any] = {}  # the positions within a run
        for run in dict.fromkeys(self.runs):
            kept[run] = np.arange(run.length if run.count(widths) else 0, dtype=np.int32)
            if run.site >= 0 and run.count(widths) < run.length:
                index = jnp.asarray(keep[run.site], jnp.int32)
                kept[run] = (
                    index if run.copies == 1 else jnp.add.outer(index * run.copies, np.arange(run.copies)).ravel()
                )
        starts = [
            np.full(len(kept[run]), start, np.int32) for run, start in zip(self.runs, self._edges(), strict=False)
        ]
        return jnp.concatenate([kept[run] for run in self.runs]) + np.concatenate(starts)

    def between(self, start: int, stop: int) -> "Channels | None":
        """Gives the channels of a slice; None where it cuts a site in two."""
        runs = []
        for run, position in zip(self.runs, self._edges(), strict=False):
            size = min(stop, position + run.length) - max(start, position)
            if run.site >= 0 and 0 < size < run.length:
                return None
            if size > 0:
                runs.append(run if size == run.length else Run(run.site, size))
        return join(runs)

    def within(self, before: int, after: int) -> "Channels":
        """Gives these channels as a part of a longer axis of which nothing else is wanted."""
        return join([Run(NONE, before), *self.runs, Run(NONE, after)])

    def union(self, other: "Channels") -> "Channels | None":
        """Gives the channels that are wanted by the one or the other; None where that is no sequence of runs."""
        if self.size != other.size:
            return None
        runs = []
        for edge in itertools.pairwise(sorted({*self._edges(), *other._edges()})):
            parts = [channels.between(*edge) for channels in (self, other)]
            either = {run for part in parts if part for run in part.runs if run.site != NONE}
            if None in parts or len(either) > 1:
                return None
            runs.append(either.pop() if either else Run(NONE, edge[1] - edge[0]))
        return join(runs)

    def _edges(self) -> list[int]:
        """Finds where runs begin and end."""
        return list(itertools.accumulate((run.length for run in self.runs), initial=0))


def join(runs: Iterable[Run]) -> Channels:
    """Makes channels of runs one behind the other; neighbouring runs of ALL or NONE become one."""
    joined: list[Run] = []
    for run in runs:
        if joined and run.site < 0 and run.site == joined[-1].site:
            joined[-1] = Run(run.site, joined[-1].length + run.length)
        elif run.size:
            joined.append(run if run.site >= 0 else Run(run.site, run.length))
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
