import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from gaternet_jax.analysis.statistics import class_overlap, compute_statistics, save_statistics, to_json
from gaternet_jax.gating.sites import group_gates
from tests.helpers import random_observations

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_rates_and_kinds_are_those_of_counting(seed):
    observations = random_observations(seed, images=30 + seed, unknown=seed)
    statistics = compute_statistics(observations)
    gates, labels = observations.gates.tolist(), observations.labels.tolist()
    for gate, states in enumerate(zip(*gates, strict=True)):
        assert statistics.open_rate[gate] == sum(states) / len(gates)
        assert statistics.kinds[gate] == (0 if not any(states) else 2 if all(states) else 1)
        for label in range(3):
            of_class = [state for state, other in zip(states, labels, strict=True) if other == label]
            assert statistics.open_rate_by_class[label, gate] == sum(of_class) / len(of_class)
    assert set(statistics.kinds) == {0, 1, 2}, "all kinds are tried"
    assert statistics.open_per_image.tolist() == [sum(states) for states in gates]
    assert statistics.images_by_class.tolist() == [labels.count(label) for label in range(3)]
    right = [p == t for p, t in zip(observations.predictions, labels, strict=True) if t >= 0]
    assert statistics.accuracy == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("seed", SEEDS)
def test_mutual_information_is_that_of_scikit_learn(seed):
    observations = random_observations(seed, unknown=seed)
    bits = compute_statistics(observations).mutual_information
    known = observations.labels >= 0
    for gate, states in enumerate(observations.gates[known].T):
        expected = mutual_info_score(observations.labels[known], states) / math.log(2)
        assert bits[gate] == pytest.approx(expected, abs=1e-12)


def test_a_gate_that_is_the_class_tells_one_bit_and_a_constant_one_none():
    observations = random_observations(0, images=40, classes=2)
    labels = (np.arange(40) % 2).astype(np.int32)
    observations.gates[:, 3] = labels == 1
    statistics = compute_statistics(dataclasses.replace(observations, labels=labels))
    assert statistics.mutual_information[3] == pytest.approx(1)
    assert statistics.mutual_information[[0, -1]].tolist() == [0, 0]
    assert statistics.most_specific(2)[0] == 3 and statistics.locate(6) == ("stage1.block2.conv2", 1)
    assert set(statistics.kinds[statistics.most_specific(100)]) == {1}


def test_chance_information_is_what_unrelated_gates_show():
    random = np.random.default_rng(0)
    observations = random_observations(0, images=300, classes=4, widths=(200, 200))
    observations.gates[:] = random.random(observations.gates.shape) < 0.5
    statistics = compute_statistics(observations)
    assert statistics.mutual_information.mean() == pytest.approx(statistics.chance_information, rel=0.15)


@pytest.mark.parametrize("seed", SEEDS)
def test_overlap_is_that_of_its_definition(seed):
    rates = np.random.default_rng(seed).random((4, 9))
    rates[3] = 0
    overlap = class_overlap(rates)
    for a, b in itertools.product(range(3), repeat=2):
        pairs = list(zip(rates[a], rates[b], strict=True))
        assert overlap[a, b] == pytest.approx(sum(map(min, pairs)) / sum(map(max, pairs)))
    assert overlap[3].tolist() == [0, 0, 0, 1]


def test_overlap_of_open_filters_leaves_out_constant_ones_where_it_says_so():
    observations = random_observations(1)
    statistics = compute_statistics(observations)
    dependent = statistics.open_rate_by_class[:, statistics.kinds == 1]
    np.testing.assert_array_equal(statistics.overlap_dependent, class_overlap(dependent))
    assert statistics.overlap[0, 1] > statistics.overlap_dependent[0, 1], "gates that are always on are shared"


def test_almost_constant_is_within_one_percent():
    observations = random_observations(0, images=200)
    observations.gates[:, 1:5] = False
    for gate, count in ((1, 2), (2, 3), (3, 198), (4, 197)):
        observations.gates[:count, gate] = True
    assert compute_statistics(observations).almost_constant[:5].tolist() == [False, True, False, True, False]


def test_confidence_parts_go_from_hard_to_easy():
    observations = random_observations(2, images=23, unknown=4)
    parts = compute_statistics(observations).by_confidence
    ranks = np.argsort(observations.confidences)
    assert [part["images"] for part in parts] == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    first = ranks[:3]
    assert parts[0]["open_gates"] == pytest.approx(observations.gates[first].sum() / 3)
    known = [i for i in ranks[3:6] if observations.labels[i] >= 0]
    right = [observations.predictions[i] == observations.labels[i] for i in known]
    assert parts[1]["accuracy"] == pytest.approx(sum(right) / len(right))


def test_counts_by_unit_and_stage_add_up():
    observations = random_observations(0)
    found = to_json(compute_statistics(observations), {})["kinds"]
    assert list(found["units"]) == ["stage1.block1", "stage1.block2", "stage2.block1"]
    for kind, count in found["overall"].items():
        for groups in ("units", "stages"):
            assert sum(group[kind] for group in found[groups].values()) == count
    gates = group_gates(observations.sites, "stage")
    assert found["stages"]["stage1"]["always off"] == (~observations.gates[:, gates["stage1"]].any(0)).sum()


def test_unknown_classes_are_null_in_json(tmp_path):
    for unknown in (40, 0):
        observations = random_observations(0, classes=4, unknown=unknown)
        if not unknown:
            observations.labels[observations.labels == 3] = 0  # a class without images
        save_statistics(tmp_path / "statistics.json", compute_statistics(observations), {"further": float("nan")})
        found = json.loads((tmp_path / "statistics.json").read_text())
        assert found["further"] is None and found["images"] == 40
        assert found["per_gate"]["open_rate_by_class"][3] == [None] * 19
        assert (found["accuracy"] is None) == (found["overlap"][0][1] is None) == bool(unknown)
    assert not compute_statistics(random_observations(0, unknown=40)).most_specific(5).size
