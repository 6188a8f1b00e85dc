import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax import build_model
from gaternet_jax.config import default
from gaternet_jax.errors import UserError
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.training import objective
from tests.helpers import model_config


@pytest.fixture(scope="module")
def model():
    return build_model(model_config(gating="all"))


@pytest.fixture(scope="module")
def gates(model):
    size = sum(site.size for site in model.gate_sites)
    return jax.random.uniform(jax.random.key(0), (6, size))


def gate_loss(model, **fields):
    config = default().loss
    config.update(fields)
    return objective.make_gate_loss(config, model.gate_sites, MacCounter(model, 16))


def test_cross_entropy():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 4)), random.integers(0, 4, 6)
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -log_probability[np.arange(6), labels]
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    np.testing.assert_allclose(objective.cross_entropy(logits, labels), expected, rtol=1e-5)
    smoothed = 0.9 * expected - 0.1 * log_probability.mean(-1)
    np.testing.assert_allclose(objective.cross_entropy(logits, labels, 0.1), smoothed, rtol=1e-5)


def test_l1_is_lambda_times_the_mean_gate(model, gates):
    loss = gate_loss(model, gate="l1", gate_weight=0.3)
    np.testing.assert_allclose(loss(gates), 0.3 * np.abs(gates).sum() / gates.size, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(gates), np.full(gates.shape, 0.3 / gates.size), rtol=1e-5)


def test_target_overall(model, gates):
    loss = gate_loss(model, gate="target", gate_weight=2.0, gate_target=0.3)
    np.testing.assert_allclose(loss(gates), 2 * (np.mean(gates) - 0.3) ** 2, rtol=1e-5)


def test_target_per_site(model, gates):
    loss = gate_loss(model, gate="target", gate_weight=2.0, gate_target=0.3, gate_target_scope="site")
    distances = [(np.mean(gates[:, site.gates]) - 0.3) ** 2 for site in model.gate_sites]
    np.testing.assert_allclose(loss(gates), 2 * np.mean(distances), rtol=1e-5)


def test_macs_is_the_squared_distance_to_the_budget(model, gates):
    loss = gate_loss(model, gate="macs", gate_weight=3.0, gate_target=0.4)
    fraction = MacCounter(model, 16).fraction(gates).mean()
    np.testing.assert_allclose(loss(gates), 3 * (fraction - 0.4) ** 2, rtol=1e-5)
    assert (jax.grad(loss)(gates) > 0).all() == bool(fraction > 0.4)


def test_a_budget_that_closing_all_gates_does_not_reach_is_refused(model):
    macs = MacCounter(model, 16)
    closed = jnp.zeros((1, sum(site.size for site in model.gate_sites)))
    assert macs.least == pytest.approx(float(macs.fraction(closed)[0])) and 0.03 < macs.least < 0.2
    with pytest.raises(
        UserError, match=rf"loss\.gate_target=0\.03 cannot be reached: .* {macs.least:.4f} of the dense"
    ):
        gate_loss(model, gate="macs", gate_target=0.03)
    gate_loss(model, gate="target", gate_target=0.03)  # of gates, not of work
    gate_loss(model, gate="macs", gate_target=macs.least + 1e-3)


def test_plain_model_has_no_gate_term():
    plain = build_model(model_config(gating="none"))
    for gate in ("l1", "target", "macs"):
        assert float(gate_loss(plain, gate=gate)(jnp.zeros((2, 0)))) == 0


def test_cross_entropy_of_bfloat16_logits_is_float32():
    assert objective.cross_entropy(jnp.zeros((2, 4), jnp.bfloat16), jnp.zeros(2, jnp.int32)).dtype == jnp.float32
