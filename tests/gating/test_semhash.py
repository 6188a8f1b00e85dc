import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax.gating import semhash


def test_saturating_sigmoid_reaches_zero_and_one():
    scores = jnp.array([-10.0, -2.0, 0.0, 2.0, 10.0])
    sigmoid = 1 / (1 + np.exp(-np.asarray(scores, np.float64)))
    expected = np.clip(1.2 * sigmoid - 0.1, 0, 1)
    np.testing.assert_allclose(semhash.saturating_sigmoid(scores), expected, atol=1e-6)
    assert expected[0] == 0.0 and expected[-1] == 1.0


def test_score_of_zero_opens_the_gate_and_a_slightly_negative_one_closes_it():
    gates = semhash.binary_gates(jnp.array([[0.0, -1e-3, 1e-3, -5.0, 5.0]]))
    np.testing.assert_array_equal(gates, [[1, 0, 1, 0, 1]])


def test_straight_through_gradient_equals_its_formula():
    scores = jnp.linspace(-4, 4, 81).reshape(1, -1)
    gradient = jax.grad(lambda s: semhash.binary_gates(s).sum())(scores)
    sigmoid = 1 / (1 + np.exp(-np.asarray(scores, np.float64)))
    values = 1.2 * sigmoid - 0.1
    expected = np.where((values > 0) & (values < 1), 1.2 * sigmoid * (1 - sigmoid), 0.0)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert (expected == 0).any() and (expected > 0.29).any()


@pytest.fixture(scope="module")
def sampled():
    """Gates of 4,000 samples whose 50 scores are all 0.3."""
    return np.asarray(semhash.sampled_gates(jnp.full((4000, 50), 0.3), *jax.random.split(jax.random.key(7))))


def test_mixing_is_per_sample_with_frequency_one_half(sampled):
    binary = np.isin(sampled, (0.0, 1.0))
    # Real-valued gates saturate at exactly 0 or 1 for |s + e| > 2.4 only, so a real-valued sample is never all binary.
    all_binary = binary.all(axis=1)
    assert abs(all_binary.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)
    assert (binary[~all_binary].mean(axis=1) < 0.3).all()


def test_noise_is_standard_normal_per_gate(sampled):
    binary = sampled[np.isin(sampled, (0.0, 1.0)).all(axis=1)]
    probability = 0.6179  # of 0.3 + e >= 0, e ~ N(0, 1)
    assert abs(binary.mean() - probability) < 4 * 0.5 / np.sqrt(binary.size)
    per_gate = binary.mean(axis=0)
    assert per_gate.std() < 3 * 0.5 / np.sqrt(len(binary)), "gates of a sample draw their own noise"


def test_gradients_of_binary_and_real_samples_are_the_same_function_of_the_noisy_score():
    scores, key = jnp.zeros((2000, 3)), jax.random.key(1)
    gates = np.asarray(semhash.sampled_gates(scores, *jax.random.split(key)))
    gradient = np.asarray(jax.grad(lambda s: semhash.sampled_gates(s, *jax.random.split(key)).sum())(scores))
    noisy = np.asarray(jax.random.normal(jax.random.split(key)[0], scores.shape), np.float64)
    sigmoid = 1 / (1 + np.exp(-noisy))
    inside = np.abs(1.2 * sigmoid - 0.6) < 0.4999
    expected = np.where(inside, 1.2 * sigmoid * (1 - sigmoid), 0.0)
    away_from_the_clip = np.abs(np.abs(1.2 * sigmoid - 0.6) - 0.5) > 1e-3
    np.testing.assert_allclose(gradient[away_from_the_clip], expected[away_from_the_clip], atol=1e-6)
    assert np.isin(gates, (0.0, 1.0)).all(axis=1).any()


def test_types_and_shapes():
    gates = semhash.sampled_gates(jnp.zeros((4, 6)), *jax.random.split(jax.random.key(0)))
    chex.assert_shape(gates, (4, 6))
    chex.assert_type(gates, jnp.float32)
    assert float(gates.min()) >= 0 and float(gates.max()) <= 1


def test_sem_hash_samples_with_a_key_only():
    scores, key = jnp.linspace(-2, 2, 12).reshape(4, 3), jax.random.key(3)
    np.testing.assert_array_equal(semhash.sem_hash(scores), semhash.binary_gates(scores))
    sampled = semhash.sampled_gates(scores, *jax.random.split(key))
    np.testing.assert_array_equal(semhash.sem_hash(scores, key), sampled)
    assert not np.array_equal(sampled, semhash.binary_gates(scores))


def test_sem_hash_takes_one_sample_as_a_batch_of_one():
    scores, keys = jnp.linspace(-2, 2, 12).reshape(4, 3), jax.random.split(jax.random.key(3), 4)
    for gates in (jax.vmap(semhash.sem_hash)(scores, keys), jnp.stack(list(map(semhash.sem_hash, scores, keys)))):
        expected = [semhash.sem_hash(row[None], key)[0] for row, key in zip(scores, keys, strict=True)]
        np.testing.assert_array_equal(gates, jnp.stack(expected))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_a_score_of_zero_opens_the_gate_in_any_type(dtype):
    gates = semhash.sem_hash(jnp.array([[-1, 0, 2]], dtype))
    np.testing.assert_array_equal(gates, [[0, 1, 1]])
    assert gates.dtype == jnp.float32
