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
from gaternet_jax.gating import GateSite, Prepared, SkipClosed, count_macs, skip_closed
from gaternet_jax.gating.semhash import binary_gates
from gaternet_jax.inference.engines import ENGINES, XLA, Engine, Function, OnnxRuntime, by_rows
from gaternet_jax.inference.fixed import fixed_gates
from gaternet_jax.inference.selection import at_least_one, channels_of
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet, Outputs

FEW = 2  # images that are traced where their number does not matter
OUTPUTS = {"whole": ("logits", "gates", "gate_scores"), "gater": ("gates", "gate_scores"), "backbone": ("logits",)}


class Network:
    """Programs of a model for images of one size.

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
        if batch is None:
            batch = FEW if engine == "xla" else traced_batch()
        images = jax.ShapeDtypeStruct((batch, image_size, image_size, model.backbone.channels), jnp.float32)
        self._shapes = {"images": images, "gates": jax.ShapeDtypeStruct((batch, len(self._closed)), jnp.float32)}

    def whole(self, threads: int = 1) -> Engine:
        """Images to logits, gates and gate scores."""
        return self._make("whole", None, threads)

    def gater(self, threads: int = 1) -> Engine:
        """Images to gates and gate scores."""
        return self._make("gater", None, threads)

    def backbone(self, keep: np.ndarray | None = None, threads: int = 1) -> Engine:
        """Images and gates to logits.

        Args:
            keep: bool [G], filters that are computed, which all open ones must be among; None: all.
            threads: of one call.
        """
        return self._make("backbone", keep, threads)

    def profile(self, widths: Sequence[int]) -> Engine:
        """Images and gates to logits, by the filters that are open for any of the images.

        Args:
            widths: of each site, how many filters are computed; no more may be open.
        """
        return XLA(self._by_rows("profile", tuple(widths)), self._folded)

    def work(self, widths: Sequence[float]) -> float:
        """Multiply-accumulates of the backbone with so many filters of each site, relative to all."""
        by_name = dict(zip((site.name for site in self.model.gate_sites), widths, strict=True))
        return self._macs.left([by_name[site.name] for site in self._macs.sites]) / self._macs.dense

    def count_parameters(self) -> int:
        """Numbers that the whole program needs besides the images."""
        prepared = jax.eval_shape(lambda: self.prepare("whole"))
        return sum(array.size for array in prepared.arrays if jnp.issubdtype(array.dtype, jnp.floating))

    @functools.cached_property
    def description(self) -> str:
        """What tells this network's work from that of others."""
        return str([(layer.macs, layer.inputs, layer.outputs) for layer in self.program("whole").explain().layers])

    @functools.cached_property
    def _macs(self) -> Any:
        images, gates = (given.update(shape=(1, *given.shape[1:])) for given in self._shapes.values())
        return count_macs(self._functions["backbone"], self._arrays, images, gates)

    def _trace(self, kind: str) -> SkipClosed:
        shapes = self._shapes.values() if kind == "backbone" else [self._shapes["images"]]
        return skip_closed(self._functions[kind], self._arrays, *shapes, whole_sums=True)

    def prepare(self, kind: str, keep: np.ndarray | None = None) -> Prepared:
        """What a program needs with some filters; see `backbone`."""
        program = self.program(kind)
        if not program.sites:
            return program.prepare(self._arrays)
        kept = at_least_one(~self._closed if keep is None else keep & ~self._closed, self.model.gate_sites)
        opened = [site.name for site in self.model.gate_sites if self._opened[site.gates][kept[site.gates]].all()]
        return program.prepare(self._arrays, channels_of(kept, self.model.gate_sites), opened)

    def _make(self, kind: str, keep: np.ndarray | None, threads: int) -> Engine:
        if self.engine == "xla":
            return XLA(self._by_rows(kind), self.prepare(kind, keep))
        return OnnxRuntime(self._write(kind, self.prepare(kind, keep)), threads)

    def _write(self, kind: str, prepared: Prepared) -> bytes:
        from gaternet_jax.inference.onnx_writer import write_onnx

        program = self.program(kind)
        inputs = dict(self._shapes) if kind == "backbone" else {"images": self._shapes["images"]}
        return write_onnx(lambda *arrays: program(prepared, *arrays), inputs, OUTPUTS[kind])

    def _compile(self, kind: str, widths: tuple[int, ...] = ()) -> Function:
        if kind != "profile":
            return by_rows(self.program(kind))
        program, sites = self._of_folded, self.model.gate_sites

        def run(prepared: Any, images: jax.Array, gates: jax.Array) -> Any:
            keep = first_open((gates > 0).any(0), sites, widths)
            return program(program.prepare(prepared, keep), images, gates)

        return by_rows(run)

    @functools.cached_property
    def _folded(self) -> Prepared:
        """The backbone with BatchNorm folded into whole kernels: once, and not for each image again."""
        return self._plain.prepare(self._arrays)

    @functools.cached_property
    def _plain(self) -> SkipClosed:
        return skip_closed(self._functions["backbone"], self._arrays, *self._few.values(), whole_sums=True)

    @functools.cached_property
    def _of_folded(self) -> SkipClosed:
        return skip_closed(self._plain.__call__, self._folded, *self._few.values(), whole_sums=True)

    @property
    def _few(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: given.update(shape=(FEW, *given.shape[1:])) for name, given in self._shapes.items()}


def traced_batch() -> int:
    """The number of images that `write_onnx` traces, so that nothing is traced twice."""
    from gaternet_jax.inference.onnx_graph import BATCH

    return BATCH


def functions_of(model: GaterNet) -> dict[str, Function]:
    """A model's functions of (arrays, images) or (arrays, images, gates); the arrays are parameters and statistics."""
    graphdef, *_ = split_model(model)
    closed, opened = fixed_gates(model)
    decided = model.gater is not None and bool((closed | opened).all())  # for every image

    def gater(arrays: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        merged: Any = merge_model(graphdef, *arrays)
        if decided:
            bias = merged.gater.head.scores.bias.get_value()
            scores = jnp.broadcast_to(bias, (images.shape[0], bias.size))
        else:
            scores = merged.gater(images)
        return binary_gates(scores), scores

    def backbone(arrays: Any, images: jax.Array, gates: jax.Array) -> tuple[jax.Array]:
        return (merge_model(graphdef, *arrays).backbone(images, gates),)

    def whole(arrays: Any, images: jax.Array) -> Outputs:
        if not decided:
            return merge_model(graphdef, *arrays)(images)
        gates, scores = gater(arrays, images)
        return Outputs(*backbone(arrays, images, gates), gates, scores)

    return {"whole": whole, "gater": gater, "backbone": backbone}


def first_open(opened: jax.Array, sites: Sequence[GateSite], widths: Sequence[int]) -> dict[str, jax.Array]:
    """The first filters of each site when those that are open come first, int32 [width], by its name.

    Counts by a product and scatters, for all sites of a size at once: on CPUs a sort took up to ten times as long, and
    a small network is bound by the number of its operations.

    Args:
        opened: bool [G].
        sites: of the model.
        widths: how many, of each site.
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
