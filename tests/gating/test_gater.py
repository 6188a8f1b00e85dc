"""A gater over an extractor that is no backbone of this package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gaternet_jax as gx


class Extractor(nnx.Module):
    num_features = 2

    def features(self, images, key=None):
        noise = 0.0 if key is None else jax.random.normal(key, (images.shape[0], 2))
        return images.mean((1, 2)) + noise


@pytest.fixture
def gater():
    return gx.Gater(Extractor(), 5, bottleneck=3, initial_bias=3.0, rngs=nnx.Rngs(0))


def test_scores_are_those_of_two_layers(gater):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 2)), jnp.float32)
    head = {".".join(map(str, path)): np.asarray(value) for path, value in nnx.to_flat_state(nnx.state(gater.head))}
    hidden = np.maximum(images.mean((1, 2)) @ head["bottleneck.kernel"] + head["bottleneck.bias"][None], 0)
    assert head["bottleneck.kernel"].shape == (2, 3) and (head["scores.bias"] == 3).all()
    np.testing.assert_allclose(gater(images), hidden @ head["scores.kernel"] + 3, rtol=1e-5)


def test_a_key_reaches_the_extractor(gater):
    images = jnp.ones((1, 4, 4, 2))
    assert not np.array_equal(gater(images, jax.random.key(0)), gater(images, jax.random.key(1)))
    np.testing.assert_array_equal(gater(images), gater(images))


def test_gradients_reach_the_extractor_through_gates(gater):
    def openness(images):
        return gx.losses.gate_l1(gx.sem_hash(gater(images), jax.random.key(0)))

    assert np.isfinite(gradient := jax.grad(openness)(jnp.ones((2, 4, 4, 2)))).all() and gradient.shape == (2, 4, 4, 2)


def test_an_auxiliary_classifier_sees_the_features_in_training():
    gater, images = gx.Gater(Extractor(), 5, num_classes=3, rngs=nnx.Rngs(0)), jnp.ones((4, 6, 6, 2))
    scores, logits = gater(images), gater.pop_auxiliary_logits()
    np.testing.assert_allclose(logits, gater.auxiliary(images.mean((1, 2))), rtol=1e-6)
    assert gater.pop_auxiliary_logits() is None  # nothing stays behind
    gater.eval()
    np.testing.assert_array_equal(gater(images), scores)
    assert gater.pop_auxiliary_logits() is None


def test_its_loss_teaches_the_extractor():
    class Learned(Extractor):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones(2))

        def features(self, images, key=None):
            return super().features(images, key) * self.weight[None]

    def loss(gater):
        gater(jnp.ones((4, 6, 6, 2)))
        return gater.pop_auxiliary_logits()[:, 0].mean()

    gater = gx.Gater(Learned(), 5, num_classes=3, rngs=nnx.Rngs(0))
    gradients = nnx.grad(loss)(gater)
    np.testing.assert_allclose(gradients["extractor"]["weight"].get_value(), gater.auxiliary.kernel[:, 0], rtol=1e-6)


@pytest.mark.parametrize(("num_gates", "bottleneck"), [(0, 8), (-1, 8), (5, 0)])
def test_a_head_without_units_is_refused(num_gates, bottleneck):
    with pytest.raises(gx.UserError, match=f"num_gates={num_gates} and bottleneck={bottleneck} must be at least 1"):
        gx.Gater(Extractor(), num_gates, bottleneck=bottleneck, rngs=nnx.Rngs(0))
