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

        def kept(run: Run) -> Any:  # the positions within it
            if run.site < 0 or run.count(widths) == run.length:
                return np.arange(run.count(widths), dtype=np.int32)
            index = jnp.asarray(keep[run.site], jnp.int32)
            return index if run.copies == 1 else jnp.add.outer(index * run.copies, np.arange(run.copies)).ravel()

        within = {run: kept(run) for run in dict.fromkeys(self.runs)}
        starts = np.repeat(self._edges()[:-1], [run.count(widths) for run in self.runs])
        return jnp.concatenate([within[run] for run in self.runs]) + starts.astype(np.int32)

    def window(self, start: int, size: int) -> "Channels | None":
        """Gives `size` channels from `start` on, NONE where there are none; None where an edge cuts a site in two."""
        runs = [Run(NONE, max(-start, 0))]
        for run, position in zip(self.runs, self._edges(), strict=False):
            inside = min(start + size, position + run.length) - max(start, position)
            if run.site >= 0 and 0 < inside < run.length:
                return None
            if inside > 0:
                runs.append(run if inside == run.length else Run(run.site, inside))
        return join([*runs, Run(NONE, max(start + size - max(start, self.size), 0))])

    def find(self, part: "Channels | None", widths: Sequence[int]) -> int | None:
        """Finds where among the kept channels those of a part begin, of which neighbours are neighbours here, too."""
        if part is None or not part.sites:
            return None
        start, stop = (run.size if run.site == NONE else 0 for run in (part.runs[0], part.runs[-1]))
        size = part.size - start - stop
        if self.window(start, size) != part.window(start, size) or (before := self.window(0, start)) is None:
            return None
        return before.count(widths)

    def union(self, other: "Channels") -> "Channels | None":
        """Gives the channels that are wanted by the one or the other; None where that is no sequence of runs."""
        if self.size != other.size:
            return None
        runs = []
        for edge in itertools.pairwise(sorted({*self._edges(), *other._edges()})):
            parts = [channels.window(edge[0], edge[1] - edge[0]) for channels in (self, other)]
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

    The absent ones are "zero", or "constant", what depends on parameters only; or nothing reads them.
    """

    axis: int
    channels: Channels
    absent: str = "unread"


def along(vector: Any, axis: int, rank: int) -> jax.Array:
    """Gives a vector [n] as an array of a rank that varies along one axis."""
    return jnp.reshape(vector, [-1 if place == axis else 1 for place in range(rank)])
