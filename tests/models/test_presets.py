import jax.numpy as jnp
import pytest

import gaternet_jax as gx
from gaternet_jax.errors import UserError
from gaternet_jax.models.presets import PAPER, model_config
from gaternet_jax.models.registry import known_backbones


def test_names_say_dataset_and_backbone():
    names = gx.list_models()
    assert len(names) == len(set(names)) and set(known_backbones()) | set(PAPER) <= set(names)
    assert gx.list_models("imagenet_res*") == [f"imagenet_resnet{depth}" for depth in (18, 34, 50, 101, 152)]
    assert gx.list_models("vgg*") == []
    for name in names:
        config = model_config(name)
        large = "imagenet" in name or config.num_classes == 1000
        assert config.gater.extractor == ("resnet18" if large else "resnet20")
        assert config.num_classes == (1000 if large else 100 if "cifar100" in name else 10)
    assert model_config("cifar100_resnet74").backbone == "resnet74", "families have more members than are listed"


def test_a_model_is_created_by_name():
    model = gx.create_model("cifar10_resnet8", gating="all", num_classes=3, width=4, gater_extractor="resnet8")
    assert isinstance(model, gx.GaterNet) and not model.deterministic
    assert sum(site.size for site in model.gate_sites) == 2 * (4 + 8 + 16)
    model.eval()
    assert model(jnp.zeros((2, 8, 8, 3))).logits.shape == (2, 3)
    config = model_config("paper/cifar100_resnet164_gated")
    assert (config.backbone, config.gating, config.num_classes) == ("resnet164_paper", "last", 100)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10_renset56", "unknown model 'cifar10_renset56'; names like it: cifar10_resnet56"),
        ("paper/cifar10_resnet164_gate", "names like it: paper/cifar10_resnet164_gated"),
        ("cifar11_resnet56", "names like it: cifar1"),
        ("cifar10_resnet21", "no CIFAR ResNet has depth 21"),
        ("zzz", r"unknown model 'zzz'; gaternet_jax.list_models\(\) lists"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name, message):
    with pytest.raises(UserError, match=message):
        gx.create_model(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widht": 4}, "model.widht is unknown"),
        ({"gater_scop": "local"}, "model.gater.scop is unknown"),
        ({"width": "8"}, "model.width='8' must be a whole number"),
        ({"gating": "some"}, "model.gating='some' must be one of none, last, all"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"backbone": "resnet20"}, "backbone='resnet20' contradicts the name 'cifar10_resnet8'"),
    ],
)
def test_unknown_fields_and_values_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        gx.create_model("cifar10_resnet8", **fields)
