"""Configs that other versions wrote are read."""

import json
from pathlib import Path

import pytest

from gaternet_jax.config import flatten
from gaternet_jax.configs import cifar10
from gaternet_jax.errors import UserError
from gaternet_jax.workdir import load_config, save_config


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
