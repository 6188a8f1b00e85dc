"""Whatever takes one of a few words refuses any other, and names those that it takes."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax import Predictor, UserError, build_model, create_model
from gaternet_jax.config import CHOICES, check_choices, default
from gaternet_jax.data.images import center_box, read_box
from gaternet_jax.data.splits import open_split
from gaternet_jax.gating.sites import group_gates
from gaternet_jax.inference.engines import choose_engine
from gaternet_jax.inference.network import Network
from gaternet_jax.models.build import abstract_model
from gaternet_jax.models.inception import pool
from gaternet_jax.tools.export import export
from gaternet_jax.training.objective import make_gate_loss
from gaternet_jax.training.optimizer import learning_rate_schedule
from gaternet_jax.training.pretrained import load_parts
from tests.helpers import backbone_options, model_config

MODEL = abstract_model(model_config())
OPTIONS = backbone_options(gating="all")
RUN = Path("runs/none")


def changed(**fields):
    config = default()
    config.update_from_flattened_dict(fields)
    return config


CASES = {
    "gating": lambda: dataclasses.replace(OPTIONS, gating="typo"),
    "dense_ungated": lambda: dataclasses.replace(OPTIONS, dense_ungated="typo"),
    "gater.scope": lambda: build_model(model_config(**{"gater.scope": "typo"})),
    "match_params_of": lambda: build_model(model_config(match_params_of="typo")),
    "dtype": lambda: build_model(model_config(dtype="typo")),
    "pool": lambda: pool(jnp.ones((1, 4, 4, 1)), "typo"),
    "group of gates": lambda: group_gates(MODEL.gate_sites, "typo"),
    "gate": lambda: make_gate_loss(changed(**{"loss.gate": "typo"}).loss, (), None),
    "gate_target_scope": lambda: make_gate_loss(changed(**{"loss.gate_target_scope": "typo"}).loss, (), None),
    "schedule": lambda: learning_rate_schedule(changed(**{"optimizer.schedule": "typo"}).optimizer, 1, 1),
    "init_parts": lambda: load_parts(MODEL, RUN, "typo", ()),
    "pipeline": lambda: open_split(None, "train", changed(**{"data.pipeline": "typo"}), None),
    "train_crop": lambda: open_split(None, "train", changed(**{"data.train_crop": "typo"}), None),
    "on_error": lambda: open_split(None, "train", changed(**{"data.on_error": "typo"}), None),
    "resize": lambda: read_box(_png(), center_box, 4, channels=1, resize="typo"),
    "mode": lambda: Predictor(MODEL, "typo"),
    "engine": lambda: choose_engine("typo"),
    "format": lambda: export(RUN, RUN, "typo"),
}


def _png():
    import cv2

    return cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()


@pytest.mark.parametrize("what", CASES)
def test_a_word_that_is_no_choice_is_refused(what):
    with pytest.raises(UserError, match=f"^unknown {what} 'typo'; known: "):
        CASES[what]()


def test_the_engine_of_a_network_and_of_a_predictor():
    for make in (lambda: Network(MODEL, 8, "typo"), lambda: Predictor(MODEL, "dense", engine="typo")):
        with pytest.raises(UserError, match=r"^unknown engine 'typo'; known: .*xla, onnxruntime"):
            make()


@pytest.mark.parametrize("name", [name for name in CHOICES if "." in name])
def test_every_field_with_choices_is_checked_with_its_section(name):
    section, _, field = name.partition(".")
    with pytest.raises(UserError, match=rf"^unknown {field} 'typo'; known: "):
        check_choices(changed_to_typo(name)[section], section)


def changed_to_typo(name):
    config = default()
    with config.ignore_type():
        config.update_from_flattened_dict({name: "typo"})
    return config


def test_create_model_names_the_choices():
    with pytest.raises(UserError, match=r"model\.gating='typo' must be one of none, last, all"):
        create_model("resnet8", gating="typo")
