"""Random programs: whatever operations follow each other, closed channels left out make no difference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gaternet_jax.gating import gate, skip_closed
from tests.arrays import assert_close

SIZE, LENGTH = 6, 14  # pixels; operations
QUICK, ALL = 2, 60  # programs
conv = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
window = functools.partial(lax.reduce_window, window_dimensions=(1, 3, 3, 1), window_strides=(1, 2, 2, 1))
across = lambda x: x[None, None, None]  # noqa: E731

# Of maps x, other maps y, and weights, of which the shapes are given; "c" is the number of channels of x.
OPERATIONS = {
    "convolution": (lambda x, y, k: conv(x, k, (1, 1), "SAME"), [(3, 3, "c", 4)]),
    "stride": (lambda x, y, k: conv(x, k, (2, 2), ((1, 0), (0, 2))), [(2, 3, "c", 6)]),
    "no padding": (lambda x, y, k: conv(x, k, (1, 1), "VALID", rhs_dilation=(1, 2)), [(2, 2, "c", 4)]),
    "pointwise": (lambda x, y, k: x @ k, [("c", 8)]),
    "depthwise": (lambda x, y, k: conv(x, k, (1, 1), "SAME", feature_group_count=x.shape[3]), [(3, 3, 1, "c")]),
    "narrower depthwise": (
        lambda x, y, k: conv(x, k, (1, 1), "VALID", feature_group_count=x.shape[3]),
        [(2, 3, 1, "c")],
    ),
    "batch norm": (lambda x, y, *p: (x - across(p[0])) * across(p[1]) + across(p[2]), [("c",)] * 3),
    "bias": (lambda x, y, bias: x + across(bias), [("c",)]),
    "scale": (lambda x, y: 1.0 - x / 2, []),
    "table": (lambda x, y, table: x + table.reshape(1, -1, 1, 1)[:, : x.shape[1]], [(SIZE,)]),
    "relu": (lambda x, y: jax.nn.relu(x), []),
    "cos": (lambda x, y: jnp.cos(x), []),
    "silu": (lambda x, y: jax.nn.silu(x), []),
    "where": (lambda x, y: jnp.where(x > 0.1, x, 0.0), []),
    "add": (lambda x, y: x + y, []),
    "times": (lambda x, y: x * y, []),
    "concatenate": (lambda x, y: jnp.concatenate([x, y], 3), []),
    "beside": (lambda x, y: jnp.concatenate([x, y], 1)[:, : x.shape[1]], []),
    "first": (lambda x, y: jnp.split(x, [4], 3)[0], []),
    "rest": (lambda x, y: jnp.split(x, [4], 3)[1], []),
    "slice": (lambda x, y: x[:, 1:], []),
    "max-pooling": (lambda x, y: window(x, -jnp.inf, lax.max, padding="SAME"), []),
    "average pooling": (lambda x, y: window(x, 0.0, lax.add, padding="VALID"), []),
    "pad": (lambda x, y: jnp.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0)), constant_values=2.0), []),
    "transpose": (lambda x, y: jnp.tanh(x.transpose(0, 3, 1, 2)).transpose(0, 3, 2, 1), []),
    "squeeze and excite": (
        lambda x, y, *k: x * jax.nn.sigmoid(jax.nn.relu(x.mean((1, 2)) @ k[0]) @ k[1])[:, None, None],
        [("c", 2), (2, "c")],
    ),
    "layer norm": (lambda x, y: (x - x.mean(3, keepdims=True)) * lax.rsqrt(x.var(3, keepdims=True) + 0.1), []),
    "cumulative sum": (lambda x, y: jnp.cumsum(x, 1) / 3, []),
    "sort": (lambda x, y: jnp.sort(x, 3), []),
}


def random_program(rng):
    """Gives a function of (params, images, gates), its parameters, and the number of its gates."""
    steps, shapes, params, num_gates = [], [(1, SIZE, SIZE, 3)], [], 0
    while len(steps) < LENGTH:
        name = rng.choice([*OPERATIONS, *["gate"] * 10])
        at, other = rng.integers(max(len(shapes) - 3, 0), len(shapes), 2).tolist()
        function, sizes = OPERATIONS.get(name, (None, []))
        own = [rng.normal(size=[shapes[at][3] if size == "c" else size for size in shape]) for shape in sizes]
        own = [np.float32(weights / np.sqrt(np.prod(weights.shape[:-1]))) for weights in own]
        maps = [jax.ShapeDtypeStruct(shapes[number], jnp.float32) for number in (at, other)]
        try:
            shape = jax.eval_shape(function, *maps, *own).shape if function else shapes[at]
        except (TypeError, ValueError):
            continue  # it is no operation of such maps
        if 0 in shape or shape[3] > 16:
            continue
        gates = None if function else slice(num_gates, num_gates := num_gates + shape[3])
        steps.append((function, at, other, slice(len(params), len(params) + len(own)), gates))
        params += own
        shapes.append(shape)

    def program(params, x, gates):
        values = [x]
        for function, at, other, own, site in steps:
            if function is None:
                values.append(gate(values[at], gates[:, site], str(site.start)))
            else:
                values.append(function(values[at], values[other], *params[own]))
        return values[-1].mean((1, 2))

    return program, params, num_gates


CASES = [pytest.param(seed, marks=[] if seed < QUICK else pytest.mark.slow) for seed in range(ALL)]


@pytest.mark.parametrize("seed", CASES)
def test_random_programs_give_what_the_masked_ones_give(seed):
    rng = np.random.default_rng(seed)
    function, params, num_gates = random_program(rng)
    shapes = [jax.ShapeDtypeStruct((2, *rest), jnp.float32) for rest in ((SIZE, SIZE, 3), (num_gates,))]
    program = skip_closed(function, params, *shapes)
    keep = [rng.permutation(site.size)[: rng.integers(1, site.size + 1)] for site in program.sites]
    kept = np.zeros(num_gates, np.float32)
    for site, index in zip(program.sites, keep, strict=True):
        kept[int(site.name) + index] = 1  # others close, or have no influence on the result
    prepared, whole = program.prepare(params, keep), program.prepare(params)
    for batch in (2, 1):
        x = jnp.asarray(rng.normal(size=(batch, SIZE, SIZE, 3)), jnp.float32)
        gates = jnp.asarray(kept * rng.choice([0, 0.5, 1, 1], (batch, num_gates)), jnp.float32)
        wanted = np.asarray(function(params, x, gates))
        for each in (prepared, whole):
            assert_close(program(each, x, gates), wanted, 1e-4)
