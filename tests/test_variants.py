"""Run cards, and what the words of a variant make of them."""

import json

import ml_collections
import pytest

from gaternet_jax.configs import cifar10, cifar100, digits, folder, imagenet
from gaternet_jax.errors import UserError
from gaternet_jax.models.build import abstract_model, count_parameters
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.models.registry import known_backbones
from gaternet_jax.training.objective import check_macs_target
from gaternet_jax.validation import validate
from gaternet_jax.variants import recipe_of

CARDS = {"cifar10": cifar10, "cifar100": cifar100, "digits": digits, "folder": folder, "imagenet": imagenet}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize("variant", ["", "plain", *known_backbones(), "resnet56-plain"])
def test_every_card_and_variant_is_valid(card, variant):
    config = card.get_config(variant)
    for devices in (1, 2, 4, 8):
        validate(config, devices)
    assert config.is_locked
    assert config.model.gating == ("none" if variant.endswith("plain") else digits_or("last", card))
    if variant.startswith("resnet"):
        assert config.model.backbone == variant.removesuffix("-plain")


def digits_or(gating, card):
    return "all" if card is digits else gating


@pytest.mark.parametrize("variant", ["resnet18", "resnet50"])
def test_the_target_of_the_imagenet_card_can_be_reached(variant):
    config = imagenet.get_config(variant)
    macs = MacCounter(abstract_model(config.model), 224)
    assert macs.least < 0.9 == config.loss.gate_target
    check_macs_target(config.loss.gate_target, macs)


def test_cards_differ_where_they_should():
    assert cifar100.get_config().model.num_classes == 100
    assert cifar100.get_config().data.name == "cifar100"
    assert digits.get_config().model.channels == 1


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (
            "resnet20-wide",
            "unknown part 'wide' of the config variant 'resnet20-wide'.*KIND one of plain, wider, se, local, aux",
        ),
        ("resnet20-plain-se", "'resnet20-plain-se' has two parts of one kind; give one of plain, se"),
        ("resnet20-all-last", "has two parts of one kind"),
        ("vgg", "unknown part 'vgg'"),
        ("resnet20-nesterov", "unknown part 'nesterov' .*RECIPE one of he, strong"),
        ("resnet20-he-strong", "has two parts of one kind; give one of he, strong"),
    ],
)
def test_unknown_variant_lists_what_exists(variant, message):
    with pytest.raises(UserError, match=message):
        cifar10.get_config(variant)


def test_parts_of_a_variant_combine():
    local = cifar10.get_config("resnet56-all-local").model
    assert (local.backbone, local.gating, local.gater.scope) == ("resnet56", "all", "local")
    taught = cifar10.get_config("resnet56-all-aux").model
    assert (taught.gating, taught.gater.auxiliary_weight, taught.gater.scope) == ("all", 1.0, "global")
    assert taught.gater.batch_norm and taught.gater.initial_bias == 2.0, "gates that can close, and look at the image"
    squeezed = cifar10.get_config("densenet100-se").model
    assert (squeezed.backbone, squeezed.gating, squeezed.se_ratio) == ("densenet100", "none", 16)
    assert cifar100.get_config("shake26_2x96d").model.backbone == "shake26_2x96d"
    ratios = {name: cifar10.get_config(f"{name}-se").model.se_ratio for name in ("resnet20", "resnet164_paper")}
    assert ratios == {"resnet20": 4, "resnet164_paper": 8}


@pytest.mark.parametrize("card", [imagenet, folder])
def test_inception_takes_larger_images_and_has_no_residual(card):
    config, resnet = card.get_config("inceptionv4"), card.get_config("resnet50")
    assert (config.data.image_size, config.model.zero_init_residual) == (299, False)
    assert (resnet.data.image_size, resnet.model.zero_init_residual) == (224, True)
    assert imagenet.get_config().model.gater.bottleneck == 256


@pytest.mark.parametrize("card", [cifar10, cifar100])
@pytest.mark.parametrize("variant", ["", "resnet20", "resnet56-plain", "wider", "densenet100-se", "resnet20-all-local"])
def test_a_recipe_is_one_word_for_every_cifar_variant(card, variant):
    he, strong = (card.get_config(f"{variant}-{word}".removeprefix("-")) for word in ("he", "strong"))
    assert (recipe_of(he), recipe_of(strong)) == ("he", "strong")
    assert he.model == strong.model == card.get_config(variant).model
    assert (he.optimizer.weight_decay, he.optimizer.schedule, he.optimizer.nesterov) == (1e-4, "steps", False)
    assert (he.optimizer.learning_rate, he.optimizer.decay_at, he.optimizer.decay_factor) == (0.1, (0.5, 0.75), 0.1)
    assert (strong.optimizer.weight_decay, strong.optimizer.schedule, strong.optimizer.nesterov) == (
        5e-4,
        "cosine",
        True,
    )
    assert strong.optimizer.learning_rate == 0.1
    for config in (he, strong):
        assert (config.train.batch_size, config.train.epochs) == (128, 200)
    assert card.get_config(variant) == he, "he is the default"


def test_the_name_of_a_recipe_follows_from_its_fields():
    config = cifar10.get_config("resnet20-strong").unlock()
    assert recipe_of(config) == "strong"
    config.optimizer.weight_decay = 4e-4
    assert recipe_of(config) == ""
    loaded = ml_collections.ConfigDict(json.loads(json.dumps(cifar10.get_config("he").to_dict())))
    assert recipe_of(loaded) == "he", "lists of a config.json are tuples"


@pytest.mark.parametrize("card", [imagenet, folder])
def test_cards_of_photographs_have_their_own_recipe(card):
    with pytest.raises(UserError, match="unknown part 'he'"):
        card.get_config("resnet18-he")
    assert (card.get_config().optimizer.schedule, card.get_config().optimizer.nesterov) == ("cosine", True)


def test_shake_shake_comes_with_cutout():
    assert cifar10.get_config("shake26_2x32d-plain").data.cutout == 16
    assert cifar100.get_config("shake26_2x32d").data.cutout == 8
    assert cifar10.get_config("resnet20").data.cutout == 0


def test_wider_has_nearly_the_gated_models_parameters_whatever_is_overridden():
    config = cifar10.get_config("resnet20-wider").model
    assert config.gating == "none"
    assert count_parameters(abstract_model(config)) == 561_371  # the gated model: 547,842
    config.update(width=8)
    gated = cifar10.get_config("resnet20").model
    gated.update(width=8)
    wider, target = (count_parameters(abstract_model(c)) for c in (config, gated))
    assert abs(wider - target) < 0.05 * target
