"""A convolution that computes neighbouring output pixels together, as further filters of one.

The same result from fewer and wider products: for `rows` x `columns` pixels, a kernel that is larger by
stride * (rows - 1) and stride * (columns - 1), in steps of stride * rows and stride * columns. It multiplies more
zeros. But a narrow convolution on a CPU is bound by gathering its inputs, and by filters that do not fill a vector
unit (benchmarks/inference.py --convolutions).
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp


def only(value: Any) -> int:
    """The stride or the padding of a convolution that has the same on all sides."""
    return value if isinstance(value, int) else value[0]


def convolution(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, packing: tuple[int, int] = (1, 1)
) -> jax.Array:
    """Convolves.

    Args:
        x: [B, H, W, C].
        kernel: [h, w, C, filters].
        stride, padding: pixels, on all sides.
        packing: rows and columns that are computed together; they must divide the height and width of the output.

    Returns:
        [B, H', W', filters].
    """
    rows, columns = packing
    y = jax.lax.conv_general_dilated(
        x,
        widen_kernel(kernel, stride, packing),
        (stride * rows, stride * columns),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    if packing == (1, 1):
        return y
    batch, height, width, _ = y.shape
    y = y.reshape(batch, height, width, rows, columns, -1).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, height * rows, width * columns, -1)


def widen_kernel(kernel: jax.Array, stride: int, packing: tuple[int, int]) -> jax.Array:
    """[h, w, C, filters] to [h', w', C, rows * columns * filters]: the kernel at each pixel's place."""
    if packing == (1, 1):
        return kernel
    (rows, columns), (height, width, channels, _) = packing, kernel.shape
    below, right = stride * (rows - 1), stride * (columns - 1)  # pixels that the kernel grows by
    shifted = [
        jnp.pad(kernel, ((top, below - top), (left, right - left), (0, 0), (0, 0)))
        for top, left in itertools.product(range(0, below + 1, stride), range(0, right + 1, stride))
    ]
    return jnp.stack(shifted, axis=3).reshape(height + below, width + right, channels, -1)
