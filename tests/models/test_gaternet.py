"""Properties of gated networks; golden values are in tests/training/test_step.py and tests/models/test_released.py."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gaternet_jax import build_model
from gaternet_jax.config import CHOICES
from gaternet_jax.errors import UserError
from gaternet_jax.gating.semhash import saturating_sigmoid
from tests.helpers import model_config, random_model

GATINGS = ("last", "all")


def images(batch=4, size=8, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, size, size, 3))


def num_gates(model):
    return sum(site.size for site in model.gate_sites)


@pytest.fixture(params=GATINGS)
def model(request):
    return build_model(model_config(gating=request.param))


def test_outputs(model):
    outputs = model(images(), key=jax.random.key(0))
    chex.assert_shape(outputs.logits, (4, 10))
    chex.assert_shape([outputs.gates, outputs.gate_scores], (4, num_gates(model)))
    chex.assert_tree_all_finite(outputs._asdict())
    model.eval()
    assert set(np.unique(model(images()).gates)) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("gating", "names"),
    [
        ("last", ["stage1.block1.conv2", "stage2.block1.conv2", "stage3.block1.conv2"]),
        ("all", [f"stage{stage}.block1.conv{c}" for stage in (1, 2, 3) for c in (1, 2)]),
    ],
)
def test_gate_sites_are_in_forward_order_and_cover_the_gate_vector(gating, names):
    model = build_model(model_config(gating=gating))
    assert [site.name for site in model.gate_sites] == names
    end = 0
    for site in model.gate_sites:
        assert site.offset == end
        end = site.gates.stop
        module = model.backbone
        for part in site.name.split("."):
            module = getattr(module, part)
        assert module.out_features == site.size


@pytest.mark.parametrize("gating", GATINGS)
def test_all_gates_open_equals_the_plain_network(gating):
    gated, plain = build_model(model_config(gating=gating)), build_model(model_config(gating="none"))
    nnx.update(plain.backbone, nnx.state(gated.backbone))
    for network in (gated, plain):
        network.eval()
    logits = gated.backbone(images(), jnp.ones((4, num_gates(gated))))
    np.testing.assert_array_equal(logits, plain(images()).logits)
    assert plain(images()).gates.shape == plain(images()).gate_scores.shape == (4, 0)


def test_filter_closed_for_the_whole_batch_has_zero_output_and_zero_kernel_gradient(model):
    closed = 1
    for site in model.gate_sites:
        gates = jnp.ones((4, num_gates(model))).at[:, site.offset + closed].set(0.0)
        graphdef, params, stats = nnx.split(model.backbone, nnx.Param, nnx.BatchStat)

        def loss(params, graphdef=graphdef, stats=stats, gates=gates):
            backbone = nnx.merge(graphdef, params, stats, copy=True)
            return (backbone(images(), gates) ** 2).sum()

        gradient = nnx.to_pure_dict(jax.grad(loss)(params))
        for part in site.name.split("."):
            gradient = gradient[part]
        per_filter = np.abs(gradient["kernel"]).sum((0, 1, 2))
        assert per_filter[closed] == 0.0
        assert (np.delete(per_filter, closed) > 0).all()

        # Zero output: what the filter computes does not matter.
        changed = nnx.clone(model.backbone)
        module = changed
        for part in site.name.split("."):
            module = getattr(module, part)
        module.kernel.set_value(module.kernel.get_value().at[..., closed].add(1.0))
        np.testing.assert_array_equal(changed(images(), gates), nnx.clone(model.backbone)(images(), gates))


def test_gate_multiplies_after_batch_norm_and_before_the_shortcut_is_added():
    model = build_model(model_config(gating="last"))
    model.eval()
    block = model.backbone.stage1.block1
    block.bn2.bias.set_value(jnp.full(4, 5.0))  # were the gate before BatchNorm, the bias would pass a closed gate
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (1, 8, 8, 4)))
    gates = jnp.zeros((1, num_gates(model)))
    np.testing.assert_array_equal(block(x, gates), x)  # only the shortcut is left
    half = block(x, gates.at[:, block.conv2.site.gates].set(0.5))
    expected = jax.nn.relu(x + 0.5 * block.bn2(block.conv2(jax.nn.relu(block.bn1(block.conv1(x))))))
    np.testing.assert_allclose(half, expected, atol=1e-5)


def test_first_convolution_is_gated_after_its_relu():
    model = build_model(model_config(gating="all"))
    model.eval()
    block = model.backbone.stage1.block1
    block.bn1.bias.set_value(jnp.arange(4.0))  # were the gate before BatchNorm, the bias would pass it
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    gates = jax.random.uniform(jax.random.key(1), (1, num_gates(model)))
    g1, g2 = (gates[:, None, None, site.gates] for site in (block.conv1.site, block.conv2.site))
    hidden = jax.nn.relu(block.bn1(block.conv1(x))) * g1
    expected = jax.nn.relu(x + block.bn2(block.conv2(hidden)) * g2)
    np.testing.assert_allclose(block(x, gates), expected, atol=1e-5)


def test_gradient_through_the_real_valued_gates_equals_finite_differences(monkeypatch):
    """Of the whole model, in float64, through v; weights along random directions, gater and backbone apart."""
    monkeypatch.setitem(CHOICES, "model.dtype", ("float64",))
    with jax.enable_x64(True):
        model = random_model(model_config(gating="all", dtype="float64"))
        model.train()
        graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        double = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))
        params, stats = double(nnx.to_pure_dict(params)), double(nnx.to_pure_dict(stats))
        x, rng = np.asarray(images(), np.float64), np.random.default_rng(3)

        @jax.jit
        @jax.value_and_grad
        def loss(params):
            network = nnx.merge(graphdef, params, stats, copy=True)
            gates = saturating_sigmoid(network.gater(x))
            return (network.backbone(x, gates) ** 2).mean()

        _, gradient = loss(params)
        for part in ("gater", "backbone"):
            direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params[part])
            above, below = (
                loss({**params, part: jax.tree.map(lambda p, d, t=t: p + t * d, params[part], direction)})[0]
                for t in (1e-6, -1e-6)
            )
            products = jax.tree.map(lambda g, d: (np.asarray(g) * d).sum(), gradient[part], direction)
            analytic = sum(jax.tree.leaves(products))
            assert abs(float(analytic)) > 1e-4
            np.testing.assert_allclose((above - below) / 2e-6, analytic, rtol=1e-5)


def test_training_gradients_reach_gater_and_backbone(model):
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    def loss(params):
        outputs = nnx.merge(graphdef, params, stats, copy=True)(images(), key=jax.random.key(0))
        return (outputs.logits**2).sum()

    gradient = nnx.to_pure_dict(jax.grad(loss)(params))
    assert np.abs(gradient["gater"]["extractor"]["conv"]["kernel"]).max() > 0
    assert np.abs(gradient["gater"]["head"]["scores"]["kernel"]).max() > 0
    assert np.abs(gradient["backbone"]["conv"]["kernel"]).max() > 0


def test_evaluation_is_deterministic_and_independent_of_the_batch_around_an_image(model):
    model.eval()
    together = model(images(8))
    np.testing.assert_array_equal(together.logits, model(images(8)).logits)
    alone = model(images(8)[3:4])
    np.testing.assert_allclose(alone.logits[0], together.logits[3], atol=1e-5)
    np.testing.assert_array_equal(alone.gates[0], together.gates[3])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_gater_head(batch_norm):
    model = build_model(model_config(**{"gater.batch_norm": batch_norm, "gater.bottleneck": 3}))
    head = model.gater.head
    assert head.bottleneck.out_features == head.scores.in_features == 3
    assert (head.bn is not None) == batch_norm
    model.eval()
    features = jax.random.normal(jax.random.key(0), (5, 16))
    hidden = head.bottleneck(features)
    if batch_norm:
        hidden = hidden / np.sqrt(1 + 1e-5)  # fresh statistics: mean 0, variance 1
    np.testing.assert_allclose(head(features), head.scores(jax.nn.relu(hidden)), atol=1e-5)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_initial_bias_opens_the_gates_before_training(scope):
    model = build_model(model_config(**{"gater.scope": scope, "gater.initial_bias": 3.0, "gating": "all"}))
    model.eval()
    outputs = model(images())
    np.testing.assert_array_equal(outputs.gates, 1)
    assert abs(float(outputs.gate_scores.mean()) - 3.0) < 0.5


def test_bfloat16_computes_near_float32_with_float32_parameters():
    single, half = (build_model(model_config(gating="all", dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(half, nnx.Param, nnx.BatchStat)))
    assert half.backbone.conv(images()).dtype == jnp.bfloat16
    for network in (single, half):
        network.eval()
    gates = jnp.ones((4, num_gates(half)))
    logits = half.backbone(images(), gates)
    assert logits.dtype == jnp.float32 and half(images()).gate_scores.dtype == jnp.float32
    reference = single.backbone(images(), gates)
    assert 0 < np.abs(logits - reference).max() < 0.05 * np.abs(reference).max()


def test_training_mode_without_a_key_is_refused(model):
    with pytest.raises(UserError, match=r"key=.*model\.eval\(\)"):
        model(images())


@pytest.mark.parametrize(
    "bad", [jnp.zeros((4, 8, 8, 1)), jnp.zeros((8, 8, 3)), jnp.zeros((4, 8, 8, 3), jnp.uint8), ["cat.png"], "cat.png"]
)
def test_images_of_another_shape_or_type_are_refused(model, bad):
    model.eval()
    with pytest.raises(UserError, match=r"normalised floats of shape \[batch, height, width, 3\]"):
        model(bad)


def test_gated_backbone_without_gates_is_refused(model):
    with pytest.raises(ValueError, match="is gated, but no gates were given"):
        model.backbone(images())
