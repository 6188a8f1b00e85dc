import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from gaternet_jax.analysis.embedding import _Ridge, map_images, neighbour_purity, probe_gates


def gates_and_labels(images=200, gates=30, strength=1.0, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, images)
    of_class = random.random((4, gates)) < 0.5
    informed = random.random((images, gates)) < strength
    return np.where(informed, of_class[labels], random.random((images, gates)) < 0.5), labels


def test_probe_finds_what_is_there_and_nothing_else():
    found = probe_gates(*gates_and_labels(strength=0.8))
    assert found and found.accuracy > 0.9 and found.shuffled < 0.45
    assert (found.learned_from, found.held_out) == (150, 50)
    nothing = probe_gates(*gates_and_labels(strength=0))
    assert nothing and nothing.accuracy < 0.45


def test_probe_leaves_out_images_of_unknown_class():
    gates, labels = gates_and_labels()
    labels[:100] = -1
    found = probe_gates(gates, labels)
    assert found and found.learned_from + found.held_out == 100
    assert probe_gates(gates, np.where(np.arange(200) < 15, labels[::-1], -1)) is None, "too few"
    assert probe_gates(gates, np.zeros(200, int)) is None, "a single class"


def test_majority_is_the_most_frequent_class():
    gates, labels = gates_and_labels()
    labels = np.where(np.arange(200) % 10 < 7, 2, labels)
    found = probe_gates(gates, labels)
    assert found and found.majority == pytest.approx((labels == 2).mean(), abs=0.12)


def test_ridge_is_that_of_scikit_learn():
    gates, labels = gates_and_labels(strength=0.4)
    train, test = slice(0, 60), slice(60, 200)
    for penalty in (1.0, 30.0):
        mine = _Ridge(gates[train], gates[test]).predict(labels[train], penalty)
        theirs = RidgeClassifier(alpha=penalty).fit(gates[train].astype(float), labels[train])
        np.testing.assert_array_equal(mine, theirs.predict(gates[test].astype(float)))


def test_error_is_that_of_leaving_one_out():
    gates, _ = gates_and_labels(images=12, gates=5)
    targets = np.random.default_rng(1).normal(size=(12, 2))
    errors = []
    for left_out in range(12):
        others = np.arange(12) != left_out
        x, y = gates[others].astype(float), targets[others]
        centred = x - x.mean(0)
        weights = np.linalg.solve(centred.T @ centred + 3.0 * np.eye(5), centred.T @ (y - y.mean(0)))
        errors.append(targets[left_out] - y.mean(0) - (gates[left_out] - x.mean(0)) @ weights)
    ridge = _Ridge(gates, gates)
    centred = targets - targets.mean(0)
    assert ridge._error(centred, ridge._train.T @ centred, 3.0) == pytest.approx(np.square(errors).mean())


def test_purity_is_that_of_counting():
    random = np.random.default_rng(0)
    points, labels = random.normal(size=(40, 2)), random.integers(0, 3, 40)
    shares = []
    for i, point in enumerate(points):
        nearest = [j for j in np.argsort(((points - point) ** 2).sum(1)) if j != i][:10]
        shares.append(np.mean(labels[nearest] == labels[i]))
    assert neighbour_purity(points, labels, random)[0] == pytest.approx(np.mean(shares))
    apart = np.where(np.arange(40) < 20, 100.0, 0.0)[:, None] + points
    pure, shuffled = neighbour_purity(apart, np.arange(40) // 20, random)
    assert pure == 1 and 0.3 < shuffled < 0.7
    assert np.isnan(neighbour_purity(points[:10], labels[:10], random)[0])


def test_map_brings_alike_images_together():
    gates, labels = gates_and_labels(images=60, strength=0.9)
    found = map_images(gates, labels)
    assert found and found.points.shape == (60, 2) and found.dimensions == 30
    assert found.purity > 0.7 > found.shuffled
    assert map_images(gates[:, :1], labels) is None, "nothing to tell images apart by"
    assert map_images(np.ones((60, 30), bool), labels) is None
