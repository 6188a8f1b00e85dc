"""How long convolutions take on this machine: what widths and algorithms are chosen by.

Time is not proportional to filters. A width that does not fill a vector unit costs as much as one that does, and a
narrow convolution is bound by gathering its inputs. So every convolution is measured with the algorithms that may suit.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.inference.parts import Parts
from gaternet_jax.models.convolution import PACKED, convolution, only
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.layers import Conv, LayerCall, add_into, record_layers

# Where each algorithm ever paid; elsewhere it is not measured.
PACKED_FILTERS = {"packed 1x2": 64, "packed 2x2": 32}  # at most
PRODUCT_PIXELS = 14  # at most, of the output's height, for kernels larger than 1x1
WINOGRAD_PIXELS, WINOGRAD_WEIGHTS = 16, 128 * 128  # at least, of the output's height; at most, inputs x outputs
MEASURE_SECONDS = 0.01  # of one measurement; the least of REPEATS counts
REPEATS = 4
WORTH = 1.1  # how much faster than XLA's own an algorithm must be: within a larger program XLA's gains a little
SMALL = 1 << 18  # numbers in an array that may be changed at each run, at most: the change takes time itself


@dataclasses.dataclass(frozen=True)
class ConvShape:
    """What the time of a convolution depends on; kernel, stride, padding and height are those of a square.

    Attributes:
        onto: channels of a wider map that the output is added into; 0: it is not.
    """

    kernel: int
    stride: int
    padding: int
    height: int
    in_channels: int
    out_channels: int
    dtype: str
    onto: int = 0

    @property
    def outputs(self) -> int:
        """Height of the output, pixels."""
        return (self.height + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def algorithms(self) -> list[str]:
        """Those that may be fastest."""
        if self.kernel == 1:
            return ["direct", "product"]
        found = [
            name
            for name, (rows, columns) in PACKED.items()
            if self.out_channels <= PACKED_FILTERS[name] and self.outputs % rows == self.outputs % columns == 0
        ]
        if self.outputs <= PRODUCT_PIXELS:
            found.append("product")
        simple = self.kernel == 3 and self.stride == self.padding == 1 and self.dtype == "float32"
        if simple and self.outputs >= WINOGRAD_PIXELS and self.in_channels * self.out_channels <= WINOGRAD_WEIGHTS:
            found.append("winograd")
        return ["direct", *found]


class ConvTimes:
    """Measures convolutions, each once.

    Args:
        parts: how batches are cut: a part is measured, so many at once.
    """

    def __init__(self, parts: Parts):
        self.parts = parts
        self._measured: dict[ConvShape, tuple[float, str]] = {}

    def seconds(self, shape: ConvShape) -> float:
        """Of one part, with the best algorithm."""
        return self._best(shape)[0]

    def algorithm(self, shape: ConvShape) -> str:
        """The algorithm with which it is fastest."""
        return self._best(shape)[1]

    def _best(self, shape: ConvShape) -> tuple[float, str]:
        if shape not in self._measured:
            found = dict(zip(shape.algorithms, self._measure(shape, shape.algorithms), strict=True))
            best = min(found, key=lambda name: found[name] / (WORTH if name == "direct" else 1))
            self._measured[shape] = found[best], best
        return self._measured[shape]

    def _measure(self, shape: ConvShape, algorithms: list[str]) -> list[float]:
        runs = [functools.partial(_convolve, shape, algorithm) for algorithm in algorithms]
        size = (shape.kernel, shape.kernel, shape.in_channels, shape.out_channels)
        kernel = jnp.asarray(np.random.default_rng(0).normal(size=size), shape.dtype)
        maps = (self.parts.size, shape.outputs, shape.outputs, shape.onto or shape.out_channels)
        return self.measure(runs, jnp.ones(self.inputs(shape), shape.dtype), jnp.zeros(maps, shape.dtype), kernel)

    def measure(
        self, runs: list[Callable[..., jax.Array]], x: jax.Array, onto: jax.Array, *arguments: Any
    ) -> list[float]:
        """Seconds that functions of (x, onto, *arguments), maps [B, H, W, C], take within a larger program.

        As many threads run each function as parts run at once, and share the time: what uses all cores well when it is
        alone may be worse then. The functions take turns, so that another program's work hits all alike. A run gets the
        result of the run before as `onto`, as a block gets the stream, which may be added to in place. What else it
        gets depends on that, or XLA would leave out a part of the work, or do it once for all runs (of weights, only
        small ones are changed so).
        """

        at_once, programs = self.parts.at_once, [_repeated(run) for run in runs]

        def seconds(program: Callable, times: int) -> float:
            start = time.perf_counter()
            program(times, x, onto, arguments).block_until_ready()
            return (time.perf_counter() - start) / times

        for program in programs:
            seconds(program, 1)  # compiles
        times = max(int(MEASURE_SECONDS / seconds(programs[0], 1)), 1)
        with ThreadPoolExecutor(at_once, "measure") as threads:

            def shared(program: Callable) -> float:
                if at_once == 1:
                    return seconds(program, times)  # here: another thread takes its time to wake up
                return sum(threads.map(seconds, [program] * at_once, [times] * at_once)) / at_once**2

            rounds = [[shared(program) for program in programs] for _ in range(REPEATS)]
        return [min(of_run) for of_run in zip(*rounds, strict=True)]

    def inputs(self, shape: ConvShape) -> tuple[int, ...]:
        """Shape of the input maps of a convolution."""
        return self.parts.size, shape.height, shape.height, shape.in_channels


def _repeated(run: Callable[..., jax.Array]) -> Callable:
    """A program that runs a function so many times, one after the other."""

    @jax.jit
    def repeat(times, x, onto, arguments):
        def body(_, onto):
            little = onto[0, 0, 0, 0] * 1e-9

            def after(array: jax.Array) -> jax.Array:
                return array + little.astype(array.dtype) if array.size <= SMALL else array

            return run(x + little.astype(x.dtype), onto, *jax.tree.map(after, arguments))

        return jax.lax.fori_loop(0, times, body, onto)

    return repeat


def _convolve(shape: ConvShape, algorithm: str, x: jax.Array, onto: jax.Array, kernel: jax.Array) -> jax.Array:
    y = convolution(x, kernel, shape.stride, shape.padding, algorithm)
    if not shape.onto:
        return y
    whole = shape.out_channels == shape.onto
    return add_into(onto, y, None if whole else jnp.arange(shape.out_channels) * shape.onto // shape.out_channels)


def conv_shapes(model: GaterNet, image_size: int) -> dict[str, ConvShape]:
    """The convolutions of a model, by path."""
    return {
        name: ConvShape(
            call.layer.kernel_size[0],
            only(call.layer.strides),
            only(call.layer.padding),
            call.inputs[1],
            call.layer.in_features,
            call.layer.out_features,
            jnp.dtype(call.layer.dtype or jnp.float32).name,
        )
        for name, call in trace_layers(model, image_size)
        if isinstance(call.layer, Conv)
    }


def trace_layers(model: GaterNet, image_size: int) -> list[tuple[str, LayerCall]]:
    """The convolutions and linear layers of a model, by path, in the order in which an image passes them."""
    tracing = nnx.clone(model)  # the caller's model keeps its mode
    tracing.eval()
    graphdef, params, stats = split_model(tracing)
    traced: list[tuple[str, LayerCall]] = []

    def forward(params, stats, images):
        merged = merge_model(graphdef, params, stats)
        names = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(merged)}
        with record_layers() as calls:
            merged(images)
        traced.extend((names[id(call.layer)], call) for call in calls)

    shape = (1, image_size, image_size, model.backbone.channels)
    jax.eval_shape(forward, params, stats, jax.ShapeDtypeStruct(shape, jnp.float32))
    return traced


def choose_algorithms(model: GaterNet, image_size: int, times: ConvTimes | None) -> GaterNet:
    """Gives every convolution of a model its fastest algorithm, in place; without times, XLA's own."""
    if times is None:
        return model
    shapes = conv_shapes(model, image_size)
    for path, module in nnx.iter_modules(model):
        name = ".".join(map(str, path))
        if isinstance(module, Conv) and name in shapes:
            module.algorithm = times.algorithm(shapes[name])
    return model
