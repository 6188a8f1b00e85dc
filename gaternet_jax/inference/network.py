"""A model as programs without closed filters, for the engine that runs them: what all modes are made of.

    whole      images -> logits, gates, gate scores                     "dense" and "compact"
    gater      images -> gates, gate scores      and, for some of the filters of each site,
    backbone   images, gates -> logits                                  "specialists"
    profile    the same; which filters, the program sees from the gates     "dynamic"

Filters whose gates are fixed (fixed.py) are left out, or lose their gates, everywhere.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaternet_jax.errors import check_choice
from gaternet_jax.gating import GateSite, MacCount, Prepared, SkipClosed, count_macs, skip_closed
from gaternet_jax.gating.semhash import binary_gates
from gaternet_jax.inference.engines import ENGINES, XLA, Engine, Function, OnnxRuntime, by_rows
from gaternet_jax.inference.fixed import fixed_gates
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
        self.model, self.engine = model, engine
        self._arrays = split_model(model)[1:]
        self._closed, self._opened = fixed_gates(model)
        self._functions = functions_of(model)
        self.program, self._by_rows = functools.cache(self._trace), functools.cache(self._compile)
        if batch is None and engine != "xla":
            from gaternet_jax.inference.onnx_graph import BATCH as batch  # so that nothing is traced twice
        self._batch = FEW if batch is None else batch
        self._image, self._gates = (image_size, image_size, model.backbone.channels), (len(self._closed),)

    def make(self, kind: str, keep: np.ndarray | None = None, threads: int = 1) -> Engine:
        """Makes the engine that runs a kind of program, "whole", "gater" or "backbone", by some threads.

        `keep` is for the backbone: filters that are computed, bool [G], which all open ones must be among; None: all.
        """
        prepared, program = self.prepare(kind, keep), self.program(kind)
        if self.engine == "xla":
            return XLA(self._by_rows(kind), prepared)
        from gaternet_jax.inference.onnx_writer import write_onnx

        inputs = self._inputs(kind, self._batch)
        return OnnxRuntime(write_onnx(lambda *arrays: program(prepared, *arrays), inputs, OUTPUTS[kind]), threads)

    def profile(self, widths: Sequence[int]) -> Engine:
        """Makes the engine that runs the backbone by the filters that are open for any image: widths[k] of site k."""
        return XLA(self._by_rows("profile", tuple(widths)), self._folded[0])

    def prepare(self, kind: str, keep: np.ndarray | None = None) -> Prepared:
        """Computes what a program needs with some filters; see `make`."""
        program, sites = self.program(kind), self.model.gate_sites
        if not program.sites:
            return program.prepare(self._arrays)
        keep = ~self._closed if keep is None else keep & ~self._closed
        kept = {site.name: np.flatnonzero(keep[site.gates]) for site in sites}
        kept = {name: channels if len(channels) else np.array([0]) for name, channels in kept.items()}  # at least one
        opened = [site.name for site in sites if self._opened[site.gates][kept[site.name]].all()]
        return program.prepare(self._arrays, kept, opened)

    def work(self, widths: Sequence[float]) -> float:
        """Gives the multiply-accumulates of the backbone with so many filters of each site, relative to all."""
        by_name = dict(zip((site.name for site in self.model.gate_sites), widths, strict=True))
        return self._macs.left([by_name[site.name] for site in self._macs.sites]) / self._macs.dense

    def count_parameters(self) -> int:
        """Counts the numbers that the whole program needs besides the images."""
        prepared = jax.eval_shape(lambda: self.prepare("whole"))
        return sum(array.size for array in prepared.arrays if jnp.issubdtype(array.dtype, jnp.floating))

    @functools.cached_property
    def description(self) -> str:
        """Says what tells this network's work from that of others."""
        return str([(layer.macs, layer.inputs, layer.outputs) for layer in self.program("whole").explain().layers])

    @functools.cached_property
    def _macs(self) -> MacCount:
        return count_macs(self._functions["backbone"], self._arrays, *self._inputs("backbone", 1).values())

    def _inputs(self, kind: str, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Gives the shapes of what a kind of program is given."""
        inputs = {"images": self._image} | ({"gates": self._gates} if kind == "backbone" else {})
        return {name: jax.ShapeDtypeStruct((batch, *shape), jnp.float32) for name, shape in inputs.items()}

    def _trace(self, kind: str) -> SkipClosed:
        inputs = self._inputs(kind, self._batch).values()
        return skip_closed(self._functions[kind], self._arrays, *inputs)

    @functools.cached_property
    def _folded(self) -> tuple[Prepared, SkipClosed]:
        """Folds BatchNorm into the backbone's whole kernels, once, not for each image again; gives its program, too."""
        program, inputs = self.program("backbone"), self._inputs("backbone", self._batch).values()
        prepared = program.prepare(self._arrays)
        return prepared, skip_closed(program.__call__, prepared, *inputs)

    def _compile(self, kind: str, widths: tuple[int, ...] = ()) -> Function:
        if kind != "profile":
            return by_rows(self.program(kind))
        (_, program), sites = self._folded, self.model.gate_sites

        def run(prepared: Any, images: jax.Array, gates: jax.Array) -> Any:
            keep = first_open((gates > 0).any(0), sites, widths)
            return program(program.prepare(prepared, keep), images, gates)

        return by_rows(run)


def functions_of(model: GaterNet) -> dict[str, Function]:
    """Gives a model's functions of (arrays, images) or (arrays, images, gates); arrays: parameters and statistics."""
    graphdef, *_ = split_model(model)
    closed, opened = fixed_gates(model)
    decided = bool((closed | opened).all())  # for every image

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
