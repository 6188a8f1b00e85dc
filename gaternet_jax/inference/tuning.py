"""How long convolutions take on this machine: what widths and packings are chosen by.

Time is not proportional to filters. A width that does not fill a vector unit costs as much as one that does, and a
narrow convolution is bound by gathering its inputs. So every convolution is measured in the ways it could be run.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.layers import Conv
from gaternet_jax.models.macs import trace_layers
from gaternet_jax.models.packing import convolution, only

# Output pixels (rows, columns) that are computed together, and the most filters with which that ever paid.
PACKINGS = {(1, 1): 1 << 30, (1, 2): 64, (2, 2): 32}
MEASURE_SECONDS = 0.01  # of one measurement; the least of REPEATS counts
REPEATS = 4


@dataclasses.dataclass(frozen=True)
class ConvShape:
    """What the time of a convolution depends on; kernel, stride, padding and height are those of a square."""

    kernel: int
    stride: int
    padding: int
    height: int
    in_channels: int
    out_channels: int
    dtype: str


class ConvTimes:
    """Measures convolutions, each once.

    Args:
        batch_size: images per call.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self._measured: dict[ConvShape, tuple[float, tuple[int, int]]] = {}

    def seconds(self, shape: ConvShape) -> float:
        """Of one call, in the best packing."""
        return self._best(shape)[0]

    def packing(self, shape: ConvShape) -> tuple[int, int]:
        """The packing with which it is fastest."""
        return self._best(shape)[1]

    def _best(self, shape: ConvShape) -> tuple[float, tuple[int, int]]:
        if shape not in self._measured:
            outputs = (shape.height + 2 * shape.padding - shape.kernel) // shape.stride + 1
            ways = [
                packing
                for packing, most in PACKINGS.items()
                if shape.out_channels <= most and outputs % packing[0] == outputs % packing[1] == 0
            ]
            self._measured[shape] = min(zip(self._measure(shape, ways), ways, strict=True))
        return self._measured[shape]

    def _measure(self, shape: ConvShape, packings: list[tuple[int, int]]) -> list[float]:
        runs = [functools.partial(_convolve, shape, packing) for packing in packings]
        size = (shape.kernel, shape.kernel, shape.in_channels, shape.out_channels)
        kernel = jnp.asarray(np.random.default_rng(0).normal(size=size), shape.dtype)
        return measure(runs, jnp.ones(self.inputs(shape), shape.dtype), kernel)

    def inputs(self, shape: ConvShape) -> tuple[int, ...]:
        """Shape of the input maps of a convolution."""
        return self.batch_size, shape.height, shape.height, shape.in_channels


def _convolve(shape: ConvShape, packing: tuple[int, int], x: jax.Array, kernel: jax.Array) -> jax.Array:
    return convolution(x, kernel, shape.stride, shape.padding, packing)


def measure(runs: list[Callable[..., jax.Array]], x: jax.Array, *arguments: Any) -> list[float]:
    """Seconds that each of some functions of (x, *arguments) takes within a larger program; maps [B, H, W, C] each.

    All in turn, so that another program's work hits all alike.
    """

    def repeated(run: Callable[..., jax.Array]) -> Callable[[int], float]:
        @jax.jit
        def repeat(times, x, arguments):
            def body(_, carry):  # each after the one before
                return (run(x + carry, *arguments)[0, 0, 0, 0] * 1e-9).astype(x.dtype)

            return jax.lax.fori_loop(0, times, body, jnp.zeros((), x.dtype))

        def seconds(times: int) -> float:
            start = time.perf_counter()
            repeat(times, x, arguments).block_until_ready()
            return (time.perf_counter() - start) / times

        seconds(1)  # compiles
        return seconds

    timed = [repeated(run) for run in runs]
    times = max(int(MEASURE_SECONDS / timed[0](1)), 1)
    rounds = [[seconds(times) for seconds in timed] for _ in range(REPEATS)]
    return [min(of_run) for of_run in zip(*rounds, strict=True)]


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


def pack(model: GaterNet, image_size: int, times: ConvTimes | None) -> GaterNet:
    """Gives every convolution of a model its fastest packing, in place; without times, none."""
    if times is None:
        return model
    shapes = conv_shapes(model, image_size)
    for path, module in nnx.iter_modules(model):
        name = ".".join(map(str, path))
        if isinstance(module, Conv) and name in shapes:
            module.packing = times.packing(shapes[name])
    return model
