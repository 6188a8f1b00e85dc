import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.tpu_aot import share_off_padding
from gaternet_jax.gating.sites import apply_gates
from gaternet_jax.models import registry
from gaternet_jax.models.backbone import Backbone, conv
from gaternet_jax.models.build import abstract_model, build_model
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.models.registry import known_backbones
from gaternet_jax.nn.layers import Conv, linear
from tests.helpers import SMALL, image_size, model_config

# Published multiply-accumulates of the plain networks: He et al. 2016 and common counts of CIFAR ResNets (convolutions
# and linear layers). ResNet-50 with the stride on the 3x3 convolution has 4.1 G, with it on the first 1x1 3.8 G.
PUBLISHED = {"resnet20": 40.8e6, "resnet56": 125.7e6, "resnet18": 1.82e9, "resnet50": 4.1e9}


@pytest.mark.parametrize("name", PUBLISHED)
def test_plain_networks_have_the_published_count(name):
    large = name in ("resnet18", "resnet50")
    model = abstract_model(model_config(backbone=name, width=0, gating="none", num_classes=1000 if large else 10))
    np.testing.assert_allclose(MacCounter(model, 224 if large else 32).dense, PUBLISHED[name], rtol=0.01)


def module_at(model, path):
    for part in path.split("."):
        model = getattr(model, part)
    return model


@pytest.mark.parametrize("name", ["resnet20", "resnet11_bottleneck", "resnet18", "densenet40_k12", "shake26_2x16d"])
def test_count_agrees_with_the_compiler(name):
    """XLA counts two operations per multiply-accumulate, none where a kernel lies on padding, and BatchNorm besides."""
    model = abstract_model(model_config(backbone=name, width=0, gating="none"))
    size = 64 if name == "resnet18" else 32
    counted = 0
    for layer in MacCounter(model, size).layers:
        module = module_at(model, layer.name)
        positions = layer.macs // module.kernel.size
        counted += layer.macs * (share_off_padding(module, positions) if isinstance(module, Conv) else 1)
    model.eval()
    graphdef, params, stats = split_model(model)
    forward = jax.jit(lambda params, stats, x: merge_model(graphdef, params, stats)(x).logits)
    compiled = forward.lower(params, stats, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    np.testing.assert_allclose(compiled.cost_analysis()["flops"] / 2, counted, rtol=0.05)


def readers(family, name, layers):
    """The layers that read the filters of a gated convolution and nothing else does, by the family's figure."""
    block, *_, own = name.split(".")
    if family == "inception":
        return inception_readers(block, name, layers)
    if family == "densenet":
        if own == "conv1":
            return {f"{block}.conv2"}
        dense, number = block.split("_layer")  # all later layers of its dense block read it, and what follows that
        later = {layer for layer in layers if layer.startswith(f"{dense}_layer") and layer.endswith("conv1")}
        after = f"transition{dense[-1]}.conv"
        return {layer for layer in later if layer > f"{dense}_layer{number}.conv9"} | {
            after if after in layers else "fc"
        }
    return {f"{name[:-1]}{int(name[-1]) + 1}"} & set(layers)


def inception_readers(block, name, layers):
    """The next position of its branch; after its end the first ones of the next block, and beyond its pooling."""
    order = list(dict.fromkeys(layer.split(".")[0] for layer in layers))

    def first_of(number):
        if order[number] == "fc":
            return {"fc"}
        branches = {}
        for layer in layers:
            if layer.startswith(order[number] + "."):
                branch, position = layer.split(".")[1].split("_")
                branches.setdefault(branch, []).append((int(position[0]), layer))
        found = {layer for places in branches.values() for place, layer in places if place == min(places)[0]}
        pools = order[number] in ("stem_3a", "stem_5a", "reductionA", "reductionB")
        return found | (first_of(number + 1) if pools else set())

    if block == "stem_conv2":
        return {"stem_conv3.conv"}
    if block != "stem_conv3":
        branch, position = name.split(".")[1].split("_")
        following = {layer for layer in layers if layer.startswith(f"{block}.{branch}_{int(position[0]) + 1}")}
        if following:
            return following
    return first_of(order.index(block) + 1)


@pytest.mark.parametrize("gating", ["last", "all"])
@pytest.mark.parametrize("family", SMALL)
def test_gated_count_equals_that_of_a_network_without_the_closed_filters(family, gating):
    """Brute force: per layer, output filters left times input channels left."""
    name, width = SMALL[family]
    model = abstract_model(model_config(backbone=name, width=width, gating=gating))
    counter = MacCounter(model, image_size(family))
    size = sum(site.size for site in model.gate_sites)
    gates = np.random.default_rng(0).integers(0, 2, (3, size))
    gates[1], gates[2] = 1, 0
    layers = [layer.name.removeprefix("backbone.") for layer in counter.layers if layer.name.startswith("backbone.")]
    read_by = {site.name: readers(family, site.name, layers) for site in model.gate_sites}
    for row, counted in zip(gates, np.asarray(counter.count(jnp.asarray(gates, jnp.float32))), strict=True):
        expected = 0
        for layer in (layer for layer in counter.layers if layer.name.startswith("backbone.")):
            path, module = layer.name.removeprefix("backbone."), module_at(model, layer.name)
            inputs, outputs = module.in_features, module.out_features
            positions = layer.macs // (inputs * outputs)
            for site in model.gate_sites:
                closed = int((row[site.gates] == 0).sum())
                outputs -= closed * (site.name == path)
                inputs -= closed * (path in read_by[site.name])
            assert 0 <= inputs <= module.in_features and 0 <= outputs <= module.out_features
            expected += positions * inputs * outputs
        np.testing.assert_allclose(counted, expected, rtol=1e-5)
    np.testing.assert_allclose(counter.fraction(jnp.ones((1, size))), 1.0, rtol=1e-6)
    closed, half = counter.fraction(jnp.stack([jnp.zeros(size), jnp.full(size, 0.5)])).tolist()
    assert counter.least == pytest.approx(closed, rel=1e-5) and 0 < closed < 1
    assert counter.evenly(0.5) == pytest.approx(half * counter.dense, rel=1e-5)


def test_counting_is_differentiable():
    model = abstract_model(model_config(gating="all"))
    counter, size = MacCounter(model, 16), sum(site.size for site in model.gate_sites)
    gates = jnp.asarray(np.random.default_rng(0).random((1, size)), jnp.float32)
    gradient = jax.grad(lambda gates: counter.fraction(gates)[0])(gates)[0]
    # Linear in each gate: a site's gradient is what one more open filter costs.
    for site in model.gate_sites:
        opened, closed = (counter.fraction(gates.at[0, site.offset].set(gate))[0] for gate in (1.0, 0.0))
        np.testing.assert_allclose(gradient[site.gates], opened - closed, rtol=1e-2)
        assert opened > closed


def test_who_decides_the_gates_is_never_spared():
    """A block's own head scores closed gates, too; a gater is no part of the backbone."""
    local = model_config(gating="all")
    local.gater.scope = "local"
    model, given = abstract_model(local), abstract_model(model_config(gating="all"))
    counter, without = MacCounter(model, 16), MacCounter(given, 16)
    heads = [layer for layer in counter.layers if ".local." in layer.name]
    assert heads and all(layer.inputs is None and layer.outputs is None for layer in heads)
    macs = sum(layer.macs for layer in heads)
    assert (counter.gater, counter.dense) == (0, without.dense + macs)
    assert counter.least * counter.dense == pytest.approx(without.least * without.dense + macs)


def test_closed_filters_are_spared_in_squeeze_and_excitation():
    """fc1 loses the inputs that the last gate of a block closes, fc2 the outputs that only they would be scaled by."""
    model = abstract_model(model_config(gating="last", se_ratio=4))
    layers = {layer.name: layer for layer in MacCounter(model, 16).layers}
    for name in ("stage1.block1", "stage2.block1", "stage3.block1"):
        conv, fc1, fc2 = (layers[f"backbone.{name}.{part}"] for part in ("conv2", "squeeze.fc1", "squeeze.fc2"))
        assert conv.outputs == fc1.inputs == fc2.outputs and conv.outputs is not None


class Twice(Backbone):
    """A backbone that runs its layers in another order than it sets them in, and one of them twice."""

    def __init__(self, options):
        self.last = conv(4, 6, 1, options, gated=True)
        self.shared = conv(4, 4, 1, options, gated=True)
        self.channels, self.width, self.num_features = options.channels, 4, 6
        self.stem, self.fc = conv(options.channels, 4, 1, options), linear(6, options.num_classes, rngs=options.rngs)

    def features(self, images, gates=None, key=None):
        x = self.stem(images)
        for _ in range(2):
            x = apply_gates(self.shared(x), gates, self.shared.site)
        return apply_gates(self.last(x), gates, self.last.site).mean((1, 2))


def test_gates_are_those_of_the_model_whatever_the_order_of_its_layers(monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", list(registry._FAMILIES))
    registry.register("twice", ("twice",))(lambda match, options: Twice(options))
    model = abstract_model(model_config(backbone="twice", gating="all"))
    assert [(site.name, site.offset) for site in model.gate_sites] == [("last", 0), ("shared", 6)]
    counter = MacCounter(model, 1)  # images of one pixel: a weight is a multiply-accumulate
    gates = np.repeat(np.float32([[0, 1], [1, 0.5]]), [6, 4], axis=1)
    whole = 12 + 16 + 16 + 24 + 60
    np.testing.assert_allclose(counter.count(jnp.asarray(gates)), [whole - 84, whole - 8 - 12 - 12], rtol=1e-6)
    assert counter.evenly(0.5) == 12 + 8 + 4 + 6 + 30


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
