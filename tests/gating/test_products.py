"""Convolutions and matrix products: what they lose, and what is folded into their kernels."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gaternet_jax.gating import gate, skip_closed
from tests.arrays import assert_close, weights
from tests.gating.test_rules import CONV, KEEP, MAPS, B, C, check, inputs_of_last

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

    assert inputs_of_last(check(function, kernel, maps)) == 3


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
    assert_close(program(program.prepare(k, [KEEP, KEEP]), x, gates), keep_both(k, x, gates))
    layer, (before, after) = program.explain().layers[0], program.explain().gates
    assert layer.inputs is None and layer.outputs is None
    assert layer.macs == B * 25 * 9 * 3 * C
    assert "whole again at conv_general_dilated" in before[1]
    assert "what is gated comes from conv_general_dilated" in after[1]


@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.cos], ids=["zeros", "constants"])
def test_convolution_by_a_gated_kernel_loses_what_is_absent_of_it(activation):
    def inputs(maps, x, gates):
        kernel = activation(gate(x, gates)).transpose(0, 1, 3, 2)
        return lax.conv_general_dilated(maps, kernel, (1, 1), "SAME", dimension_numbers=CONV)

    def outputs(maps, x, gates):
        return lax.conv_general_dilated(maps, gate(x, gates), (1, 1), "SAME", dimension_numbers=CONV) @ jnp.ones((C, 2))

    assert inputs_of_last(check(inputs, weights(2, 5, 5, C), (3, 3, 4, C))) == 3
    assert inputs_of_last(check(outputs, weights(2, 5, 5, 4), (3, 3, 4, C))) == 3


def test_convolution_by_a_kernel_that_depends_on_the_images():
    def function(_, x, gates):
        kernel = x.mean(0)[:3, :3, :, None]
        return lax.conv_general_dilated(jnp.cos(gate(x, gates)), kernel, (1, 1), "SAME", dimension_numbers=CONV)

    check(function)


PRODUCTS = {
    "constants": lambda k, x: jnp.cos(x) @ k[0],
    "a kernel on the left": lambda k, x: lax.dot_general(k[1], x[:, 0, 0], (((1,), (1,)), ((), ()))),
    "two contracted axes": lambda k, x: jnp.einsum("bhwc,wcd->bhd", jnp.cos(x), k[2]),
    "einsum over a batch axis": lambda k, x: jnp.einsum("bhwc,bhwd->bcd", x, x[..., :1] * 0 + 1.0).sum(-1) @ k[0],
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    kernels = weights(C, 2), weights(4, C), weights(5, C, 3)
    check(lambda k, x, gates: PRODUCTS[name](k, gate(x, gates)), kernels)


def test_attention_like_products_of_gated_values():
    def function(kernel, x, gates):
        tokens = gate(x.reshape(B, 25, C), gates)
        scores = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", tokens, tokens), -1)
        return jnp.einsum("bqk,bkc->bqc", scores, tokens) @ kernel

    program = check(function, weights(C, 2))
    assert [layer.inputs and layer.inputs.count([3]) for layer in program.explain().layers] == [3, None, 3]


def test_batch_norm_is_folded_into_the_convolution():
    def function(params, x, gates):
        kernel, mean, scale, shift = params
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=CONV)
        x = (x - mean[None, None, None]) * scale[None, None, None] + shift[None, None, None]
        return gate(jax.nn.relu(x), gates)

    params = (weights(3, 3, C, C), weights(C), weights(C), weights(C))
    program = check(function, params)
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
