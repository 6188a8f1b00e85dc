"""How long a gated backbone takes with some of its filters, and the widths that are worth choosing."""

import dataclasses

import numpy as np

from gaternet_jax.inference.selection import round_up
from gaternet_jax.inference.tuning import ConvTimes, conv_shapes
from gaternet_jax.models.gaternet import GaterNet

SWEEPS = 2  # over all sites, each time choosing the best width given the others'


class BackboneTimes:
    """Adds up measured times of a backbone's convolutions, by the widths of its gated ones.

    Args:
        model: with gates.
        image_size: pixels.
        times: of convolutions.

    Attributes:
        part_size: images that run together.
    """

    def __init__(self, model: GaterNet, image_size: int, times: ConvTimes):
        self._times, self._sites = times, model.gate_sites
        prefix = "backbone."
        shapes = {
            name.removeprefix(prefix): shape
            for name, shape in conv_shapes(model, image_size).items()
            if name.startswith(prefix)
        }
        self._shapes = list(shapes.values())
        names = list(shapes)
        self._own = [next((i for i, site in enumerate(self._sites) if site.name == name), None) for name in names]
        self._inputs = [[i for i, site in enumerate(self._sites) if name in site.feeds] for name in names]
        # The convolutions whose time a site's width decides: its own, and those it feeds.
        self._of_site = [
            [conv for conv in range(len(names)) if self._own[conv] == i or i in self._inputs[conv]]
            for i in range(len(self._sites))
        ]
        self._sizes = np.array([site.size for site in self._sites])
        self.part_size = times.parts.size

    def seconds(self, widths: np.ndarray) -> float:
        """Of the convolutions of one image, with so many filters in each gated one, int [sites]."""
        return sum(self._seconds(conv, widths) for conv in range(len(self._shapes))) / self.part_size

    def _seconds(self, conv: int, widths: np.ndarray) -> float:
        shape, own, inputs = self._shapes[conv], self._own[conv], self._inputs[conv]
        absent = sum(self._sizes[i] - widths[i] for i in inputs)
        return self._times.seconds(
            dataclasses.replace(
                shape,
                in_channels=round_up(int(shape.in_channels - absent), shape.in_channels),
                out_channels=shape.out_channels if own is None else int(widths[own]),
                # Gated filters that feed no convolution are added into the stream.
                onto=0 if own is None or self._sites[own].feeds else shape.out_channels,
            )
        )

    def choose(self, needed: np.ndarray) -> np.ndarray:
        """Widths of at least `needed` filters, int [sites], that take the least time: rounded up, or whole."""
        widths = np.array([round_up(int(n), site.size) for n, site in zip(needed, self._sites, strict=True)])
        for _ in range(SWEEPS):
            for i, site in enumerate(self._sites):
                least = round_up(int(needed[i]), site.size)
                candidates = dict.fromkeys((least, round_up(least + 1, site.size), site.size))
                widths[i] = min(candidates, key=lambda width: self._local_seconds(i, width, widths))
        return widths

    def _local_seconds(self, site: int, width: int, widths: np.ndarray) -> float:
        changed = widths.copy()
        changed[site] = width
        return sum(self._seconds(conv, changed) for conv in self._of_site[site])


def fill(keep: np.ndarray, widths: np.ndarray, sites: tuple, open_rate: np.ndarray) -> np.ndarray:
    """Adds the filters that are open most often until each site has so many.

    Args:
        keep: bool [G].
        widths: int [sites].
        sites: of the model.
        open_rate: [G], breaks ties by order.
    """
    filled = keep.copy()
    for site, width in zip(sites, widths, strict=True):
        wanted = np.where(keep[site.gates], np.inf, open_rate[site.gates])
        filled[site.offset + np.argsort(-wanted, kind="stable")[: max(int(width), keep[site.gates].sum())]] = True
    return filled


def count_per_site(keep: np.ndarray, sites: tuple) -> np.ndarray:
    """Filters kept of each site, int [..., sites], of bool [..., G]."""
    return np.stack([keep[..., site.gates].sum(-1) for site in sites], -1)
