"""Each primitive: what is left out, and that the result is that of the masked function."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gaternet_jax.gating import gate, skip_closed

C, B = 6, 2  # channels of the gated maps, images
KEEP = np.array([4, 1, 3])
RNG = np.random.default_rng(0)


def weights(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


CONV = ("NHWC", "HWIO", "NHWC")
MAPS = (B, 5, 5, C)


def check(function, params=(), maps=MAPS, open_gates=(1.0, 0.5, 1.0), atol=1e-5, dtype=jnp.float32):
    """Compares a function of (params, x, gates) with its program, which it returns."""
    x = weights(*maps).astype(dtype)
    channels = maps[-1]
    keep = KEEP if channels == C else np.arange(0, channels, 2)
    gates = jnp.zeros((maps[0], channels)).at[:, keep].set(jnp.resize(jnp.array(open_gates), len(keep)))
    program = skip_closed(function, params, x, gates)
    out, wanted = jax.jit(lambda *args: (program(program.prepare(params, [keep]), *args), function(params, *args)))(
        x, gates
    )
    np.testing.assert_allclose(out, wanted, atol=atol, rtol=1e-5)
    assert np.abs(np.asarray(wanted, np.float32)).max() > 0
    return program


def inputs_of_last(program):
    """How many channels the last product reads with three of six kept."""
    cut = program.explain([3]).layers[-1].inputs
    return None if cut is None else cut.count([3])


SHIFT = weights(C)
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

    tolerance = 0.2 if name == "cast" else 2e-5
    assert inputs_of_last(check(function, kernel, atol=tolerance)) == 3


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


CONVOLUTIONS = {
    "a kernel of 3x3": dict(kernel=(3, 3, C, 4)),
    "stride and dilation": dict(kernel=(3, 2, C, 4), window_strides=(2, 1), rhs_dilation=(1, 2)),
    "asymmetric padding": dict(kernel=(3, 3, C, 4), padding=((2, 0), (0, 1))),
    "no padding": dict(kernel=(3, 3, C, 4), padding="VALID"),
    "transposed": dict(kernel=(3, 3, C, 4), lhs_dilation=(2, 2)),
    "channels first": dict(kernel=(4, C, 3, 3), dimension_numbers=("NCHW", "OIHW", "NCHW")),
    "one dimension": dict(
        kernel=(3, C, 4), maps=(B, 5, C), window_strides=(1,), dimension_numbers=("NWC", "WIO", "NWC")
    ),
}


def varying(x):
    """Constants that differ from place to place."""
    return jnp.cos(x) * (1 + jnp.arange(x.shape[1])).reshape(1, -1, *[1] * (x.ndim - 2))


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        *itertools.product(CONVOLUTIONS, [jax.nn.relu, jnp.cos]),
        *itertools.product(["no padding", "asymmetric padding"], [varying]),
    ],
)
def test_convolution_loses_absent_inputs(name, activation):
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=CONV) | CONVOLUTIONS[name]
    kernel, maps = weights(*options.pop("kernel")), options.pop("maps", MAPS)
    if name == "transposed":
        options["padding"] = ((1, 1), (1, 1))

    def function(kernel, x, gates):
        x = activation(gate(x, gates))
        if options["dimension_numbers"][0] == "NCHW":
            x = x.transpose(0, 3, 1, 2)
        return lax.conv_general_dilated(x, kernel, **options)

    assert inputs_of_last(check(function, kernel, maps, atol=2e-5)) == 3


def outputs_of_first(program, widths=(3,)):
    cut = program.explain(list(widths)).layers[0].outputs
    return None if cut is None else cut.count(list(widths))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_convolution_computes_only_outputs_that_are_wanted(layout):
    numbers = (layout, "HWIO", layout)

    def function(params, x, gates):
        kernel, scale, shift = params
        x = x if layout == "NHWC" else x.transpose(0, 3, 1, 2)
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        x = x if layout == "NHWC" else x.transpose(0, 2, 3, 1)
        x = gate(jax.nn.relu(x * scale[None, None, None] + shift[None, None, None]), gates)
        return x.mean((1, 2)) @ jnp.ones((C, 2))

    assert outputs_of_first(check(function, (weights(3, 3, C, C), weights(C), weights(C)))) == 3


def test_depthwise_convolution_keeps_the_channel():
    def function(kernels, x, gates):
        y = lax.conv_general_dilated(
            gate(x, gates), kernels[0], (1, 1), "SAME", (1, 1), (2, 1), feature_group_count=C, dimension_numbers=CONV
        )
        return y @ kernels[1]

    program = check(function, (weights(3, 3, 1, C), weights(C, 2)))
    assert inputs_of_last(program) == 3 and outputs_of_first(program) == 3


@pytest.mark.parametrize("activation", [jnp.cos, varying])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_depthwise_convolution_of_constants(padding, activation):
    def function(kernels, x, gates):
        y = activation(gate(x, gates))
        return (
            lax.conv_general_dilated(y, kernels[0], (1, 1), padding, feature_group_count=C, dimension_numbers=CONV)
            @ kernels[1]
        )

    program = check(function, (weights(3, 3, 1, C), weights(C, 2)))
    assert inputs_of_last(program) == 3


def test_depthwise_convolution_before_a_gate():
    def function(kernels, x, gates):
        y = lax.conv_general_dilated(x, kernels[0], (2, 2), "SAME", feature_group_count=C, dimension_numbers=CONV)
        return gate(jax.nn.relu(y), gates) @ kernels[1]

    assert outputs_of_first(check(function, (weights(3, 3, 1, C), weights(C, 2)))) == 3


def test_grouped_convolution_is_whole():
    def function(kernel, x, gates):
        y = lax.conv_general_dilated(
            gate(x, gates), kernel, (1, 1), "SAME", feature_group_count=2, dimension_numbers=CONV
        )
        return gate(y, gates)

    def keep_both(kernel, x, gates):
        return function(kernel, x, gates)

    program = skip_closed(keep_both, (k := weights(3, 3, 3, C)), jnp.zeros(MAPS), jnp.zeros((B, C)))
    x, gates = weights(*MAPS), jnp.zeros((B, C)).at[:, KEEP].set(1)
    np.testing.assert_allclose(program(program.prepare(k, [KEEP, KEEP]), x, gates), keep_both(k, x, gates), atol=1e-5)
    layer = program.explain().layers[0]
    assert layer.inputs is None and layer.outputs is None
    assert layer.macs == B * 25 * 9 * 3 * C


@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.cos], ids=["zeros", "constants"])
def test_convolution_by_a_gated_kernel_loses_what_is_absent_of_it(activation):
    def inputs(maps, x, gates):
        kernel = activation(gate(x, gates)).transpose(0, 1, 3, 2)
        return lax.conv_general_dilated(maps, kernel, (1, 1), "SAME", dimension_numbers=CONV)

    def outputs(maps, x, gates):
        return lax.conv_general_dilated(maps, gate(x, gates), (1, 1), "SAME", dimension_numbers=CONV) @ jnp.ones((C, 2))

    assert inputs_of_last(check(inputs, weights(2, 5, 5, C), (3, 3, 4, C), atol=2e-5)) == 3
    assert inputs_of_last(check(outputs, weights(2, 5, 5, 4), (3, 3, 4, C), atol=2e-5)) == 3


def test_convolution_by_a_kernel_that_depends_on_the_images():
    def function(_, x, gates):
        kernel = x.mean(0)[:3, :3, :, None]
        return lax.conv_general_dilated(jnp.cos(gate(x, gates)), kernel, (1, 1), "SAME", dimension_numbers=CONV)

    check(function, atol=1e-4)


PRODUCTS = {
    "constants": lambda k, x: jnp.cos(x) @ k[0],
    "a kernel on the left": lambda k, x: lax.dot_general(k[1], x[:, 0, 0], (((1,), (1,)), ((), ()))),
    "two contracted axes": lambda k, x: jnp.einsum("bhwc,wcd->bhd", jnp.cos(x), k[2]),
    "einsum over a batch axis": lambda k, x: jnp.einsum("bhwc,bhwd->bcd", x, x[..., :1] * 0 + 1.0).sum(-1) @ k[0],
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    kernels = weights(C, 2), weights(4, C), weights(5, C, 3)
    check(lambda k, x, gates: PRODUCTS[name](k, gate(x, gates)), kernels, atol=1e-4)


def test_attention_like_products_of_gated_values():
    def function(kernel, x, gates):
        tokens = gate(x.reshape(B, 25, C), gates)
        scores = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", tokens, tokens), -1)
        return jnp.einsum("bqk,bkc->bqc", scores, tokens) @ kernel

    program = check(function, weights(C, 2), atol=1e-4)
    assert [layer.inputs and layer.inputs.count([3]) for layer in program.explain().layers] == [3, None, 3]


def test_batch_norm_is_folded_into_the_convolution():
    def function(params, x, gates):
        kernel, mean, scale, shift = params
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=CONV)
        x = (x - mean[None, None, None]) * scale[None, None, None] + shift[None, None, None]
        return gate(jax.nn.relu(x), gates)

    params = (weights(3, 3, C, C), weights(C), weights(C), weights(C))
    program = check(function, params, atol=2e-5)
    names = [equation.primitive.name for equation in remaining(program, params)]
    assert "mul" not in names, "BatchNorm's is in the kernel; the gate's is within the gate"
    assert names.count("conv_general_dilated") == 1


def test_what_is_folded_is_computed_in_its_widest_type():
    def function(params, x, gates):
        maps = (x.astype(jnp.bfloat16) @ params[0]).astype(jnp.float32)
        return gate((maps * 2 + params[1][None]).astype(jnp.bfloat16), gates)

    params = -0.25 * jnp.eye(3, dtype=jnp.bfloat16), jnp.full(3, 0.501)  # 0.501 - 0.5; in bfloat16 0.5 or 0.504
    program = skip_closed(function, params, x := jnp.ones((1, 3)), gates := jnp.ones((1, 3)))
    out = program(program.prepare(params, [[2, 0]]), x, gates)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), [[0.001, 0, 0.001]], rtol=1e-2)


def remaining(program, params, maps=MAPS):
    """The operations that are left for each batch."""
    prepared = jax.eval_shape(lambda: program.prepare(params, [KEEP]))
    closed = jax.make_jaxpr(program)(prepared, jnp.zeros(maps), jnp.zeros((B, C)))
    return closed.eqns[0].params["jaxpr"].eqns


def test_a_convolution_that_others_read_is_not_computed_twice():
    def function(params, x, gates):
        x = lax.conv_general_dilated(x, params[0], (1, 1), "SAME", dimension_numbers=CONV)
        return gate(x * params[1][None, None, None], gates) + x

    params = (weights(3, 3, C, C), weights(C))
    names = [equation.primitive.name for equation in remaining(check(function, params), params)]
    assert names.count("conv_general_dilated") == 1


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
    np.testing.assert_allclose(out, wanted, atol=2e-5, rtol=1e-5)
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
    np.testing.assert_allclose(everything, function(p, x, None), atol=1e-5)
