import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.macs import MacCounter
from gaternet_jax.models.registry import build_model, known_backbones
from gaternet_jax.models.wider import abstract_model
from tests.helpers import model_config

# Published multiply-accumulates of the plain networks: He et al. 2016 and common counts of CIFAR ResNets (convolutions
# and linear layers). ResNet-50 with the stride on the 3x3 convolution has 4.1 G, with it on the first 1x1 3.8 G.
PUBLISHED = {"resnet20": 40.8e6, "resnet56": 125.7e6, "resnet18": 1.82e9, "resnet50": 4.1e9}
SMALL = {  # a shrunken member of each family: name, width
    "basic": ("resnet8", 4),
    "bottleneck": ("resnet11_bottleneck", 4),
    "imagenet": ("resnet18", 4),
    "densenet": ("densenet10", 4),
    "shake": ("shake26_2x4d", 0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_plain_networks_have_the_published_count(name):
    large = name in ("resnet18", "resnet50")
    model = abstract_model(model_config(backbone=name, width=0, gating="none", num_classes=1000 if large else 10))
    np.testing.assert_allclose(MacCounter(model, 224 if large else 32).dense, PUBLISHED[name], rtol=0.01)


def share_off_padding(conv, positions):
    """The share of (output position, kernel tap) pairs that meet the image and not its padding."""
    kernel, stride = conv.kernel_size[0], conv.strides if isinstance(conv.strides, int) else conv.strides[0]
    out = round(np.sqrt(positions)) // kernel
    taps = stride * np.arange(out)[:, None] + np.arange(kernel) - kernel // 2
    return ((taps >= 0) & (taps < stride * out)).mean() ** 2


@pytest.mark.parametrize("name", ["resnet20", "resnet11_bottleneck", "resnet18", "densenet40_k12", "shake26_2x16d"])
def test_count_agrees_with_the_compiler(name):
    """XLA counts two operations per multiply-accumulate, none where a kernel lies on padding, and BatchNorm besides."""
    model = build_model(model_config(backbone=name, width=0, gating="none"))
    size = 64 if name == "resnet18" else 32
    counted = 0
    for layer in MacCounter(model, size).layers:
        module = model
        for part in layer.name.split("."):
            module = getattr(module, part)
        counted += layer.macs * (share_off_padding(module, layer.positions) if isinstance(module, nnx.Conv) else 1)
    model.eval()
    graphdef, params, stats = split_model(model)
    forward = jax.jit(lambda params, stats, x: merge_model(graphdef, params, stats)(x).logits)
    compiled = forward.lower(params, stats, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    np.testing.assert_allclose(compiled.cost_analysis()["flops"] / 2, counted, rtol=0.05)


@pytest.mark.parametrize("gating", ["residual", "all"])
@pytest.mark.parametrize("family", SMALL)
def test_gated_count_equals_that_of_a_network_without_the_closed_filters(family, gating):
    """Brute force: per layer, output filters left times input channels left."""
    name, width = SMALL[family]
    model = build_model(model_config(backbone=name, width=width, gating=gating))
    counter = MacCounter(model, 16)
    size = sum(site.size for site in model.gate_sites)
    gates = np.random.default_rng(0).integers(0, 2, (3, size))
    gates[1], gates[2] = 1, 0
    for row, counted in zip(gates, np.asarray(counter.count(jnp.asarray(gates, jnp.float32))), strict=True):
        expected = 0
        for layer in counter.layers:
            if not layer.name.startswith("backbone."):
                continue
            path, inputs, outputs = layer.name.removeprefix("backbone."), layer.in_channels, layer.out_channels
            for site in model.gate_sites:
                closed = int((row[site.gates] == 0).sum())
                outputs -= closed * (site.name == path)
                inputs -= closed * (path in site.feeds)
            assert 0 <= inputs <= layer.in_channels and 0 <= outputs <= layer.out_channels
            expected += layer.positions * inputs * outputs
        np.testing.assert_allclose(counted, expected, rtol=1e-5)
    np.testing.assert_allclose(counter.fraction(jnp.ones((1, size))), 1.0, rtol=1e-6)
    assert 0 < float(counter.fraction(jnp.zeros((1, size)))[0]) < 1


@pytest.mark.parametrize("family", SMALL)
def test_a_site_feeds_only_what_nothing_else_reaches(family):
    """With a closed filter, what the layers it feeds would learn for it does not matter to the network's output.

    Those layers' weights for the closed channel get no gradient beyond a constant that BatchNorm can turn zero into.
    """
    name, width = SMALL[family]
    model = build_model(model_config(backbone=name, width=width, gating="all"))
    names = {layer.name.removeprefix("backbone.") for layer in MacCounter(model, 16).layers}
    for site in model.gate_sites:
        assert site.name in names
        assert set(site.feeds) <= names and len(set(site.feeds)) == len(site.feeds)
        for fed in site.feeds:
            module = model.backbone
            for part in fed.split("."):
                module = getattr(module, part)
            assert module.in_features >= site.size


def test_gater_is_counted_apart():
    model = build_model(model_config())
    plain = build_model(model_config(gating="none"))
    counter = MacCounter(model, 16)
    assert counter.dense == MacCounter(plain, 16).dense
    extractor = counter.dense - 16 * 10  # the same network without its output layer
    assert counter.gater == extractor + 16 * 8 + 8 * sum(site.size for site in model.gate_sites)
    assert MacCounter(plain, 16).gater == 0


def test_counting_leaves_the_model_in_its_mode():
    model = build_model(model_config())
    MacCounter(model, 16)
    assert not model.deterministic and not model.backbone.bn.use_running_average


def test_every_registered_model_can_be_counted_by_shapes_alone():
    assert set(PUBLISHED) < set(known_backbones())
    model = abstract_model(model_config(backbone="resnet8"))
    assert isinstance(jax.tree.leaves(nnx.state(model, nnx.Param))[0], jax.ShapeDtypeStruct)
    assert MacCounter(model, 32).dense > 0
