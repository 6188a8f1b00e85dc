"""Every mode of a Predictor gives the logits of the masked model, for batches of any size, in both engines."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax import Predictor
from gaternet_jax.errors import UserError
from gaternet_jax.gating import GateSite
from gaternet_jax.inference import batching, modes
from gaternet_jax.inference.compaction import compact_model, departures
from gaternet_jax.inference.modes import Modes, plan_profiles
from gaternet_jax.inference.network import Network
from tests.helpers import model_config, random_model, run_model

SIZE, KINDS = 16, 4  # pixels; how many patterns of gates there are


def images_of(kinds, seed=0):
    """Images that the engineered gater tells apart: kind k is bright in quarter k."""
    images = np.random.default_rng(seed).normal(size=(len(kinds), SIZE, SIZE, 3)).astype(np.float32) * 0.1
    for image, kind in zip(images, kinds, strict=True):
        row, column = divmod(int(kind), 2)
        image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 1.0 + kind
    return images


def engineered(patterns=None, seed=0, **overrides):
    """A model whose gates for images of kind k are patterns[k]."""
    model = random_model(model_config(**({"gater.batch_norm": True, "gater.bottleneck": KINDS} | overrides)), seed)
    if patterns is None:
        return model
    # Least squares from the extractor's features to one unit of the bottleneck per kind.
    head, kinds = model.gater.head, np.arange(KINDS).repeat(8)
    features = np.asarray(model.gater.extractor.features(jnp.asarray(images_of(kinds, seed=99))), np.float64)
    features = np.concatenate([features, np.ones((len(features), 1))], 1)
    weights = np.linalg.lstsq(features, np.eye(KINDS)[kinds] - 0.5, rcond=None)[0]
    head.bn = None
    head.bottleneck.kernel.set_value(jnp.asarray(weights[:-1], jnp.float32))
    head.bottleneck.bias.set_value(jnp.asarray(weights[-1], jnp.float32))
    scores = np.where(patterns, 40.0, -40.0)
    head.scores.kernel.set_value(jnp.asarray(scores, jnp.float32))
    head.scores.bias.set_value(jnp.zeros(scores.shape[1], jnp.float32))
    return model


def random_patterns(model, rate=0.5, seed=0):
    gates = sum(site.size for site in model.gate_sites)
    return np.random.default_rng(seed).random((KINDS, gates)) < rate


@pytest.fixture(scope="module")
def model():
    """A third of its filters is never open, another always."""
    patterns = random_patterns(engineered(gating="all"), 0.4)
    patterns[:, ::3], patterns[:, 1::3] = False, True
    return engineered(patterns, gating="all")


@pytest.fixture(scope="module")
def wanted(model):
    """64 images, and what the masked model makes of them."""
    images = images_of(np.arange(64) * 7 % KINDS, seed=2)
    outputs = run_model(model, images)
    assert 0 < outputs.gates.mean() < 1
    assert len(np.unique(outputs.gates, axis=0)) == KINDS, "the gater was engineered well"
    return images, outputs


CALIBRATION = images_of(np.arange(64) % KINDS, seed=1)


@pytest.mark.parametrize("engine", ["xla", "onnxruntime"])
@pytest.mark.parametrize("mode", ["dense", "compact", "specialists", "dynamic"])
def test_batches_of_any_size_come_back_in_order(mode, engine, model, wanted):
    predictor = Predictor(model, mode, CALIBRATION, batch_sizes=(1, 16), tune=False, engine=engine)
    for count in (1, 3, 64) if engine == "onnxruntime" else (3, 19):
        outputs = predictor(wanted[0][:count])
        np.testing.assert_array_equal(outputs.gates, wanted[1].gates[:count])
        np.testing.assert_allclose(outputs.logits, wanted[1].logits[:count], atol=1e-4)
        if mode != "compact":  # whose gates that are fixed have other scores
            np.testing.assert_allclose(outputs.gate_scores, wanted[1].gate_scores[:count], rtol=1e-3)


def test_images_that_calibration_never_saw(model, wanted):
    """Exact modes stay exact; compaction counts what it only approximates."""
    calibration = images_of(np.zeros(16, int), seed=1)
    images, outputs = wanted[0][:8], wanted[1]
    for mode in ("specialists", "dynamic"):
        found = Predictor(model, mode, calibration, batch_sizes=(8,), tune=False)(images)
        np.testing.assert_array_equal(found.gates, outputs.gates[:8])
        np.testing.assert_allclose(found.logits, outputs.logits[:8], atol=1e-4)
    compacted = compact_model(model, outputs.gates[:1])  # of the same kind
    narrow = run_model(compacted, images)
    left = departures(outputs.gates[:8], compacted)
    np.testing.assert_array_equal(left, np.arange(8) * 7 % KINDS != 0)
    difference = np.abs(outputs.logits[:8] - narrow.logits).max(1)
    assert difference[~left].max() <= 1e-4 < difference[left].min()


def test_dynamic_mode_without_calibration_learns_of_the_first_images(model, wanted):
    predictor = Predictor(model, "dynamic", batch_sizes=(1, 4), tune=False)
    for first, last in ((0, 3), (3, 8)):
        found = predictor(wanted[0][first:last])
        np.testing.assert_array_equal(found.gates, wanted[1].gates[first:last])
        np.testing.assert_allclose(found.logits, wanted[1].logits[first:last], atol=1e-4)
    assert predictor.chosen == {1: "dynamic", 4: "dynamic"} and not predictor.seconds


def test_blocks_that_gate_themselves():
    model = random_model(model_config(**{"gating": "all", "gater.scope": "local"}))
    images = images_of([0, 1, 2], seed=2)
    wanted = run_model(model, images)
    for mode in ("dense", "compact", "auto"):
        predictor = Predictor(model, mode, images, batch_sizes=(3,), tune=False)
        found = predictor(images)
        np.testing.assert_array_equal(found.gates, wanted.gates)
        np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-4)
    assert set(predictor.seconds[3]) == {"dense"}
    for mode in ("specialists", "dynamic"):
        with pytest.raises(UserError, match="block by block"):
            Predictor(model, mode, images)


def test_profiles_have_room_for_tiers_of_the_images():
    sites = [GateSite("a", 0, 8), GateSite("b", 8, 64)]
    opened = np.zeros((4, 72), bool)
    opened[:2, :2] = opened[:2, 8:11] = True  # half of the images open few
    opened[2:, :5] = opened[2:, 8:28] = True
    assert plan_profiles(opened, sites, lambda widths: sum(widths) / 72) == [(4, 8), (8, 24)]
    assert plan_profiles(opened, sites, lambda widths: sum(widths) / 30) == [(4, 8)], "the other is hardly narrower"


class Narrow:
    """A network whose images are their gates, and that notes what runs which of them."""

    engine = "onnxruntime"

    def __init__(self):
        self.model = SimpleNamespace(gate_sites=[GateSite("a", 0, 8), GateSite("b", 8, 8)])
        self.ran = []

    def work(self, widths):
        return sum(widths) / 16

    def make(self, kind, keep=None, threads=1):
        def engine(rows, images, gates=None):
            if kind != "gater":
                self.ran.append((kind, rows.tolist()))
            return [images[rows]] * {"whole": 3, "gater": 2}.get(kind, 1)

        return engine

    def profile(self, widths):
        return self.make(widths)

    def run(self, mode, images):
        """What runs which images, once a mode is made."""
        self.ran.clear()
        np.testing.assert_array_equal(mode(images, len(images))[0], images)
        return list(self.ran)


@pytest.fixture
def gates(monkeypatch):
    """Of three images that open few filters, and of one that opens all."""
    monkeypatch.setattr(batching, "CORES", 1)
    gates = np.zeros((4, 16), np.float32)
    gates[1, :3], gates[2, :4], gates[3] = 1, 1, 1
    return gates


def test_each_image_runs_by_the_narrowest_profile_with_room(gates, monkeypatch):
    network = Narrow()
    ran = network.run(Modes(network, gates, tune=False).dynamic(gates[:3]), gates)
    assert ran == [((4, 4), [0]), ((4, 4), [1]), ((4, 4), [2]), ("backbone", [3])], "image by image on CPUs"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    together = Modes(network, gates, tune=False).dynamic(gates[:3])
    assert network.run(together, gates[:3]) == [((4, 4), [0, 1, 2])]
    assert network.run(together, gates) == [("backbone", [0, 1, 2, 3])]


def test_profiles_that_are_not_quicker_are_left_out(gates, monkeypatch):
    network, example, costs, measured = Narrow(), np.resize(gates, (12, 16)), {}, []

    def seconds(run):
        measured.append(network.run(lambda *_: run(), example[:8]))
        return costs[measured[-1][0][0]]

    monkeypatch.setattr(modes, "best_seconds", seconds)
    for of_profile, chosen in ((2.0, "whole"), (0.5, (4, 4))):
        costs |= {(4, 4): of_profile, "whole": 1.0}
        measured.clear()
        mode = Modes(network, example).dynamic(gates[:3])
        assert [[name for name, _ in ran] for ran in measured] == [6 * [(4, 4)] + ["backbone"], ["whole"]]
        assert network.run(mode, gates)[0][0] == chosen


def test_specialists_that_are_not_worth_a_program_are_left_out(gates):
    """As of gates that have nothing in common."""
    network, random = Narrow(), np.random.default_rng(0).random((64, 16)) < 0.5
    mode = Modes(network, gates, tune=False).specialists(random)
    assert network.run(mode, gates) == [("whole", [0, 1, 2, 3])]


def test_dynamic_mode_is_one_program_where_no_profile_is_quicker(model, monkeypatch):
    """Gater and backbone one after the other would only cost time then."""
    ways = Modes(Network(model, SIZE, "xla"), images_of([0]), tune=False)
    gates = np.ones((2, sum(site.size for site in model.gate_sites)), np.float32)
    asked = []
    monkeypatch.setattr(ways, "gates", lambda *images: asked.append("gates"))
    logits, *_ = ways.dynamic(gates)(images_of([0]), 1)  # all gates are open: there is nothing for a profile to save
    np.testing.assert_allclose(logits, model(jnp.asarray(images_of([0]))).logits, atol=1e-4)
    assert not asked
