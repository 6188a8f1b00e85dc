"""Every family of backbones: its gates, its local and squeeze-and-excitation forms, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gaternet_jax import build_model
from gaternet_jax.gating import GateSite
from gaternet_jax.gating.local import LocalHead, LocalPass
from gaternet_jax.models.shake_shake import shake
from tests.helpers import SMALL, image_size, model_config, small_config

FAMILIES = list(SMALL)


def each(*variants, everywhere):
    """Marks (family, variant): all variants of basic ResNets and `everywhere` of most families are quick enough."""
    return pytest.mark.parametrize(
        ("family", "variant"),
        [
            pytest.param(family, variant, marks=() if family == "basic" or quick else pytest.mark.slow)
            for family in FAMILIES
            for variant in variants
            for quick in [variant in everywhere and family not in ("inception", "shake")]
        ],
    )


def images(batch=3, family="basic"):
    size = image_size(family, 32)
    return jax.random.normal(jax.random.key(0), (batch, size, size, 3))


def num_gates(model):
    return sum(site.size for site in model.gate_sites)


def module_at(model, path):
    for part in path.split("."):
        model = getattr(model, part)
    return model


@each("last", "all", everywhere=["all"])
def test_all_gates_open_equals_the_plain_network(family, variant):
    gated, plain = build_model(small_config(family, gating=variant)), build_model(small_config(family, gating="none"))
    nnx.update(plain.backbone, nnx.state(gated.backbone))
    gated.eval(), plain.eval()
    open_gates = jnp.ones((3, num_gates(gated)))
    np.testing.assert_array_equal(
        gated.backbone(images(family=family), open_gates), plain(images(family=family)).logits
    )
    offsets = [site.offset for site in gated.gate_sites]
    assert offsets == list(np.cumsum([0] + [site.size for site in gated.gate_sites])[:-1])
    assert all(module_at(gated.backbone, site.name).out_features == site.size for site in gated.gate_sites)


@each("last", "all", everywhere=["all"])
def test_closed_filter_gets_no_gradient_and_open_ones_do(family, variant):
    model = build_model(small_config(family, gating=variant))
    graphdef, params, stats = nnx.split(model.backbone, nnx.Param, nnx.BatchStat)
    gates = jnp.ones((3, num_gates(model)))
    for site in model.gate_sites:
        gates = gates.at[:, site.offset].set(0.0)

    @jax.jit
    @jax.grad
    def gradient_of(params):
        backbone = nnx.merge(graphdef, params, stats, copy=True)
        return (backbone(images(family=family), gates, jax.random.key(1)) ** 2).sum()

    gradient = nnx.to_pure_dict(gradient_of(params))
    for site in model.gate_sites:
        kernel = gradient
        for part in site.name.split("."):
            kernel = kernel[part]
        per_filter = np.abs(kernel["kernel"]).sum((0, 1, 2))
        assert per_filter[0] == 0.0, site.name
        assert (per_filter[1:] > 0).mean() > 0.5, site.name  # ReLUs of a small network may be dead


@each("last", "all", "local", "se", "none", everywhere=["all"])
def test_ten_steps_on_one_batch_lower_the_loss(family, variant):
    """And gradients reach the gater (or the blocks' own heads) as well as the backbone."""
    fields = {
        "last": {"gating": "last"},
        "all": {"gating": "all"},
        "local": {"gating": "all", "gater.scope": "local"},
        "se": {"gating": "none", "se_ratio": 4},
        "none": {"gating": "none"},
    }[variant]
    model = build_model(small_config(family, **fields))
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    labels = jnp.array([1, 2, 3])

    @jax.jit
    def step(params, key):
        def loss(params):
            outputs = nnx.merge(graphdef, params, stats, copy=True)(images(family=family), key=key)
            log_probability = jax.nn.log_softmax(outputs.logits)
            return -jnp.take_along_axis(log_probability, labels[:, None], -1).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        return value, gradient, jax.tree.map(lambda p, g: p - 0.2 * g, params, gradient)

    losses, gradient = [], None
    for _ in range(10):
        value, gradient, params = step(params, jax.random.key(0))
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0], losses
    flat = {".".join(map(str, path)): np.abs(leaf.get_value()).max() for path, leaf in nnx.to_flat_state(gradient)}
    heads = [name for name in flat if name.startswith("gater.") or ".local." in name or ".squeeze." in name]
    assert bool(heads) == (variant != "none")
    for names in (heads, [name for name in flat if name not in heads]):
        kernels = [flat[name] > 0 for name in names if name.endswith("kernel")]
        assert not kernels or np.mean(kernels) > 0.6


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=pytest.mark.slow if family == "inception" else ()) for family in FAMILIES]
)
def test_local_gates_depend_on_the_blocks_own_input_only(family):
    model = build_model(small_config(family, gating="all", **{"gater.scope": "local"}))
    assert model.gater is None
    model.eval()
    outputs = model(images(family=family))
    assert outputs.gates.shape == outputs.gate_scores.shape == (3, num_gates(model))
    np.testing.assert_array_equal(outputs.gates, np.asarray(outputs.gate_scores) >= -3e-5)
    # The first block's gates do not change when the weights of later blocks do.
    first, last = model.gate_sites[0], model.gate_sites[-1]
    module = module_at(model.backbone, last.name)
    module.kernel.set_value(jnp.zeros_like(module.kernel.get_value()))
    again = model(images(family=family))
    np.testing.assert_array_equal(again.gates[:, first.gates], outputs.gates[:, first.gates])
    given = jnp.ones((3, num_gates(model)))
    with pytest.raises(ValueError, match="gates itself"):
        model.backbone(images(family=family), given)


def test_local_gates_are_binary_for_whole_samples():
    model = build_model(small_config("basic", gating="all", **{"gater.scope": "local"}))
    gates = np.asarray(model(images(64), key=jax.random.key(0)).gates)
    binary = np.isin(gates, (0.0, 1.0))
    whole = binary.all(axis=1)
    assert 16 < whole.sum() < 48
    assert binary[~whole].mean() < 0.5


def test_local_noise_differs_between_blocks_and_mixing_does_not():
    """Two blocks whose heads are the same and see the same input."""
    model = build_model(small_config("basic", gating="all", **{"gater.scope": "local"}))
    head = model.backbone.stage1.block1.local
    sites = tuple(GateSite(f"other.{i}", 500 + 4 * i, site.size) for i, site in enumerate(head.sites))
    other = LocalHead(4, 8, sites, rngs=nnx.Rngs(0))
    nnx.update(other, nnx.state(head))
    local, x = LocalPass(jax.random.key(0), jax.random.key(1)), jax.random.normal(jax.random.key(2), (64, 8, 8, 4))
    local.decide(head, x), local.decide(other, x)
    one, two = np.asarray(local.of(head.sites[0])), np.asarray(local.of(sites[0]))
    np.testing.assert_array_equal(local.decided[sites[0].name][1], local.decided[head.sites[0].name][1])
    assert np.abs(one - two).max() > 0.5
    binary = [np.isin(gates, (0.0, 1.0)).all(axis=1) for gates in (one, two)]
    assert (binary[0] == binary[1]).mean() > 0.9  # four real-valued gates are rarely all saturated


def test_squeeze_and_excitation_has_ratio_sixteen():
    model = build_model(model_config(backbone="resnet8", width=32, gating="none", se_ratio=16))
    squeeze = model.backbone.stage3.block1.squeeze
    assert (squeeze.fc1.in_features, squeeze.fc1.out_features, squeeze.fc2.out_features) == (128, 8, 128)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 128))
    scale = jax.nn.sigmoid(squeeze.fc2(jax.nn.relu(squeeze.fc1(x.mean((1, 2))))))
    np.testing.assert_allclose(squeeze(x), x * scale[:, None, None, :], rtol=1e-5)


@pytest.mark.parametrize("family", ["basic", "bottleneck", "imagenet"])
def test_zero_initialised_residuals_start_as_identity(family):
    backbone = build_model(small_config(family, gating="none", zero_init_residual=True)).backbone
    block = backbone.stage1.block1
    last = getattr(block, f"bn{block.depth}")
    np.testing.assert_array_equal(last.scale.get_value(), 0)
    assert (block.bn1.scale.get_value() == 1).all()
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, 8, 8, backbone.width)))
    shortcut = x if block.shortcut is None else jax.nn.relu(block.shortcut(x))
    np.testing.assert_allclose(block(x, None), shortcut, atol=1e-6)


def test_bottleneck_has_its_stride_on_the_3x3_convolution():
    block = build_model(small_config("bottleneck", gating="none")).backbone.stage2.block1
    kernels = [(c.kernel_size, c.strides) for c in (block.conv1, block.conv2, block.conv3)]
    assert kernels == [((1, 1), 1), ((3, 3), 2), ((1, 1), 1)]


class TestShakeShake:
    def test_backward_mixing_is_independent_of_forward_mixing(self):
        one, two = jnp.full((2, 1, 1, 1), 3.0), jnp.full((2, 1, 1, 1), 5.0)
        forward, backward = jnp.array([0.25, 1.0]).reshape(2, 1, 1, 1), jnp.array([0.9, 0.0]).reshape(2, 1, 1, 1)
        mixed, pull_back = jax.vjp(lambda one, two: shake(one, two, forward, backward), one, two)
        np.testing.assert_allclose(mixed.ravel(), [0.25 * 3 + 0.75 * 5, 3.0])
        gradients = pull_back(jnp.ones_like(one))
        np.testing.assert_allclose(gradients[0].ravel(), [0.9, 0.0])
        np.testing.assert_allclose(gradients[1].ravel(), [0.1, 1.0], rtol=1e-6)

    def block(self):
        backbone = build_model(small_config("shake", gating="none")).backbone
        return backbone.stage1_block2, jax.random.normal(jax.random.key(0), (256, 4, 4, 4))

    def test_each_image_mixes_for_itself_and_backward_anew(self):
        """With branches that give one per-image number and zero, output and gradient are the mixing coefficients."""
        block, x = self.block()
        given = {}
        block.branch1 = lambda x, gates: jnp.broadcast_to(given["number"], x.shape)
        block.branch2 = lambda x, gates: jnp.zeros_like(x)

        def mixed(number):
            given["number"] = number
            return (block(x, None, jax.random.key(3)) - x).mean((1, 2, 3))

        ones = jnp.ones((256, 1, 1, 1))
        forward = np.asarray(mixed(ones))
        backward = np.asarray(jax.grad(lambda number: mixed(number).sum())(ones)).ravel()
        for mixing in (forward, backward):
            assert 0 <= mixing.min() < 0.05 and 0.95 < mixing.max() <= 1 + 1e-4
            assert abs(mixing.mean() - 0.5) < 0.08
        assert abs(np.corrcoef(forward, backward)[0, 1]) < 0.2

    def test_blocks_mix_independently(self):
        keys = []
        backbone = build_model(small_config("shake", gating="none")).backbone
        for name in backbone.order:
            setattr(backbone, name, lambda x, gates, key: keys.append(jax.random.key_data(key).tolist()) or x)
        backbone.fc = None
        backbone.features(images(), None, jax.random.key(0))
        assert len(keys) == len({tuple(key) for key in keys}) == 12

    def test_shortcut_takes_two_paths_the_second_shifted_right_and_down(self):
        block = build_model(small_config("shake", gating="none")).backbone.stage2_block1
        shortcut = block.shortcut
        shortcut.eval()
        for layer in (shortcut.conv1, shortcut.conv2):
            layer.kernel.set_value(jnp.ones_like(layer.kernel.get_value()))
        x = jnp.zeros((1, 8, 8, 4)).at[0, 2, 2, 0].set(1.0).at[0, 5, 5, 0].set(1.0)
        y = np.asarray(shortcut(x))[0] > 0.5
        assert y.shape == (4, 4, 8)
        assert np.argwhere(y[..., 0]).tolist() == [[1, 1]] and np.argwhere(y[..., 7]).tolist() == [[3, 3]]

    def test_evaluation_is_the_mean_branch(self):
        block, x = self.block()
        block.eval()
        expected = x + (block.branch1(x, None) + block.branch2(x, None)) / 2
        np.testing.assert_allclose(block(x, None, None), expected, atol=1e-5)

    def test_fixed_key_fixed_numbers(self):
        model = build_model(small_config("shake"))
        once, again, other = (model(images(), key=jax.random.key(k)).logits for k in (1, 1, 2))
        np.testing.assert_array_equal(once, again)
        assert not np.array_equal(once, other)

    def test_plain_network_in_training_mode_needs_a_key(self):
        with pytest.raises(ValueError, match="pass key="):
            build_model(small_config("shake", gating="none"))(images())
