"""A model as programs without closed filters, for the engine that runs them: what all modes are made of.

    whole      images -> logits, gates, gate scores                     "dense" and "compact"
    gater      images -> gates, gate scores      and, for some of the filters of each site,
    backbone   images, gates -> logits                                  "specialists"
    profile    the same; which filters, the program sees from the gates     "dynamic"

Filters whose gates are fixed (compaction.py) are left out, or lose their gates, everywhere.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaternet_jax.errors import check_choice
from gaternet_jax.gating import GateSite, Prepared, SkipClosed, skip_closed
from gaternet_jax.gating.semhash import binary_gates
from gaternet_jax.inference.compaction import fixed_gates
from gaternet_jax.inference.engines import ENGINES, XLA, Engine, Function, OnnxRuntime, by_rows
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet

FEW = 2  # images that are traced where their number does not matter
OUTPUTS = {"whole": ("logits", "gates", "gate_scores"), "gater": ("gates", "gate_scores"), "backbone": ("logits",)}


class Network:
    """Makes programs of a model for images of one size.

    Args:
        model: in evaluation mode; it is not changed, and must not change.
        image_size: pixels.
        engine: one of `engines.ENGINES`.
        batch: how many images are traced; a symbolic size for a program of any number of them, which a network may
            trace to other operations. None: what suits the engine.
    """

    def __init__(self, model: GaterNet, image_size: int, engine: str, batch: Any = None):
        check_choice("engine", engine, ENGINES)
        if batch is None and engine != "xla":
            from gaternet_jax.inference.onnx_graph import BATCH as batch  # so that nothing is traced twice
        self.model, self.engine = model, engine
        self._arrays = split_model(model)[1:]
        self._closed, self._opened = fixed_gates(model)
        self._functions = functions_of(model, bool((self._closed | self._opened).all()))
        batch = FEW if batch is None else batch
        image_shape = batch, image_size, image_size, model.backbone.channels
        images = {"images": jax.ShapeDtypeStruct(image_shape, jnp.float32)}
        gates = {"gates": jax.ShapeDtypeStruct((batch, len(self._closed)), jnp.float32)}
        self._inputs = {"whole": images, "gater": images, "backbone": images | gates}
        self.program, self.profile = functools.cache(self._trace), functools.cache(self._profile)
        self._by_rows = functools.cache(lambda kind: by_rows(self.program(kind)))
        self.layers = functools.cache(lambda kind: self.program(kind).explain().layers)

    def make(self, kind: str, keep: np.ndarray | None = None, threads: int = 1) -> Engine:
        """Makes the engine that runs a kind of program, "whole", "gater" or "backbone", by some threads.

        `keep` is for the backbone: filters that are computed, bool [G], which all open ones must be among; None: all.
        """
        prepared, program = self.prepare(kind, keep), self.program(kind)
        if self.engine == "xla":
            return XLA(self._by_rows(kind), prepared)
        from gaternet_jax.inference.onnx_writer import write_onnx

        serialized = write_onnx(lambda *arrays: program(prepared, *arrays), self._inputs[kind], OUTPUTS[kind])
        return OnnxRuntime(serialized, threads)

    def prepare(self, kind: str, keep: np.ndarray | None = None) -> Prepared:
        """Computes what a program needs with some filters; see `make`."""
        program = self.program(kind)
        keep = ~self._closed if keep is None else keep & ~self._closed
        kept, opened = {}, []
        for site in self.model.gate_sites if program.sites else ():
            filters = np.flatnonzero(keep[site.gates])
            kept[site.name] = filters if len(filters) else np.array([0])  # at least one
            if self._opened[site.gates][kept[site.name]].all():
                opened.append(site.name)
        return program.prepare(self._arrays, [kept[site.name] for site in program.sites], opened)

    def work(self, widths: Sequence[float]) -> float:
        """Gives the multiply-accumulates of the backbone with so many filters of each site, relative to all."""
        by_name = dict(zip((site.name for site in self.model.gate_sites), widths, strict=True))
        widths, layers = [by_name[site.name] for site in self.program("backbone").sites], self.layers("backbone")
        return sum(layer.macs * layer.left(widths) for layer in layers) / sum(layer.macs for layer in layers)

    def _trace(self, kind: str) -> SkipClosed:
        return skip_closed(self._functions[kind], self._arrays, *self._inputs[kind].values())

    @functools.cached_property
    def _folded(self) -> tuple[Prepared, SkipClosed]:
        """Folds BatchNorm into the backbone's whole kernels, once, not for each image again; gives its program, too."""
        program = self.program("backbone")
        prepared = program.prepare(self._arrays)
        return prepared, skip_closed(program.__call__, prepared, *self._inputs["backbone"].values())

    def _profile(self, widths: tuple[int, ...]) -> Engine:
        """Makes the engine that runs the backbone by the filters that are open for any image: widths[k] of site k."""
        (prepared, program), sites = self._folded, self.model.gate_sites

        def run(prepared: Prepared, images: jax.Array, gates: jax.Array) -> Any:
            keep = first_open((gates > 0).any(0), sites, widths)
            return program(program.prepare(prepared, [keep[site.name] for site in program.sites]), images, gates)

        return XLA(by_rows(run), prepared)


def functions_of(model: GaterNet, decided: bool) -> dict[str, Function]:
    """Gives a model's functions of (arrays, images) or (arrays, images, gates); arrays: parameters and statistics.

    decided: all gates are the same for every image, so that the gater has nothing to do.
    """
    graphdef, *_ = split_model(model)

    def merged(arrays: Any) -> Any:
        merged: Any = merge_model(graphdef, *arrays)
        if merged.gater is not None and decided:
            bias = merged.gater.head.scores.bias.get_value()
            merged.gater = lambda images, key=None: jnp.broadcast_to(bias, (images.shape[0], bias.size))
        return merged

    def gater(arrays: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = merged(arrays).gater(images)
        return binary_gates(scores), scores

    def backbone(arrays: Any, images: jax.Array, gates: jax.Array) -> tuple[jax.Array]:
        return (merged(arrays).backbone(images, gates),)

    return {"whole": lambda arrays, images: merged(arrays)(images), "gater": gater, "backbone": backbone}


def first_open(opened: jax.Array, sites: Sequence[GateSite], widths: Sequence[int]) -> dict[str, jax.Array]:
    """Finds the first filters of each site, int32 [width], by its name, when those that are open, bool [G], come first.

    Counts by a product and scatters, for all sites of a size at once: on CPUs a sort took up to ten times as long, and
    a small network is bound by the number of its operations.
    """
    found = {}
    for size in {site.size for site in sites}:
        alike = [(number, site) for number, site in enumerate(sites) if site.size == size]
        table = opened[np.add.outer([site.offset for _, site in alike], np.arange(size))]  # [sites, filters]
        count, index = table.sum(1, dtype=jnp.int32)[:, None], jnp.arange(size)[None]
        before = (table.astype(jnp.float32) @ jnp.triu(jnp.ones((size, size)), 1)).astype(jnp.int32)  # open ones
        places, rows = jnp.where(table, before, count + index - before), jnp.arange(len(alike))[:, None]
        order = jnp.zeros(table.shape, jnp.int32).at[rows, places]
        order = order.set(index, unique_indices=True, mode="promise_in_bounds")
        found |= {site.name: order[row, : widths[number]] for row, (number, site) in enumerate(alike)}
    return found
