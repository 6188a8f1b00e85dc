"""Each primitive: what is left out, and that the result is that of the masked function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gaternet_jax.gating import gate, skip_closed
from tests.arrays import assert_close, weights

C, B = 6, 2  # channels of the gated maps, images
KEEP = np.array([4, 1, 3])
CONV = ("NHWC", "HWIO", "NHWC")
MAPS = (B, 5, 5, C)


def check(function, params=(), maps=MAPS, open_gates=(1.0, 0.5, 1.0), tolerance=1e-5, dtype=jnp.float32):
    """Compares a function of (params, x, gates) with its program, which it returns."""
    x = weights(*maps).astype(dtype)
    channels = maps[-1]
    keep = KEEP if channels == C else np.arange(0, channels, 2)
    gates = jnp.zeros((maps[0], channels)).at[:, keep].set(jnp.resize(jnp.array(open_gates), len(keep)))
    program = skip_closed(function, params, x, gates)
    out, wanted = jax.jit(lambda *args: (program(program.prepare(params, [keep]), *args), function(params, *args)))(
        x, gates
    )
    assert_close(out, wanted, tolerance)
    assert np.abs(np.asarray(wanted, np.float32)).max() > 0
    return program


def inputs_of_last(program):
    """How many channels the last product reads with three of six kept."""
    cut = program.explain([3]).layers[-1].inputs
    return None if cut is None else cut.count([3])


SHIFT = weights(C, rng=np.random.default_rng(0))
UNARY = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": jax.nn.gelu,
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "hard_silu": jax.nn.hard_silu,
    "elu": jax.nn.elu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,  # not zero at zero
    "softplus": jax.nn.softplus,
    "cos": jnp.cos,
    "exp": jnp.exp,
    "square": jnp.square,
    "power": lambda x: x**3,
    "cast": lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
    "clip": lambda x: jnp.clip(x, -1, 0.5),
    "where": lambda x: jnp.where(x > 0.1, x, -1.0),
    "a shift per channel": lambda x: x + SHIFT[None, None, None],
    "a scale and a shift per channel": lambda x: jnp.maximum(x * SHIFT[None, None, None] - SHIFT[None, None, None], 0),
    "a number": lambda x: 3.0 - x / 2,
    "times a map": lambda x: x * jnp.arange(25.0).reshape(1, 5, 5, 1),
    "times an image's number": lambda x: x * x.max((1, 2, 3), keepdims=True),
    "custom derivatives": jax.custom_vjp(jnp.sin),
    "checkpoint": jax.checkpoint(jax.nn.relu),
    "jit": jax.jit(jax.nn.relu),
    "stop_gradient": lax.stop_gradient,
    "optimization without effect": lambda x: lax.reduce_precision(x, 8, 23),
}
UNARY["custom derivatives"].defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))


@pytest.mark.parametrize("name", UNARY)
def test_elementwise(name):
    """Padding makes constants matter: they are not there, where zeros are."""
    kernel = weights(3, 3, C, 2)

    def function(kernel, x, gates):
        return lax.conv_general_dilated(UNARY[name](gate(x, gates)), kernel, (2, 1), "SAME", dimension_numbers=CONV)

    tolerance = 0.01 if name == "cast" else 1e-5
    assert inputs_of_last(check(function, kernel, tolerance=tolerance)) == 3


def through(change, kernel_of, maps=MAPS, **options):
    """A function that changes gated maps and contracts the channels that come out of it along the last axis."""

    def function(kernel, x, gates):
        return change(gate(x, gates)) @ kernel

    return check(function, kernel_of, maps, **options)


ONE, BORDER = (1, 1, 1, 1), ((0, 0), (1, 1), (0, 0), (0, 0))
PER_CHANNEL = {
    "transpose": (lambda x: x.transpose(0, 2, 1, 3), C),
    "reshape": (lambda x: x.reshape(B * 5, 5, C), C),
    "flatten": (lambda x: x.reshape(B, -1), 25 * C),
    "flatten after a transpose": (lambda x: x.transpose(0, 3, 1, 2).reshape(B, -1), 25 * C),
    "flatten constants": (lambda x: jnp.exp(x).transpose(0, 1, 3, 2).reshape(B, 5, -1), 5 * C),
    "expand and squeeze": (lambda x: jnp.squeeze(x[:, :, None], 2), C),
    "broadcast": (lambda x: jnp.broadcast_to(x[:, None, 0, 0], (B, 7, C)), C),
    "mean": (lambda x: jnp.cos(x).mean((1, 2)), C),
    "maximum": (lambda x: x.max((1, 2)), C),
    "minimum of constants": (lambda x: jnp.cos(x).min(1), C),
    "rev": (lambda x: x[:, ::-1], C),
    "slice of space": (lambda x: x[:, 1:, ::2], C),
    "pad of space": (lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0))), C),
    "max-pooling": (lambda x: lax.reduce_window(jnp.cos(x), -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"), C),
    "average pooling": (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"), C),
    "average pooling of constants": (
        lambda x: lax.reduce_window(jnp.cos(x), 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID"),
        C,
    ),
    "sums of constants in padded windows": (
        lambda x: lax.reduce_window(jnp.cos(x), 0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
        C,
    ),
    "windows of padding only": (
        lambda x: jnp.maximum(-5.0, lax.reduce_window(jnp.cos(x), -jnp.inf, lax.max, ONE, ONE, BORDER)),
        C,
    ),
    "windows of padding only, of zeros": (
        lambda x: jnp.maximum(-5.0, lax.reduce_window(x, -jnp.inf, lax.max, ONE, ONE, BORDER)),
        C,
    ),
    "padding by another number": (lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), constant_values=2.0), C),
    "plus a map": (lambda x: x + jnp.arange(25.0).reshape(1, 5, 5, 1), C),
    "constants that differ from place to place": (
        lambda x: jnp.cumsum(jnp.cos(x) + jnp.arange(25.0).reshape(1, 5, 5, 1), 2)[:, 1:].transpose(0, 2, 1, 3).max(1),
        C,
    ),
    "concatenate constants in space": (lambda x: jnp.concatenate([jnp.cos(x), jnp.exp(x).max(2, keepdims=True)], 2), C),
    "maps beside constants": (lambda x: jnp.concatenate([jnp.cos(x)[:, :4], (x + 1)[:, :1]], 1), C),
    "cumulative sum": (lambda x: jnp.cumsum(x, 1), C),
    "concatenate in space": (lambda x: jnp.concatenate([x, x * 2], 1), C),
}


@pytest.mark.parametrize("name", PER_CHANNEL)
def test_channels_that_move_stay_left_out(name):
    change, channels = PER_CHANNEL[name]
    program = through(change, weights(channels, 2))
    assert inputs_of_last(program) == channels // 2


WHOLE = {
    "sort over channels": (lambda x: jnp.sort(x, -1), "sort"),
    "an FFT": (lambda x: jnp.fft.fft(x, axis=-1).real, "fft"),
    "a cumulative sum over channels": (lambda x: jnp.cumsum(x, -1), ""),
    "a softmax over channels": (lambda x: jax.nn.softmax(x, -1), ""),
    "a reversal of channels": (lambda x: x[..., ::-1], ""),
    "a slice that cuts the site": (lambda x: jnp.concatenate([x[..., :4], x[..., :2]], -1), ""),
    "every second channel": (lambda x: jnp.repeat(x[..., ::2], 2, -1), ""),
    "groups of channels": (lambda x: x.reshape(B, 5, 5, 2, 3).sum(-1, keepdims=True).repeat(3, -1).reshape(MAPS), ""),
    "a gather": (lambda x: x[..., jnp.array([0, 5, 2, 2, 1, 3])], "gather"),
    "padded channels": (lambda x: jnp.pad(x[..., 1:], ((0, 0),) * 3 + ((0, 1),)), ""),
    "a mean over all": (lambda x: x - x.mean((1, 2, 3), keepdims=True), ""),
    "a loop": (lambda x: lax.fori_loop(0, 3, lambda _, x: x * 0.5, x), "scan"),
    "a condition": (lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), "cond"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_has_no_rule_gets_whole_arrays(name):
    change, primitive = WHOLE[name]
    program = through(change, weights(C, 2))
    assert inputs_of_last(program) is None
    explained = program.explain()
    assert not primitive or any(line.startswith(primitive) and "test_rules.py" in line for line in explained.whole)


@pytest.mark.parametrize("name", ["sort over channels", "an FFT"])
def test_explain_names_what_has_no_rule(name):
    change, primitive = WHOLE[name]
    text = str(through(change, weights(C, 2)).explain())
    assert f"no rule: {primitive} (test_rules.py:" in text
    assert f"whole again at {primitive} (test_rules.py:" in text


def test_squeeze_and_excitation_is_asked_for_kept_channels_only():
    def function(params, x, gates):
        x = gate(x, gates)
        return x * jax.nn.sigmoid(jax.nn.relu(x.mean((1, 2)) @ params[0]) @ params[1])[:, None, None]

    program = check(function, (weights(C, 2), weights(2, C)))
    first, second = program.explain([3]).layers
    assert first.inputs.count([3]) == second.outputs.count([3]) == 3


def two_sites(function, params, widths, sizes=(C, C)):
    """As `check`, of a function with two sites and gates side by side."""
    rng = np.random.default_rng(1)
    keep = [np.sort(rng.choice(size, width, replace=False)) for size, width in zip(sizes, widths, strict=True)]
    gates = np.zeros((B, sum(sizes)), np.float32)
    gates[:, keep[0]], gates[:, sizes[0] + keep[1]] = 1, rng.random((B, widths[1])) < 0.7
    x = weights(*MAPS)
    program = skip_closed(function, params, x, gates)
    out, wanted = jax.jit(lambda *args: (program(program.prepare(params, keep), *args), function(params, *args)))(
        x, gates
    )
    assert_close(out, wanted)
    return program


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_of_different_channels(sign):
    two_sites(lambda k, x, g: (gate(x, g[:, :C]) + sign * gate(jnp.sin(x), g[:, C:])) @ k, weights(C, 2), (2, 4))
    two_sites(lambda k, x, g: x - sign * gate(jnp.sin(x), g[:, :C]) - gate(x, g[:, C:]), (), (2, 4))


def test_what_absent_channels_become_is_computed_without_a_stop_at_nan():
    def function(kernel, x, gates):
        return (0.0 / gate(x, gates)) @ kernel

    with jax.debug_nans(True):
        program = skip_closed(function, weights(C, 2), jnp.ones(MAPS), jnp.ones((B, C)))
    assert program.explain([3]).layers[0].inputs.count([3]) == 3


def test_products_of_different_channels():
    program = two_sites(lambda k, x, g: (gate(x, g[:, :C]) * gate(jnp.sin(x), g[:, C:])) @ k, weights(C, 2), (2, 4))
    assert program.explain([2, 4]).layers[-1].inputs.count([2, 4]) == 2


def test_concatenated_channels_stay_left_out_constants_too():
    def function(k, x, g):
        joined = jnp.concatenate([gate(x, g[:, :C]), jnp.sin(x), jnp.cos(gate(x, g[:, C:]))], -1)
        return jax.nn.silu(joined + 1.0) @ k

    program = two_sites(function, weights(3 * C, 2), (2, 4))
    assert program.explain([2, 4]).layers[-1].inputs.count([2, 4]) == 2 + C + 4


def test_a_slice_along_the_edges_of_sites():
    def function(k, x, g):
        joined = jnp.exp(jnp.concatenate([gate(x, g[:, :C]), x[..., :2], gate(x, g[:, C:])], -1))
        first, rest = jnp.split(joined, [C], -1)
        return first @ k + rest[..., 2:] @ k + joined[..., C : C + 2] @ k[:2]

    program = two_sites(function, weights(C, 2), (2, 4))
    assert [layer.inputs and layer.inputs.count([2, 4]) for layer in program.explain([2, 4]).layers] == [2, 4, None]


def test_gates_upon_gates():
    program = two_sites(lambda k, x, g: gate(jax.nn.relu(gate(x @ k, g[:, :C])), g[:, C:]) @ k, weights(C, C), (2, 4))
    first, last = program.explain([2, 4]).layers
    assert first.outputs.count([2, 4]) == 2 and last.inputs.count([2, 4]) == 4


def test_maps_with_two_gates_are_computed_whole():
    program = two_sites(lambda k, x, g: gate(y := x @ k, g[:, :C]) @ k + gate(y, g[:, C:]) @ k, weights(C, C), (2, 4))
    assert program.explain([2, 4]).layers[0].outputs is None
    assert "read with other channels, by several gates" in str(program.explain())


def test_a_gaters_head_computes_kept_gates_only():
    def function(params, x, _):
        scores = x.mean((1, 2)) @ params[0]
        gates = jax.nn.sigmoid(scores)
        return gate(gate(x, gates[:, :C]) @ params[1], gates[:, C:]) @ params[1]

    program = skip_closed(function, (p := (weights(C, 2 * C), weights(C, C))), x := weights(*MAPS), None)
    head = program.explain([2, 4]).layers[0]
    assert head.outputs.count([2, 4]) == 6
    everything = program(program.prepare(p), x, None)
    assert_close(everything, function(p, x, None))
