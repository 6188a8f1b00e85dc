"""The paper's networks are what it prints of them."""

import pytest

from benchmarks import paper_models
from benchmarks.published import GATES, TABLE_1, TABLE_2, TABLE_3
from gaternet_jax.models.build import abstract_model, count_parameters
from gaternet_jax.models.presets import PAPER, model_config

KEYS = [*TABLE_1, *TABLE_2, *TABLE_3]
OPEN = {  # explained in docs/paper_to_code.md
    ("imagenet", "inceptionv4", "plain"): 42_679_816,
    ("imagenet", "inceptionv4", "gated"): 42_679_816 + 15_576_096,
    ("imagenet", "resnet152", "wider"): 82_216_975,
}


@pytest.fixture(scope="module")
def rows():
    return {row.key: row for row in paper_models.rows()}


def test_every_row_is_a_preset():
    assert {paper_models.preset(key) for key in KEYS} == set(PAPER)
    assert {key[1] for key in KEYS} == set(GATES)


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_gates_and_parameters_are_the_printed_ones(key, rows):
    row = rows[key]
    assert row.our_gates == row.gates == (GATES[key[1]] if key[2] == "gated" else 0)
    if key in OPEN:
        assert row.our_parameters == OPEN[key] and not row.agrees and row.why
    else:
        assert f"{row.our_parameters / 1e6:.2f}" == f"{row.parameters:.2f}" and row.agrees


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_the_config_beside_a_row_means_its_preset(key, rows):
    config = paper_models.config_of(key).model
    model = abstract_model(config)
    assert count_parameters(model) == rows[key].our_parameters
    assert sum(site.size for site in model.gate_sites) == rows[key].our_gates
    preset = model_config(paper_models.preset(key))
    for field in ("backbone", "gating", "se_ratio", "num_classes", "gater", "dense_ungated"):
        assert config.to_dict()[field] == preset.to_dict()[field], field
    assert model.backbone.width == abstract_model(preset).backbone.width


def test_a_row_that_differs_does_not_agree(rows):
    row = rows["cifar10", "resnet20", "gated"]
    assert not row._replace(our_gates=335).agrees and not row._replace(our_parameters=600_000).agrees
