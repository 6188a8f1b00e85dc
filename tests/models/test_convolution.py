"""All ways to compute a convolution give the same."""

import jax
import numpy as np
import pytest

from gaternet_jax.errors import UserError
from gaternet_jax.models.convolution import convolution


@pytest.mark.parametrize(
    ("algorithm", "kernel", "stride", "sizes"),
    [
        ("packed 1x2", 3, 1, (6, 8)),
        ("packed 1x2", 3, 2, (5, 8)),
        ("packed 2x2", 3, 1, (6, 8)),
        ("packed 2x2", 7, 2, (8, 16)),
        ("product", 1, 1, (5, 7)),
        ("product", 1, 2, (5, 7)),
        ("product", 3, 2, (7, 6)),
        ("winograd", 3, 1, (6, 8)),
        ("winograd", 3, 1, (5, 7)),
    ],
)
def test_algorithms_compute_the_convolution(algorithm, kernel, stride, sizes):
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, *sizes, 3)), rng.normal(size=(kernel, kernel, 3, 5))
    padded = np.pad(x, ((0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (1, 2))[:, ::stride, ::stride]
    expected = np.einsum("bhwcij,ijcf->bhwf", windows, weights)
    for name in ("direct", algorithm):
        computed = jax.jit(convolution, static_argnums=(2, 3, 4))(
            x.astype(np.float32), weights.astype(np.float32), stride, kernel // 2, name
        )
        np.testing.assert_allclose(computed, expected, atol=1e-5, err_msg=name)


def test_unknown_algorithms_are_refused():
    x, kernel = np.zeros((1, 4, 4, 1)), np.zeros((3, 3, 1, 1))
    with pytest.raises(UserError, match=r"unknown algorithm 'winogard'; known: direct, packed 1x2, .*, winograd"):
        convolution(x, kernel, 1, 1, "winogard")
