import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gaternet_jax as gx

GATES = np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 0.0]], np.float32)


@pytest.fixture(scope="module")
def counter():
    """Of a product of 2 x 3, gated, and one of 3 x 1: each gate is worth a third of both."""
    network = lambda kernels, x, gates: gx.gate(x @ kernels[0], gates) @ kernels[1]  # noqa: E731
    return gx.count_macs(network, (jnp.ones((2, 3)), jnp.ones((3, 1))), jnp.ones((1, 2)), jnp.ones((1, 3)))


def test_values(counter):
    gates = jnp.asarray(GATES)
    assert gx.losses.gate_l1(gates) == pytest.approx(1 / 3)
    assert gx.losses.gate_target(gates, 0.5) == pytest.approx((1 / 3 - 1 / 2) ** 2)
    sites = [slice(0, 1), slice(1, 3)]  # half, and a quarter of them are open
    assert gx.losses.gate_target(gates, 0.5, sites) == pytest.approx((0 + 0.25**2) / 2)
    assert gx.losses.gate_macs(gates, counter, 0.5) == pytest.approx((1 / 3 - 1 / 2) ** 2)


def test_gradients_pull_towards_the_target(counter):
    gates = jnp.asarray(GATES)
    for loss in (
        lambda gates: gx.losses.gate_target(gates, 0.5),
        lambda gates: gx.losses.gate_macs(gates, counter, 0.5),
    ):
        np.testing.assert_allclose(jax.grad(loss)(gates), np.full((2, 3), 2 * (1 / 3 - 1 / 2) / 6), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(gx.losses.gate_l1)(gates), np.full((2, 3), 1 / 6), rtol=1e-6)


def test_gates_of_another_network_are_refused(counter):
    with pytest.raises(ValueError, match=r"the network has 3 gates, so that gates are \[batch, 3\]; got \[2, 4\]"):
        gx.losses.gate_macs(jnp.ones((2, 4)), counter, 0.5)


def test_without_gates_losses_are_numbers():
    gates = jnp.zeros((2, 0))
    assert (gx.losses.gate_l1(gates), gx.losses.gate_target(gates, 0.5)) == (0, 0.25)
