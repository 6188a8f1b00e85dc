import dataclasses
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from gaternet_jax.analysis import figures
from gaternet_jax.analysis.class_plots import CLASS_PLOTS
from gaternet_jax.analysis.embedding import map_images, probe_gates
from gaternet_jax.analysis.figures import draw_figures, read_training
from gaternet_jax.analysis.plot import Subject
from gaternet_jax.analysis.statistics import compute_statistics
from tests.helpers import random_observations

NAMES = [
    *("kinds_by_depth", "images_per_gate", "open_per_image", "training"),
    *("gate_map", "class_overlap", "information_by_depth", "easy_and_hard"),
]


def subject(observations, training):
    gates, labels = observations.gates, observations.labels
    found = map_images(gates, labels), probe_gates(gates, labels)
    return Subject("a run", observations, compute_statistics(observations), *found, training)


@pytest.fixture
def full():
    return subject(random_observations(0), {"train": [(0.5, 0.6), (1.0, 0.55)], "eval": [(1.0, 0.5), (2.0, 0.4)]})


@pytest.fixture
def bare():
    """No class is known, no gate depends on the image, no record of a training run."""
    observations = random_observations(0, unknown=40)
    observations.gates[:] = np.arange(19) % 2 == 0
    return subject(observations, {})


def test_figures_of_two_runs_side_by_side(tmp_path, full, bare):
    drawn = draw_figures(tmp_path, [full, bare])
    assert [figure.png.stem for figure in drawn] == NAMES
    for figure in drawn:
        with Image.open(figure.png) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert figure.svg.read_text().startswith("<?xml")
        left, right = np.array_split(pixels[40:], 2, axis=1)  # below the columns' headings
        assert (left < 200).any() and (right < 200).any(), f"{figure.png.stem}: both columns show something"
    captions = {figure.png.stem: figure.caption for figure in drawn}
    statistics = full.statistics
    assert f"a run: {int((statistics.kinds == 1).sum())} gates depend on the image" in captions["kinds_by_depth"]
    assert f"{full.map.purity:.1%} are of the image's class" in captions["gate_map"]
    assert f"right for {full.probe.accuracy:.1%} of 10 held-out images" in captions["gate_map"]
    assert "shuffled" in captions["gate_map"]
    assert captions["training"].endswith("At the end 40.0% on the evaluation split.")


def test_names_of_classes_are_shown_as_they_are(tmp_path, full, monkeypatch):
    monkeypatch.setattr(figures, "GATE_PLOTS", ())
    monkeypatch.setattr(figures, "CLASS_PLOTS", figures.CLASS_PLOTS[:2])
    names = ("_background", "$\\frac$ a", "<b> & c")
    observations = dataclasses.replace(full.observations, class_names=names, labels=np.arange(40, dtype=np.int32) % 3)
    drawn = {figure.svg.stem: figure.svg for figure in draw_figures(tmp_path, [subject(observations, {})])}
    for name in ("gate_map", "class_overlap"):
        texts = {element.text for element in ElementTree.parse(drawn[name]).iter("{http://www.w3.org/2000/svg}text")}
        assert texts >= set(names)


def test_a_single_class_is_drawn(tmp_path, full, monkeypatch):
    monkeypatch.setattr(figures, "GATE_PLOTS", ())
    monkeypatch.setattr(figures, "CLASS_PLOTS", [plot for plot in CLASS_PLOTS if plot.name == "information_by_depth"])
    observations = dataclasses.replace(full.observations, class_names=("a",), labels=np.zeros(40, np.int32))
    single = Subject("a run", observations, compute_statistics(observations), None, None, {})
    assert "0.00 bits" in draw_figures(tmp_path, [single])[0].svg.read_text()


def test_what_a_run_has_nothing_for_is_not_drawn(tmp_path, bare):
    drawn = draw_figures(tmp_path, [bare])
    assert [figure.png.stem for figure in drawn] == ["kinds_by_depth", "open_per_image", "easy_and_hard"]
    assert "a run:" not in drawn[0].caption, "one run needs no names"


def test_training_record_of_a_run_at_work(tmp_path):
    assert read_training(tmp_path) == {}
    lines = [
        '{"step": 1, "split": "train", "epoch": 0.5, "gates_on": 0.5}',
        '{"step": 2, "split": "eval", "epoch": 1.0, "gates_on": 0.4, "loss": 1.0}',
        '{"step": 3, "split": "train", "epoch": 1.5, "loss": 0.5}',
        '{"step": 4, "spl',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_training(tmp_path) == {"train": [(0.5, 0.5)], "eval": [(1.0, 0.4)]}
