"""Dropout in a backbone: keys of the call and the layer, no variables, nothing drawn in evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gaternet_jax.config import default
from gaternet_jax.models.backbone import Backbone
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.nn.keys import InitKeys, ShapesOnly
from gaternet_jax.training.optimizer import make_optimizer
from gaternet_jax.training.state import init_state
from gaternet_jax.training.step import make_train_step
from tests.helpers import backbone_options

OPTIONS = backbone_options(channels=1, num_classes=3, rngs=None)


class TwiceDropped(Backbone):
    """Pixels, twice dropped: once by one layer, and twice by another."""

    def __init__(self, options):
        self.channels, self.width, self.num_features, self.gate_sites = 1, 1, 64, ()
        self.first = nnx.Dropout(0.25, rngs=options.rngs)
        self.second = nnx.Dropout(0.25, rngs=options.rngs)
        self.fc = nnx.Linear(64, options.num_classes, rngs=options.rngs)

    def draws(self, pixels):
        return self.first(pixels), self.second(pixels), self.second(pixels)

    def features(self, images, gates=None, key=None):
        return jnp.stack(self.draws(images.reshape(len(images), -1))).mean(0)


@pytest.fixture
def model():
    return GaterNet(TwiceDropped(dataclasses.replace(OPTIONS, rngs=InitKeys(0))), None)


IMAGES = jnp.ones((2, 8, 8, 1))


def drawn(model, key):
    """What each of the three draws of a call leaves of ones."""
    seen = []
    draws = model.backbone.draws
    model.backbone.draws = lambda pixels: seen.extend(draws(pixels)) or seen[-3:]
    model(IMAGES, key=key)
    return np.stack(seen)


def test_masks_follow_from_the_key_and_differ_by_layer_and_draw(model):
    one, same, other = (drawn(model, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert set(np.unique(one)) == {0, np.float32(1 / 0.75)}
    assert 0.6 < (one > 0).mean() < 0.9
    for a, b in ((one[0], one[1]), (one[1], one[2]), (one[0], one[2]), (one[0], other[0])):
        assert not np.array_equal(a, b)


def test_the_model_stays_a_function_of_its_parameters(model):
    graphdef, params, stats = split_model(model)
    assert jax.tree.leaves(stats) == [] and set(params["backbone"]) == {"fc"}
    call = jax.jit(lambda params, key: merge_model(graphdef, params, stats)(IMAGES, key=key).logits)
    expected = model(IMAGES, key=jax.random.key(3)).logits
    for _ in range(2):
        np.testing.assert_allclose(call(params, jax.random.key(3)), expected, rtol=1e-5)
    assert not np.allclose(call(params, jax.random.key(4)), expected)


def test_evaluation_draws_nothing(model):
    model.eval()
    plain = np.ones((2, 64)) @ np.asarray(model.backbone.fc.kernel) + np.asarray(model.backbone.fc.bias)
    np.testing.assert_allclose(model(IMAGES).logits, plain, rtol=1e-5)
    np.testing.assert_allclose(model(IMAGES, key=jax.random.key(0)).logits, plain, rtol=1e-5)


def test_training_without_a_key_is_refused(model):
    with pytest.raises(ValueError, match=r"a layer draws random numbers: pass key=\.\.\., or call"):
        model(IMAGES)
    with pytest.raises(ValueError, match="a layer draws random numbers"):
        model.backbone.first(IMAGES)


def test_parameters_are_those_of_the_network_without_it():
    keys = InitKeys(0)
    nnx.Dropout(0.5, rngs=keys)
    assert keys.params() == InitKeys(0).params()
    assert nnx.Dropout(0.5, rngs=ShapesOnly()).rngs is not None, "no key is wanted while only shapes are"


def test_a_training_step_draws_anew_at_every_step_and_again_the_same(model):
    config = default()
    config.model.channels, config.data.mean, config.data.std = 1, (0.0,), (1.0,)
    config.data.update(flip=False, crop_padding=0)
    graphdef, params, stats = split_model(model)
    optimizer = make_optimizer(config.optimizer, lambda _: 0.0)
    step = jax.jit(make_train_step(graphdef, optimizer, lambda _: 0.0, lambda gates: jnp.zeros(()), config))
    batch = {"image": jnp.full((2, 8, 8, 1), 255, jnp.uint8), "label": jnp.arange(2), "mask": jnp.ones(2, bool)}
    state, first = step(init_state(params, stats, optimizer), batch, jax.random.key(0))
    _, second = step(state, batch, jax.random.key(0))
    _, again = step(state, batch, jax.random.key(0))
    assert first["loss"] != second["loss"] == again["loss"]


def test_work_is_counted_as_in_evaluation(model):
    assert MacCounter(model, 8).dense == 64 * 3
