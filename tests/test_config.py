"""What the declarations of the fields give: types, choices, bounds, help."""

import ml_collections
import pytest

from gaternet_jax.config import FIELDS, MAY_CHANGE, MAY_OVERRIDE, default, flatten
from gaternet_jax.configs import cifar10
from gaternet_jax.fields import Field, describe
from gaternet_jax.workdir import check_workdir, load_config, save_config


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


def test_config_survives_its_file(tmp_path):
    config = cifar10.get_config("resnet56")
    save_config(config, ["a", "b"], tmp_path)
    loaded = load_config(tmp_path)
    assert isinstance(loaded, ml_collections.ConfigDict)
    assert dict(flatten(loaded)) == dict(flatten(config))
    check_workdir(tmp_path, config)
