import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax.config import default
from gaternet_jax.training.optimizer import describe_change, kernels_only, learning_rate_schedule, make_optimizer


def config(**fields):
    optimizer = default().optimizer
    optimizer.update(fields)
    return optimizer


def test_cosine_with_warmup():
    schedule = learning_rate_schedule(
        config(schedule="cosine", learning_rate=0.4, warmup_epochs=2.0), 10, num_steps=120
    )
    np.testing.assert_allclose([schedule(step) for step in (0, 5, 10, 20)], [0, 0.1, 0.2, 0.4], rtol=1e-6)
    np.testing.assert_allclose(schedule(70), 0.2, rtol=1e-5)
    np.testing.assert_allclose(schedule(120), 0.0, atol=1e-7)
    assert schedule(119) > 0


def test_steps_fall_at_fractions_of_the_run():
    fields = config(schedule="steps", learning_rate=1.0, warmup_epochs=1.0, decay_at=(0.5, 0.75), decay_factor=0.1)
    schedule = learning_rate_schedule(fields, steps_per_epoch=10, num_steps=100)
    rates = [float(schedule(step)) for step in (10, 49, 51, 74, 76, 99)]
    np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "steps"])
def test_the_last_rate_holds_after_the_schedule(kind):
    fields = dict(schedule=kind, learning_rate=0.4, warmup_epochs=1.0)
    short = learning_rate_schedule(config(**fields), steps_per_epoch=10, num_steps=40)
    held = learning_rate_schedule(config(**fields, schedule_epochs=4.0), steps_per_epoch=10, num_steps=80)
    np.testing.assert_array_equal([held(step) for step in range(40)], [short(step) for step in range(40)])
    np.testing.assert_array_equal([held(step) for step in (40, 60, 79)], short(39))
    assert held(79) > 0


def test_what_becomes_of_the_rate_of_a_run_that_goes_on_is_told():
    before, now = default(), default()
    before.train.epochs, now.train.epochs = 4.0, 8.0
    before.optimizer.schedule = now.optimizer.schedule = "cosine"
    assert describe_change(before, before, 10, 40) == ""
    assert describe_change(before, now, 10, 40) == (
        "the schedule of 4 epochs becomes one of 8: the learning rate goes from 0.00027 to 0.061. To hold its last "
        "rate instead: --config.optimizer.schedule_epochs=4"
    )
    now.optimizer.schedule_epochs = 4.0
    assert describe_change(before, now, 10, 40) == "the learning rate stays at 0.00027 after epoch 4"
    assert describe_change(now, now, 10, 60) == ""


def test_no_warmup_starts_at_the_peak():
    schedule = learning_rate_schedule(config(learning_rate=0.3, warmup_epochs=0.0), steps_per_epoch=10, num_steps=100)
    np.testing.assert_allclose(schedule(0), 0.3)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_and_decay_of_kernels_only(nesterov):
    """Against PyTorch's formulas: d = g + w p;  m = mu m + d;  p -= lr m, or with Nesterov lr (d + mu m)."""
    optimizer = make_optimizer(config(momentum=0.9, nesterov=nesterov, weight_decay=0.1), lambda _: 0.5)
    params = {"conv": {"kernel": jnp.array([1.0, -2.0])}, "bn": {"scale": jnp.array([3.0]), "bias": jnp.array([1.0])}}
    state = optimizer.init(params)
    expected = {"kernel": np.array([1.0, -2.0]), "scale": np.array([3.0]), "bias": np.array([1.0])}
    momentum = dict.fromkeys(expected, 0.0)
    for step in range(3):
        gradient = 0.1 * (step + 1)
        gradients = {
            "conv": {"kernel": jnp.full(2, gradient)},
            "bn": {"scale": jnp.full(1, gradient), "bias": jnp.full(1, gradient)},
        }
        updates, state = optimizer.update(gradients, state, params)
        params = {m: {n: params[m][n] + updates[m][n] for n in params[m]} for m in params}
        for name in expected:
            direction = gradient + (0.1 * expected[name] if name == "kernel" else 0.0)
            momentum[name] = 0.9 * momentum[name] + direction
            expected[name] = expected[name] - 0.5 * (direction + 0.9 * momentum[name] if nesterov else momentum[name])
    np.testing.assert_allclose(params["conv"]["kernel"], expected["kernel"], rtol=1e-5)
    np.testing.assert_allclose(params["bn"]["scale"], expected["scale"], rtol=1e-5)
    np.testing.assert_allclose(params["bn"]["bias"], expected["bias"], rtol=1e-5)


@pytest.mark.parametrize("leaf", ["scale", "bias", "kernel"])
def test_mask(leaf):
    assert kernels_only({"module": {leaf: jnp.zeros(1)}})["module"][leaf] == (leaf == "kernel")


def test_gradient_is_clipped_to_a_norm_before_anything_else():
    optimizer = make_optimizer(config(clip_norm=1.0, momentum=0.0, weight_decay=0.1), lambda _: 1.0)
    params = {"kernel": jnp.array([10.0, 0.0])}
    for gradient, expected in (([3.0, 4.0], [0.6 + 1.0, 0.8]), ([0.3, 0.4], [0.3 + 1.0, 0.4])):
        updates, _ = optimizer.update({"kernel": jnp.array(gradient)}, optimizer.init(params), params)
        np.testing.assert_allclose(updates["kernel"], -np.array(expected), rtol=1e-5)


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.0])
def test_the_gater_has_its_own_rate(rate):
    params = {"backbone": {"kernel": jnp.array([2.0])}, "gater": {"kernel": jnp.array([2.0])}}
    gradients = {"backbone": {"kernel": jnp.array([0.3])}, "gater": {"kernel": jnp.array([0.3])}}
    optimizer = make_optimizer(config(gater_rate=rate, momentum=0.9, weight_decay=0.1), lambda _: 0.5)
    state = optimizer.init(params)
    for factor in (1.0, 1.9):
        updates, state = optimizer.update(gradients, state, params)
        np.testing.assert_allclose(updates["backbone"]["kernel"], [-0.5 * 0.5 * factor], rtol=1e-6)
        np.testing.assert_allclose(updates["gater"]["kernel"], [-0.5 * 0.5 * factor * rate], rtol=1e-6)
