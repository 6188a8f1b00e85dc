"""Configs that cannot be used are refused, with every field that is wrong."""

import pytest

from gaternet_jax.config import default
from gaternet_jax.configs import cifar10
from gaternet_jax.errors import UserError
from gaternet_jax.validation import for_evaluation, validate


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


@pytest.mark.parametrize("pipeline", ["memory", "device"])
def test_random_crops_need_a_stream(pipeline):
    config = default()
    config.data.update(train_crop="random", pipeline=pipeline)
    with pytest.raises(UserError, match=r"data\.train_crop=random needs data\.pipeline=stream"):
        validate(config, num_devices=1)
    config.data.pipeline = "auto"
    validate(config, num_devices=1)
