"""What is said of the gates of a run."""

import dataclasses

import numpy as np
import pytest

from gaternet_jax.analysis.pipeline import _summarize
from gaternet_jax.analysis.plot import Subject
from gaternet_jax.analysis.statistics import compute_statistics
from gaternet_jax.main import summary
from gaternet_jax.training.evaluate import note_on_gates
from tests.helpers import random_observations

NOTES = [
    (1.0, 0.0, "no gate depends on the image: all are open, as in a plain network; a larger loss.gate_weight"),
    (0.999, 0.002, "only 0.20% of the gates depend on the image: all are open"),
    (0.0, 0.0, "no gate depends on the image: all are closed; a smaller loss.gate_weight"),
    (0.4, 0.0, "no gate depends on the image: every image runs through the same filters"),
    (0.4, 0.3, ""),
]


@pytest.mark.parametrize(("gates_on", "input_dependent", "note"), NOTES)
def test_gates_that_hardly_depend_on_the_image(gates_on, input_dependent, note, tmp_path):
    found = note_on_gates(gates_on, input_dependent)
    assert found.startswith(note) and bool(found) == bool(note)
    metrics = {"gates_on": gates_on, "gates_input_dependent": input_dependent, "top1": 0.5, "images": 8, "step": 3}
    end = summary(tmp_path / "my run", metrics | {"finished": True})
    assert f"-m gaternet_jax.main --workdir='{tmp_path}/my run' --mode=evaluate\n" in end, "as a shell takes it"
    assert (f"  note         {found}" in end.splitlines()) == bool(note), "when a run ends"


@pytest.mark.parametrize("gates", [True, False])
def test_the_analysis_says_it_too(gates):
    observations = random_observations(0)
    observations = dataclasses.replace(observations, gates=np.full_like(observations.gates, gates))
    facts = dict(_summarize(Subject("run", observations, compute_statistics(observations), None, None, None)))
    assert facts["note on the gates"] == note_on_gates(float(gates), 0.0)
    observations = random_observations(0)
    facts = dict(_summarize(Subject("run", observations, compute_statistics(observations), None, None, None)))
    assert "note on the gates" not in facts
