import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gaternet_jax.gating import count_macs, gate
from gaternet_jax.models.build import abstract_model
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.macs import MacCounter
from tests.gating.foreign import foreign
from tests.helpers import model_config
from tests.models.test_macs import PUBLISHED, SMALL


def counts(size, **overrides):
    """The count of a backbone by tracing, and by its table of sites."""
    model = abstract_model(model_config(**overrides))
    model.eval()
    graphdef, params, stats = split_model(model)
    shapes = (1, size, size, 3), (1, sum(site.size for site in model.gate_sites))
    images, gates = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    traced = count_macs(
        lambda arrays, *args: merge_model(graphdef, *arrays).backbone(*args), (params, stats), images, gates
    )
    return traced, MacCounter(model, size)


@pytest.mark.parametrize("gating", [pytest.param("residual", marks=pytest.mark.slow), "all"])
@pytest.mark.parametrize("family", SMALL)
def test_count_is_that_of_the_table_of_sites(family, gating):
    name, width = SMALL[family]
    traced, table = counts(16, backbone=name, width=width, gating=gating)
    assert traced.dense == table.dense
    assert [layer.macs for layer in traced.layers] == [
        layer.macs for layer in table.layers if layer.name.startswith("backbone.")
    ]
    gates = jnp.asarray(np.random.default_rng(0).random((3, sum(site.size for site in traced.sites))), jnp.float32)
    gates = gates.at[1].set(1).at[2].set(0)
    np.testing.assert_allclose(traced.count(gates), table.count(gates), rtol=1e-5)
    assert traced.fraction(gates)[1] == pytest.approx(1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_plain_networks_have_the_published_count(name):
    large = name in ("resnet18", "resnet50")
    traced, table = counts(
        224 if large else 32, backbone=name, width=0, gating="none", num_classes=1000 if large else 10
    )
    assert traced.dense == table.dense
    np.testing.assert_allclose(traced.dense, PUBLISHED[name], rtol=0.01)
    np.testing.assert_array_equal(traced.fraction(jnp.zeros((2, 0))), 1.0)


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
    np.testing.assert_allclose(jax.grad(lambda gates: macs.count(gates).sum())(jnp.ones((1, 4))), np.full((1, 4), 8))


def test_a_network_of_parameters_only_counts_nothing():
    macs = count_macs(lambda kernel, x: x + (kernel @ kernel).sum(), jnp.zeros((3, 3)), jnp.zeros((1, 3)))
    assert macs.dense == 0
    np.testing.assert_array_equal(macs.fraction(jnp.zeros((2, 0))), 1.0)


def test_gates_of_another_network_are_refused():
    macs, _ = counts(16, backbone="resnet8", gating="all")
    with pytest.raises(ValueError, match=r"56 gates, so that gates are \[batch, 56\]; got \[2, 55\]"):
        macs.fraction(jnp.ones((2, 55)))
