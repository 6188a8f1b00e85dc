import json
from pathlib import Path

import ml_collections
import pytest

from gaternet_jax.config import FIELDS, MAY_CHANGE, MAY_OVERRIDE, default, flatten, for_evaluation, validate
from gaternet_jax.configs import cifar10, cifar100, digits, folder, imagenet
from gaternet_jax.errors import UserError
from gaternet_jax.fields import Field, describe
from gaternet_jax.models.build import abstract_model, count_parameters
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.models.registry import known_backbones
from gaternet_jax.training.objective import check_macs_target
from gaternet_jax.variants import recipe_of
from gaternet_jax.workdir import check_workdir, load_config, load_labels, save_config

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


def test_every_field_says_what_it_is_and_its_default_will_do():
    listed = describe(FIELDS)
    for name, field in FIELDS.items():
        assert field.text and f"  --config.{name}={field.default}\n      {field.text[:20]}" in listed
        assert field.problem(field.default) == ""
    assert dict(flatten(default())) == {name: field.default for name, field in FIELDS.items()}


def test_the_kind_and_the_choices_of_a_field_follow_from_its_type():
    assert (FIELDS["train.epochs"].kind, FIELDS["train.epochs"].choices) == (float, ())
    assert (FIELDS["data.mean"].kind, FIELDS["data.flip"].kind, FIELDS["seed"].kind) == (tuple, bool, int)
    assert (FIELDS["loss.gate"].kind, FIELDS["loss.gate"].choices) == (str, ("l1", "target", "macs"))
    assert (FIELDS["model.channels"].kind, FIELDS["model.channels"].choices) == (int, (1, 3))


def test_configs_are_config_dicts_of_their_own():
    config = default()
    assert isinstance(config.train, ml_collections.ConfigDict) and type(config.train.batch_size) is int
    config.train.batch_size = 3
    assert default().train.batch_size == 128


@pytest.mark.parametrize(
    ("known", "bounds"),
    [
        ({}, ""),
        ({"at_least": 0}, "at least 0"),
        ({"at_least": 0, "below": 1}, "at least 0 and less than 1"),
        ({"above": 0, "at_most": 1}, "greater than 0 and at most 1"),
        ({"below": 2**32}, "less than 4294967296"),
    ],
)
def test_bounds_are_said_as_they_are(known, bounds):
    assert Field(0, "", **known).bounds == bounds


def test_fields_that_may_change_are_those_that_users_rely_on():
    assert " ".join(MAY_CHANGE) == (
        "checkpoint.every_steps checkpoint.keep_latest data.data_dir data.name data.on_error data.pipeline data.root "
        "data.stall_seconds data.threads data.workers optimizer.schedule_epochs train.epochs train.eval_batch_size "
        "train.eval_every_epochs train.log_every_steps train.max_skipped_steps train.steps_per_call"
    )
    assert " ".join(MAY_OVERRIDE) == (
        "data.data_dir data.eval_split data.name data.on_error data.pipeline data.threads data.workers "
        "train.eval_batch_size"
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.batch_size", 0, "train.batch_size=0 must be greater than 0"),
        ("train.batch_size", 12, "train.batch_size=12 must be a multiple of the number of devices, 8"),
        ("train.eval_batch_size", 12, "train.eval_batch_size=12 must be a multiple of the number of devices, 8"),
        ("train.epochs", -1.0, "train.epochs=-1.0 must be greater than 0"),
        ("train.epochs", float("inf"), "train.epochs=inf must be finite"),
        ("seed", -1, "seed=-1 must be at least 0"),
        ("data.workers", -1, "data.workers=-1 must be at least 0"),
        ("data.pipeline", "disk", "data.pipeline='disk' must be one of auto, memory, device, stream"),
        ("train.steps_per_call", -1, "train.steps_per_call=-1 must be at least 0"),
        ("data.on_error", "ignore", "data.on_error='ignore' must be one of raise, skip"),
        ("data.resize", "cubic", "data.resize='cubic' must be one of area, bilinear"),
        ("data.crop_area", (0.0, 1.0), "data.crop_area=.* must be two numbers between 0 and 1, least and greatest"),
        ("data.crop_aspect", (2.0, 1.0), "data.crop_aspect=.* must be two positive numbers, least and greatest"),
        ("data.eval_crop", 1.5, "data.eval_crop=1.5 must be greater than 0 and at most 1"),
        ("optimizer.momentum", 1.0, "optimizer.momentum=1.0 must be at least 0 and less than 1"),
        ("train.ema_decay", 1.0, "train.ema_decay=1.0 must be at least 0 and less than 1"),
        ("model.gater.initial_bias", float("nan"), r"model.gater.initial_bias=nan must be finite \(in float32\)"),
        ("loss.gate", "l2", "loss.gate='l2' must be one of l1, target, macs"),
        ("loss.gate_target", 0.0, "loss.gate_target=0.0 must be greater than 0 and at most 1"),
        ("optimizer.learning_rate", -0.1, "optimizer.learning_rate=-0.1 must be at least 0"),
        ("optimizer.learning_rate", float("nan"), "optimizer.learning_rate=nan must be finite"),
        ("optimizer.schedule", "linear", "optimizer.schedule='linear' must be one of cosine, steps"),
        ("optimizer.warmup_epochs", 200.0, "warmup_epochs=200.0 must be less than train.epochs=200.0"),
        ("optimizer.schedule_epochs", 0.5, "warmup_epochs=1.0 must be less than optimizer.schedule_epochs=0.5"),
        ("data.background", (0, 0, 256), r"data.background=\(0, 0, 256\) must be three integers from 0 to 255"),
        ("data.background", (255, 255), "data.background=.* must be three integers"),
        ("data.mean", (0.5,), r"data.mean=\(0.5,\) needs one number per channel \(model.channels=3\)"),
        ("data.std", (0.5, 0.5, 0.0), "must be greater than 0"),
        ("model.channels", 4, "model.channels=4 must be one of 1, 3"),
        ("seed", 2**32, "seed=4294967296 must be at least 0 and less than 4294967296"),
        ("loss.gate_weight", float("inf"), r"loss.gate_weight=inf must be finite"),
        ("loss.gate_weight", 1e39, r"loss.gate_weight=1e\+39 must be finite \(in float32\)"),
        ("optimizer.weight_decay", float("nan"), "optimizer.weight_decay=nan must be finite"),
        ("optimizer.clip_norm", float("inf"), "optimizer.clip_norm=inf must be finite"),
        ("data.stall_seconds", float("inf"), "data.stall_seconds=inf must be finite"),
        ("data.mean", (0.5, float("nan"), 0.5), "data.mean=.* must be finite"),
        ("data.mean", ("a", "b", "c"), "data.mean=.* must be a sequence of numbers"),
        ("optimizer.decay_at", (0.75, 0.5), r"decay_at=\(0.75, 0.5\) must be increasing fractions"),
    ],
)
def test_values_out_of_range_are_named(field, value, message):
    config = default()
    config.train.update(batch_size=128, eval_batch_size=800)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        validate(config, num_devices=8)


def test_fields_that_are_missing_unknown_or_of_another_type_are_named():
    config = default()
    config.train.batchsize = 3  # a run card can add fields: its config is not locked
    del config.loss.gate
    with config.ignore_type():
        config.update_from_flattened_dict({"seed": 1.0, "data.flip": 1})
    config.train.epochs = 3  # a whole number will do
    with pytest.raises(UserError) as error:
        validate(config, num_devices=1)
    assert str(error.value).splitlines()[1:] == [
        "  data.flip=1 must be True or False",
        "  loss.gate is missing",
        "  seed=1.0 must be a whole number",
        "  train.batchsize is unknown",
    ]


def test_blocks_that_gate_themselves_have_no_auxiliary_classifier():
    config = cifar10.get_config("resnet20-local").unlock()
    config.model.gater.auxiliary_weight = 1.0
    with pytest.raises(UserError, match=r"auxiliary_weight needs model\.gater\.scope=global: no block sees the whole"):
        validate(config, 1)


def test_batches_of_one_and_a_batch_norm_over_them():
    config = default()
    config.update_from_flattened_dict({"model.gater.batch_norm": True, "train.batch_size": 1})
    with pytest.raises(UserError, match=r"model\.gater\.batch_norm=True needs train\.batch_size of at least 2"):
        validate(config, num_devices=1)


@pytest.mark.parametrize("field", ["crop_padding", "cutout"])
def test_augmentation_that_leaves_nothing_of_images(field):
    config = default()
    config.data[field] = config.data.image_size
    validate(config, num_devices=1)
    config.data[field] += 1
    with pytest.raises(UserError, match=rf"data\.{field}=33 must be at most data\.image_size=32"):
        validate(config, num_devices=1)


def test_an_evaluation_runs_on_other_numbers_of_devices_than_the_training():
    config = default()
    evaluated = for_evaluation(config.lock(), num_devices=3)
    assert (evaluated.train.eval_batch_size, config.train.eval_batch_size) == (513, 512)
    assert for_evaluation(config, num_devices=4).train.eval_batch_size == 512
    with pytest.raises(UserError, match=r"data\.mean=\(0\.5,\) needs one number per channel"):
        config.data.mean = (0.5,)
        for_evaluation(config, num_devices=4)


def test_all_problems_are_reported_at_once():
    config = default()
    config.update_from_flattened_dict({"train.batch_size": -1, "loss.gate_weight": -2.0})
    with pytest.raises(UserError, match=r"(?s)loss.gate_weight=-2.*train.batch_size=-1"):
        validate(config, num_devices=1)


def test_config_survives_its_file(tmp_path):
    config = cifar10.get_config("resnet56")
    save_config(config, ["a", "b"], tmp_path)
    loaded = load_config(tmp_path)
    assert isinstance(loaded, ml_collections.ConfigDict)
    assert dict(flatten(loaded)) == dict(flatten(config))
    check_workdir(tmp_path, config)


@pytest.mark.parametrize("pipeline", ["memory", "device"])
def test_random_crops_need_a_stream(pipeline):
    config = default()
    config.data.update(train_crop="random", pipeline=pipeline)
    with pytest.raises(UserError, match=r"data\.train_crop=random needs data\.pipeline=stream"):
        validate(config, num_devices=1)
    config.data.pipeline = "auto"
    validate(config, num_devices=1)


def _pop(section, *fields, **others):
    """Puts other fields in the place of some."""
    for field in fields:
        del section[field]
    section.update(others)


def test_config_of_another_version(tmp_path, capsys):
    """Fields that do not decide what the model computes may be missing, or unknown."""

    def change(edit):
        save_config(cifar10.get_config("resnet56"), ["a"], tmp_path)
        content = json.loads((tmp_path / "config.json").read_text())
        edit(content)
        (tmp_path / "config.json").write_text(json.dumps(content))
        return tmp_path

    loaded = load_config(change(lambda content: (content["data"].pop("stall_seconds"), content.pop("checkpoint"))))
    assert dict(flatten(loaded)) == dict(flatten(cifar10.get_config("resnet56"))) and loaded.is_locked
    assert "defaults of this one stand for checkpoint.every_steps, checkpoint.keep_" in capsys.readouterr().err
    load_config(change(lambda content: content["model"]["gater"].pop("initial_bias")))
    assert "stand for model.gater.initial_bias" in capsys.readouterr().err, "it says where training begins, no more"
    load_config(change(lambda content: content["model"].pop("dense_ungated")))
    assert not capsys.readouterr().err, "only DenseNets have such layers"
    names = {"gating": "residual", "squeeze_ratio": 4, "as_many_parameters_as": ""}
    older = load_config(change(lambda content: _pop(content["model"], "se_ratio", "match_params_of", **names)))
    assert (older.model.gating, older.model.se_ratio, older.model.match_params_of) == ("last", 4, "")
    assert not capsys.readouterr().err
    loaded = load_config(change(lambda content: content["train"].update(spikes=3, beats={"a": [1]})))
    assert dict(flatten(loaded)) == dict(flatten(cifar10.get_config("resnet56")))
    load_config(tmp_path)
    assert capsys.readouterr().err.count("without effect here: train.beats.a, train.spikes") == 1, "said once"
    for edit, message in (
        (lambda content: content["model"].pop("se_ratio"), "it lacks model.se_ratio"),
        (lambda content: content["data"].pop("mean"), "it lacks data.mean"),
        (lambda content: content.pop("data"), "it lacks data.image_size, data.mean, data.name, data.std"),
        (lambda content: content["model"].update(attention=1), "does not know model.attention"),
        (lambda content: content.update(train=[1]), "does not know train"),
        (lambda content: content.update(seed="zero"), "seed='zero' must be a whole number"),
        (lambda content: content["data"].update(resize="cubic"), "data.resize='cubic' must be one of area, bilinear"),
        (lambda content: content["data"].update(eval_crop=-1.0), "data.eval_crop=-1.0 must be greater than 0"),
        (lambda content: content["data"].update(mean=None), "data.mean=None must be a sequence of numbers"),
        (lambda content: content["data"].update({"a.b": 1}), "is not a config: ConfigDict does not accept dots"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(change(edit))


def test_a_config_that_was_once_written_is_read_for_good(tmp_path):
    """A new field of the model needs its value of before in older.py; this config trained a network of the ledger."""
    (tmp_path / "config.json").write_bytes((Path(__file__).parent / "golden" / "earlier_config.json").read_bytes())
    config, today = load_config(tmp_path), cifar10.get_config("resnet20-he").unlock()
    today.model.gater.initial_bias = 0.0  # as it is written there, whatever the default is now
    assert dict(flatten(config.model)) == dict(flatten(today.model))
    assert config.loss.gate_weight == 0.1


def test_dense_nets_of_earlier_versions_have_gates_in_every_layer(tmp_path):
    config = cifar10.get_config("densenet100")
    assert config.model.dense_ungated == "last"
    content = config.to_dict()
    del content["model"]["dense_ungated"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load_config(tmp_path).model.dense_ungated == "none"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", "has 2 lines, but the model has 10 classes; write one name a line"),
        (b"", "has 0 lines"),
        ("\n".join("äbcdefghij").encode("latin-1"), "cannot be read as text in UTF-8: .*; write the classes again"),
        ("\n".join("äbcdefghij").encode("utf-16"), "cannot be read as text in UTF-8"),
    ],
)
def test_class_names_that_do_not_fit(tmp_path, content, message):
    save_config(cifar10.get_config(), [], tmp_path)
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"labels.txt {message}"):
        load_labels(tmp_path)


@pytest.mark.parametrize("content", ["\n".join("äbcdefghij"), "\ufeff" + "\r\n".join("äbcdefghij") + "\r\n"])
def test_class_names_that_an_editor_wrote(tmp_path, content):
    save_config(cifar10.get_config(), [], tmp_path)
    (tmp_path / "labels.txt").write_bytes(content.encode())
    assert load_labels(tmp_path) == list("äbcdefghij")
    save_config(cifar10.get_config(), ["\u2028", *"bcdefghi", ""], tmp_path)
    assert load_labels(tmp_path) == ["\u2028", *"bcdefghi", ""]
