"""A convolution, and the ways to compute it. Which is fastest on a machine, inference/tuning.py measures.

    direct              as XLA does it
    packed 1x2, 2x2     so many neighbouring output pixels at once, as further filters of one convolution: fewer and
                        wider products, which also multiply more zeros
    product             one matrix product of the windows that the kernel sees
    winograd            of 3x3 kernels: 2x2 outputs by 16 multiplications instead of 36 (Lavin and Gray, CVPR 2016)

On a CPU, XLA's own convolution is bound by gathering its inputs where it is narrow, and by filters that do not fill a
vector unit.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from gaternet_jax.errors import UserError

PACKED = {"packed 1x2": (1, 2), "packed 2x2": (2, 2)}  # rows and columns that are computed together


def only(value: Any) -> int:
    """The stride or the padding of a convolution that has the same on all sides."""
    return value if isinstance(value, int) else value[0]


def convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: int, algorithm: str = "direct") -> jax.Array:
    """Convolves.

    Args:
        x: [B, H, W, C].
        kernel: [h, w, C, filters].
        stride, padding: pixels, on all sides.
        algorithm: see above. Packed rows and columns must divide the height and width of the output; "winograd" wants
            a 3x3 kernel, stride 1 and padding 1.

    Returns:
        [B, H', W', filters].

    Raises:
        UserError: an algorithm that there is none of.
    """
    if algorithm == "product":
        return _product(x, kernel, stride, padding)
    if algorithm == "winograd":
        return _winograd(x, kernel)
    if algorithm not in ("direct", *PACKED):
        raise UserError(f"unknown algorithm '{algorithm}'; known: direct, {', '.join(PACKED)}, product, winograd")
    packing = PACKED.get(algorithm, (1, 1))
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
    """[h, w, C, filters] to [h', w', C, rows * columns * filters]: the kernel at each pixel's place.

    It is larger by stride * (rows - 1) and stride * (columns - 1), and steps stride * rows and stride * columns.
    """
    if packing == (1, 1):
        return kernel
    (rows, columns), (height, width, channels, _) = packing, kernel.shape
    below, right = stride * (rows - 1), stride * (columns - 1)  # pixels that the kernel grows by
    shifted = [
        jnp.pad(kernel, ((top, below - top), (left, right - left), (0, 0), (0, 0)))
        for top, left in itertools.product(range(0, below + 1, stride), range(0, right + 1, stride))
    ]
    return jnp.stack(shifted, axis=3).reshape(height + below, width + right, channels, -1)


def _pad(x: jax.Array, before: int, after: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))


def _shifted(x: jax.Array, size: int, stride: int, counts: tuple[int, int]) -> list[list[jax.Array]]:
    """What each pixel of a window of `size` x `size` sees, in `counts` steps down and right: [row][column]."""
    down, right = counts
    return [
        [
            x[:, top : top + stride * (down - 1) + 1 : stride, left : left + stride * (right - 1) + 1 : stride]
            for left in range(size)
        ]
        for top in range(size)
    ]


def _product(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    size, filters = kernel.shape[0], kernel.shape[-1]
    height, width = ((length + 2 * padding - size) // stride + 1 for length in x.shape[1:3])
    seen = itertools.chain.from_iterable(_shifted(_pad(x, padding, padding), size, stride, (height, width)))
    windows = jnp.concatenate(list(seen), axis=-1).reshape(-1, kernel.size // filters)
    return (windows @ kernel.reshape(-1, filters)).reshape(-1, height, width, filters)


def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    (batch, height, width, channels), filters = x.shape, kernel.shape[-1]
    down, right = -(-height // 2), -(-width // 2)  # tiles
    to_kernel = jnp.asarray([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], x.dtype)
    kernels = jnp.einsum("ai,bj,ijcf->abcf", to_kernel, to_kernel, kernel)
    padded = jnp.pad(x, ((0, 0), (1, 1 + 2 * down - height), (1, 1 + 2 * right - width), (0, 0)))
    tiles = _both_ways(_shifted(padded, 4, 2, (down, right)), _to_tile)
    products = [
        [tile.reshape(-1, channels) @ kernels[i, j] for j, tile in enumerate(row)] for i, row in enumerate(tiles)
    ]
    outputs = jnp.stack([jnp.stack(row) for row in _both_ways(products, _from_tile)])
    outputs = outputs.reshape(2, 2, batch, down, right, filters).transpose(2, 3, 0, 4, 1, 5)
    return outputs.reshape(batch, 2 * down, 2 * right, filters)[:, :height, :width]


def _both_ways(values: list[list[jax.Array]], change: Any) -> list[list[jax.Array]]:
    """Applies a change of a list to each column, then to each row."""
    columns = [change(list(column)) for column in zip(*values, strict=True)]
    return [change(list(row)) for row in zip(*columns, strict=True)]


def _to_tile(d: list[jax.Array]) -> list[jax.Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _from_tile(m: list[jax.Array]) -> list[jax.Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
