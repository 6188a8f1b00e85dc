import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gaternet_jax.errors import UserError
from gaternet_jax.gating import count_macs, gate, skip_closed
from tests.gating.foreign import foreign

CONV = ("NHWC", "HWIO", "NHWC")


def test_groups_and_products_are_counted_as_the_compiler_does():
    """Without padding, for which XLA counts nothing, and without other operations, which it counts too."""
    kernels = [
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 3, 4, 8), (3, 3, 1, 8), (2, 2, 2, 12), (12, 5))
    ]

    def function(kernels, x):
        for kernel, groups, stride in ((kernels[0], 1, 2), (kernels[1], 8, 1), (kernels[2], 4, 1)):
            x = lax.conv_general_dilated(
                x, kernel, (stride, 1), "VALID", feature_group_count=groups, dimension_numbers=CONV
            )
        return jnp.einsum("bhwc,cd->bhwd", x, kernels[3])

    x = jax.ShapeDtypeStruct((1, 20, 12, 4), jnp.float32)
    counted = count_macs(function, kernels, x).dense
    assert counted == 9 * 10 * 9 * 32 + 7 * 8 * 9 * 8 + 6 * 7 * 4 * 2 * 12 + 6 * 7 * 60
    assert jax.jit(function).lower(kernels, x).compile().cost_analysis()["flops"] == 2 * counted


def test_a_foreign_network_by_hand():
    function, state, num_gates = foreign()
    macs = count_macs(function, state, jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, num_gates)))
    layers = {layer.name: layer.macs for layer in macs.layers}
    assert layers == {
        "stem": 64 * 27 * 12,
        "depthwise": 64 * 9 * 12,
        "project": 64 * 12 * 8,
        "squeeze": 8 * 4,
        "excite": 4 * 8,
        "left": 64 * 8 * 4,
        "right": 64 * 9 * 8 * 8,
        "grouped": 64 * 9 * 6 * 8,
        "hidden": 16 * 8 * 16,
        "head": 16 * 5,
    }
    gates = np.ones((1, num_gates), np.float32)
    gates[0, :3] = 0  # a quarter of the stem, which the depthwise convolution keeps apart
    saved = macs.dense - float(macs.count(jnp.asarray(gates))[0])
    np.testing.assert_allclose(saved, (layers["stem"] + layers["depthwise"]) / 4, rtol=1e-3)


def test_a_gate_saves_its_own_work_and_its_share_of_what_reads_it():
    def function(params, x, gates):
        return gate(x @ params["first"], gates) @ params["second"]

    params = {"first": jnp.zeros((5, 4)), "second": jnp.zeros((4, 3))}
    macs = count_macs(function, params, jnp.zeros((1, 5)), jnp.zeros((1, 4)))
    assert macs.dense == 32 and [layer.name for layer in macs.layers] == ["first", "second"]
    np.testing.assert_allclose(macs.count(jnp.array([[1.0, 0, 0, 1], [0.5, 0, 0, 0]])), [16, 4])
    assert (macs.left([2]), macs.left([0.5]), macs.left([0])) == (16, 4, 0)
    np.testing.assert_allclose(jax.grad(lambda gates: macs.count(gates).sum())(jnp.ones((1, 4))), np.full((1, 4), 8))


def test_loops_and_branches_are_counted():
    def function(kernels, x, gates):
        x = lax.scan(lambda x, kernel: (gate(jax.nn.relu(x @ kernel), gates, "layer"), None), x, kernels)[0]
        x = lax.cond(x.sum() > 0, lambda x: x @ kernels[0] @ kernels[1], lambda x: x @ kernels[0], x)
        return lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ kernels[0], x)

    macs = count_macs(function, jnp.zeros((5, 4, 4)), jnp.zeros((1, 4)), jnp.zeros((1, 4)))
    counted = [(layer.name.partition(" ")[0], layer.macs) for layer in macs.layers]
    assert counted == [("scan", 5 * 16), ("cond", 2 * 16), ("while", 16)]
    assert macs.dense == 8 * 16


def test_a_network_of_parameters_only_counts_nothing():
    macs = count_macs(lambda kernel, x: x + (kernel @ kernel).sum(), jnp.zeros((3, 3)), jnp.zeros((1, 3)))
    assert macs.dense == 0
    np.testing.assert_array_equal(macs.fraction(jnp.zeros((2, 0))), 1.0)


def test_gates_of_another_network_are_refused():
    macs = count_macs(lambda x, gates: gate(x, gates), jnp.zeros((1, 56)), jnp.zeros((1, 56)))
    with pytest.raises(UserError, match=r"56 gates, so that gates are \[batch, 56\]; got \[2, 55\]"):
        macs.fraction(jnp.ones((2, 55)))
    np.testing.assert_array_equal(macs.fraction(jnp.ones((2, 56))), 1.0)  # of nothing


@pytest.mark.parametrize("widths", [[], [2, 2], [5], [-1]])
def test_widths_that_sites_cannot_have_are_refused(widths):
    example = jnp.zeros((2, 4)), jnp.zeros((1, 2)), jnp.zeros((1, 4))
    function = lambda kernel, x, gates: gate(x @ kernel, gates)  # noqa: E731
    for refused in (count_macs(function, *example).left, skip_closed(function, *example).explain):
        with pytest.raises(UserError, match=r"channels that the sites keep, of \[4\]; got \["):
            refused(widths)
