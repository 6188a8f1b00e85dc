import jax
import jax.numpy as jnp
import numpy as np

from gaternet_jax import losses
from gaternet_jax.config import default
from gaternet_jax.models.gaternet import Outputs


def test_training_loss_is_cross_entropy_plus_lambda_times_mean_gate():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 4)), random.integers(0, 4, 6)
    gates = random.uniform(size=(6, 5))
    config = default().loss
    config.gate_weight = 0.3
    outputs = Outputs(jnp.asarray(logits, jnp.float32), jnp.asarray(gates, jnp.float32), jnp.zeros((6, 5)))
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(probability[np.arange(6), labels]).mean() + 0.3 * np.abs(gates).sum() / gates.size
    np.testing.assert_allclose(losses.training_loss(outputs, jnp.asarray(labels), config), expected, rtol=1e-5)
    gradient = jax.grad(lambda g: losses.training_loss(outputs._replace(gates=g), jnp.asarray(labels), config))
    np.testing.assert_allclose(gradient(outputs.gates), np.full((6, 5), 0.3 / 30), rtol=1e-5)


def test_plain_model_has_no_gate_term():
    outputs = Outputs(jnp.zeros((2, 4)), jnp.zeros((2, 0)), jnp.zeros((2, 0)))
    loss = losses.training_loss(outputs, jnp.zeros(2, jnp.int32), default().loss)
    np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)


def test_cross_entropy_of_bfloat16_logits_is_float32():
    assert losses.cross_entropy(jnp.zeros((2, 4), jnp.bfloat16), jnp.zeros(2, jnp.int32)).dtype == jnp.float32
