import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from gaternet_jax import build_model
from gaternet_jax.errors import UserError
from gaternet_jax.models import registry
from gaternet_jax.models.backbone import Backbone
from tests.helpers import model_config

# Parameters of the plain network, of its gated form ("residual") with the ResNet-20 gater, and gates; width 16, 10
# classes. ResNet-20 and ResNet-56 gated: released code. The others: counted by hand from the layers in PAPER order,
# 3x3 stem, 1x1 shortcuts, two parameters per channel and BatchNorm; their gated forms by `expected` below.
EXPECTED = {
    "resnet8": (78_042, 0, 112),
    "resnet20": (272_474, 547_842, 336),
    "resnet32": (466_906, 0, 560),
    "resnet44": (661_338, 0, 784),
    "resnet56": (855_770, 1_137_186, 1_008),
    "resnet110": (1_730_714, 0, 2_016),
}


def count(config):
    params = nnx.state(nnx.eval_shape(lambda: build_model(config)), nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def resnet_parameters(depth):
    """Plain CIFAR ResNet, counted from its description."""
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
    plain, gated, gates = EXPECTED[name]
    config = model_config(backbone=name, width=16, **{"gater.extractor": "resnet20", "gater.width": 16})
    model = nnx.eval_shape(lambda: build_model(config))
    assert sum(site.size for site in model.gate_sites) == gates
    extractor = resnet_parameters(20) - (64 * 10 + 10)
    assert count(config) == resnet_parameters(int(name[6:])) + extractor + 64 * 8 + 8 + 8 * gates + gates
    if gated:
        assert count(config) == gated
    config.gating = "none"
    assert count(config) == plain


def test_unknown_names_are_refused_with_what_exists():
    with pytest.raises(UserError, match="unknown model 'vgg16'; known models: resnet8, resnet20"):
        build_model(model_config(backbone="vgg16"))
    with pytest.raises(UserError, match="unknown model 'nope'; known models"):
        build_model(model_config(**{"gater.extractor": "nope"}))
    with pytest.raises(UserError, match=r"no CIFAR ResNet has depth 21; depths are 6n \+ 2"):
        build_model(model_config(backbone="resnet21"))
    with pytest.raises(UserError, match="unknown gating 'some'; known gatings: none, residual, all"):
        build_model(model_config(gating="some"))
    with pytest.raises(UserError, match="unknown compute type 'float8'; known types: float32, bfloat16"):
        build_model(model_config(dtype="float8"))


class Pool(Backbone):
    """A backbone without anything to gate."""

    def __init__(self, channels, num_classes, rngs, **_):
        self.channels, self.num_features, self.gate_sites = channels, channels, ()
        self.fc = nnx.Linear(channels, num_classes, rngs=rngs)

    def features(self, images, gates=None):
        return images.mean((1, 2))

    def __call__(self, images, gates=None):
        return self.fc(self.features(images))


def test_gating_asked_of_a_backbone_without_gate_sites(monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", list(registry._FAMILIES))
    registry.register("pool", ("pool",))(lambda match, **options: Pool(**options))
    with pytest.raises(UserError, match=r"'pool', which has no gate sites; set config.model.gating='none'"):
        build_model(model_config(backbone="pool"))
    plain = build_model(model_config(backbone="pool", gating="none"))
    assert plain(jnp.zeros((2, 8, 8, 3))).logits.shape == (2, 10)


def test_same_seed_same_parameters():
    one, same, other = (build_model(model_config(), seed=seed) for seed in (1, 1, 2))
    leaves = [jax.tree.leaves(nnx.state(model, nnx.Param)) for model in (one, same, other)]
    assert all((a == b).all() for a, b in zip(leaves[0], leaves[1], strict=True))
    assert not all((a == b).all() for a, b in zip(leaves[0], leaves[2], strict=True))
