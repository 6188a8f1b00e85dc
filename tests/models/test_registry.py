import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gaternet_jax import build_model
from gaternet_jax.errors import UserError
from gaternet_jax.gating import GateSite
from gaternet_jax.gating.sites import apply_gates
from gaternet_jax.models import registry
from gaternet_jax.models.backbone import Backbone, conv
from gaternet_jax.models.build import abstract_model, count_parameters, match_width
from tests.helpers import model_config

# Parameters of the plain network (1,000 classes for the ImageNet ResNets, else 10) and gates ("last" and "all").
# ImageNet ResNets: published. CIFAR ResNets: 3x3 stem, 1x1 convolution shortcuts, two parameters per channel and
# BatchNorm; see resnet_parameters. DenseNet and Shake-Shake: published as 0.8 M and 25.6 M; 2.9 M, 11.7 M and 26.2 M.
EXPECTED = {
    "resnet18": (11_689_512, 1_920, 3_840),
    "resnet34": (21_797_672, 3_776, 7_552),
    "resnet50": (25_557_032, 15_104, 22_656),
    "resnet101": (44_549_160, 32_512, 48_768),
    "resnet152": (60_192_808, 47_872, 71_808),
    "resnet8": (78_042, 112, 224),
    "resnet20": (272_474, 336, 672),
    "resnet32": (466_906, 560, 1_120),
    "resnet44": (661_338, 784, 1_568),
    "resnet56": (855_770, 1_008, 2_016),
    "resnet110": (1_730_714, 2_016, 4_032),
    "resnet164": (1_704_154, 8_064, 12_096),
    "resnet164_paper": (1_619_290, 7_200, 18 * (2 * (4 + 32 + 64) + 16 + 128 + 256)),
    "densenet100": (769_162, 576, 2_880),
    "densenet250": (15_324_406, 123 * 24, 123 * 5 * 24),
    "densenet190": (25_624_430, 3_720, 18_600),
    "shake26_2x32d": (2_923_162, 1_792, 3_584),
    "shake26_2x64d": (11_653_978, 3_584, 7_168),
    "shake26_2x96d": (26_192_922, 5_376, 10_752),
    "shake26_2x64d_paper": (11_709_514, 3_584, 7_168),
    "shake26_2x96d_paper": (26_331_754, 5_376, 10_752),
    "inceptionv4": (42_679_816, 16_608, 31_552),
}
IMAGENET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "inceptionv4")
RELEASED = {"resnet20": 547_842, "resnet56": 1_137_186}  # gated, with the ResNet-20 gater: released code


def count(config):
    return count_parameters(abstract_model(config))


def resnet_parameters(depth):
    """Plain CIFAR ResNet of basic blocks, counted from its description."""
    blocks, widths = (depth - 2) // 6, (16, 32, 64)
    total, previous = 3 * 16 * 9 + 2 * 16, 16
    for width in widths:
        for _ in range(blocks):
            total += 9 * previous * width + 9 * width * width + 4 * width
            if previous != width:
                total += previous * width + 2 * width
            previous = width
    return total + 64 * 10 + 10


@pytest.mark.parametrize("name", registry.known_backbones())
def test_parameter_counts(name):
    plain, residual, all_gates = EXPECTED[name]
    classes = 1000 if name in IMAGENET else 10
    config = model_config(backbone=name, width=0, gating="none", num_classes=classes)
    assert count(config) == plain
    if name in ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"):
        assert plain == resnet_parameters(int(name[6:]))
    for gating, gates in (("last", residual), ("all", all_gates)):
        config.update(gating=gating)
        model = abstract_model(config)
        assert sum(site.size for site in model.gate_sites) == gates
        head = 64 // 4 * 8 + 8 + 8 * gates + gates  # the shrunken extractor has 16 features
        assert count_parameters(model) == plain + count_parameters(model.gater.extractor) + head


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_have_their_parameter_counts(name):
    gater = {"gater.extractor": "resnet20", "gater.width": 0}
    assert count(model_config(backbone=name, width=0, **gater)) == RELEASED[name]


def test_any_depth_of_a_family():
    for name, same in (("resnet164", "resnet164_bottleneck"), ("resnet20", "resnet20_basic")):
        configs = [model_config(backbone=n, width=0, gating="none") for n in (name, same)]
        assert count(configs[0]) == count(configs[1])
    bottleneck = count(model_config(backbone="resnet20_bottleneck", width=0, gating="none"))
    assert bottleneck != EXPECTED["resnet20"][0]
    assert count(model_config(backbone="resnet29", width=0, gating="none")) > 0
    for name, message in (
        ("resnet21", "no CIFAR ResNet has depth 21"),
        ("resnet32_bottleneck", "no CIFAR ResNet has depth 32"),
        ("densenet101", "no DenseNet-BC is 'densenet101'; depths are 6n \\+ 4"),
        ("densenet40", "name their growth rate: densenet40_k12"),
        ("resnet21_paper", "no ResNet of bottlenecks has depth 21"),
    ):
        with pytest.raises(UserError, match=message):
            build_model(model_config(backbone=name, width=0))


def test_unknown_names_are_refused_with_what_exists():
    with pytest.raises(UserError, match="unknown model 'vgg16'; known models: densenet100, "):
        build_model(model_config(backbone="vgg16"))
    with pytest.raises(UserError, match="unknown model 'nope'; known models"):
        build_model(model_config(**{"gater.extractor": "nope"}))
    with pytest.raises(UserError, match=r"no CIFAR ResNet has depth 21; depths are 6n \+ 2 with basic"):
        build_model(model_config(backbone="resnet21"))
    with pytest.raises(UserError, match="unknown gating 'some'; known: none, last, all"):
        build_model(model_config(gating="some"))
    with pytest.raises(UserError, match="unknown dtype 'float8'; known: float32, bfloat16"):
        build_model(model_config(dtype="float8"))


class Pool(Backbone):
    """A backbone without anything to gate."""

    def __init__(self, options):
        self.channels, self.num_features = options.channels, options.channels
        self.fc = nnx.Linear(options.channels, options.num_classes, rngs=options.rngs)

    def features(self, images, gates=None, key=None):
        return images.mean((1, 2))


def test_gating_asked_of_a_backbone_without_gate_sites(monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", list(registry._FAMILIES))
    registry.register("pool", ("pool",))(lambda match, options: Pool(options))
    with pytest.raises(UserError, match=r"'pool', which has no gate sites; set config.model.gating='none'"):
        build_model(model_config(backbone="pool"))
    plain = build_model(model_config(backbone="pool", gating="none"))
    assert plain(jnp.zeros((2, 8, 8, 3))).logits.shape == (2, 10)


class Own(Backbone):
    """A backbone as anyone writes it, with one convolution to gate."""

    def __init__(self, options):
        self.conv = conv(options.channels, 5, 3, options, gated=options.gating != "none")
        self.fc = nnx.Linear(5, options.num_classes, rngs=options.rngs)
        self.channels, self.width, self.num_features = options.channels, 5, 5

    def features(self, images, gates=None, key=None):
        return apply_gates(jax.nn.relu(self.conv(images)), gates, self.conv.site).mean((1, 2))


def test_gates_of_a_new_family_are_numbered_when_it_is_built(monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", list(registry._FAMILIES))
    registry.register("own", ("own",))(lambda match, options: Own(options))
    model = build_model(model_config(backbone="own", gating="all"))
    assert model.gate_sites == (GateSite("conv", 0, 5),)
    logits = model.backbone(jnp.ones((2, 8, 8, 3)), jnp.zeros((2, 5)))
    np.testing.assert_array_equal(logits, np.tile(model.backbone.fc.bias.get_value(), (2, 1)))
    assert build_model(model_config(backbone="own", gating="none")).gate_sites == ()


def test_shapes_are_those_of_the_model_also_of_other_peoples_layers(monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", list(registry._FAMILIES))
    registry.register("pool", ("pool",))(lambda match, options: Pool(options))
    for config in (model_config(), model_config(backbone="pool", gating="none")):
        shapes, arrays = (
            [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(nnx.state(model))]
            for model in (abstract_model(config), build_model(config))
        )
        assert shapes == arrays
        leaves = jax.tree.leaves(nnx.state(abstract_model(config)))
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
        assert count(config) == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(build_model(config), nnx.Param)))


def test_same_seed_same_parameters():
    one, same, other = (build_model(model_config(), seed=seed) for seed in (1, 1, 2))
    leaves = [jax.tree.leaves(nnx.state(model, nnx.Param)) for model in (one, same, other)]
    assert all((a == b).all() for a, b in zip(leaves[0], leaves[1], strict=True))
    assert not all((a == b).all() for a, b in zip(leaves[0], leaves[2], strict=True))


@pytest.mark.parametrize(
    "name", ["resnet20", "resnet18", "densenet40_k12", pytest.param("shake26_2x16d", marks=pytest.mark.slow)]
)
def test_wider_networks_come_as_near_as_any_width(name):
    config = model_config(backbone=name, width=0, **{"gater.extractor": "resnet20", "gater.width": 0})
    target, own = count(config), abstract_model(config).backbone.width
    config.update(gating="none", match_params_of="last")
    width, found = match_width(config), count(config)
    assert width > own
    config.update(match_params_of="")
    for neighbour in (width - 1, width, width + 1):
        config.update(width=neighbour)
        assert abs(count(config) - target) >= abs(found - target)
    assert found == count(model_config(backbone=name, width=width, gating="none"))


def test_wider_is_for_plain_networks():
    with pytest.raises(UserError, match=r"is for a plain network; set model.gating='none'"):
        build_model(model_config(match_params_of="all"))


@pytest.mark.parametrize(("ungated", "number"), [("first", 1), ("last", 2)])
def test_one_layer_of_each_dense_block_may_have_no_gates(ungated, number):
    fields = {"backbone": "densenet16_k4", "width": 0}
    every, some, all_gates = (
        [site.name for site in abstract_model(model_config(**fields, **changed)).gate_sites]
        for changed in ({}, {"dense_ungated": ungated}, {"dense_ungated": ungated, "gating": "all"})
    )
    assert [name for name in every if name not in some] == [f"block{i}_layer{number}.conv2" for i in (1, 2, 3)]
    assert len(all_gates) == 12


def test_options_that_a_family_cannot_have_are_refused():
    with pytest.raises(UserError, match="asked of a DenseNet, which has no residual"):
        build_model(model_config(backbone="densenet100", zero_init_residual=True))
    with pytest.raises(UserError, match="of 'resnet164_paper', whose blocks end without BatchNorm"):
        build_model(model_config(backbone="resnet164_paper", zero_init_residual=True))
    with pytest.raises(UserError, match="unknown dense_ungated 'some'; known: first, last, none"):
        build_model(model_config(backbone="densenet100", dense_ungated="some"))
    with pytest.raises(UserError, match="unknown model 'shake26_2x0d'"):
        build_model(model_config(backbone="shake26_2x0d"))
