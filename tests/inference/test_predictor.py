"""Bad input is told before anything is compiled; "auto" picks by measurement; threads share one predictor."""

import json
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from gaternet_jax.errors import UserError
from gaternet_jax.inference import Predictor
from gaternet_jax.inference.parts import Parts, PartsRunner, choose_parts
from gaternet_jax.inference.selection import everything, from_json, to_json
from gaternet_jax.inference.specialists import assign, group_sizes, pad_size, plan_specialists
from tests.helpers import digits_config, model_config, random_model


@pytest.fixture(scope="module")
def model():
    return random_model(model_config(gating="all"))


IMAGES = np.zeros((2, 16, 16, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mode="fast"), "unknown mode 'fast'"),
        (dict(mode="compact"), "needs calibration"),
        (dict(mode="specialists", calibration=IMAGES[:0]), "at least one"),
        (dict(mode="specialists", calibration=IMAGES[..., :1]), r"shape \[batch, size, size, 3\]"),
        (dict(mode="dense", batch_sizes=()), "batch_sizes"),
    ],
)
def test_arguments_that_cannot_be(model, arguments, message):
    with pytest.raises(UserError, match=message):
        Predictor(model, **arguments)


@pytest.mark.parametrize("mode", ["compact", "specialists", "dynamic"])
def test_a_plain_model_has_nothing_to_leave_out(mode):
    with pytest.raises(UserError, match="plain model has no gates"):
        Predictor(random_model(model_config(gating="none")), mode, IMAGES)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.uint8), "uint8"),
        (IMAGES[0], r"\[16, 16, 3\]"),
        (IMAGES[:, :8], "square"),
        (IMAGES[:, :8, :8], "8 pixels wide, but the calibration images are 16"),
        (["cat.png"], "preprocessing"),
    ],
)
def test_images_that_cannot_be(model, images, message):
    with pytest.raises(UserError, match=message):
        Predictor(model, "dense", IMAGES, tune=False)(images)


def test_a_missing_file(model, tmp_path):
    config = digits_config()
    with pytest.raises(UserError, match=r"none\.png cannot be read"):
        Predictor(random_model(config.model), "dense", data=config.data, tune=False)([tmp_path / "none.png"])


def test_auto_measures_and_threads_share_it(model):
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    predictor = Predictor(model, "auto", images, batch_sizes=(4,), tune=False)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: predictor(images).logits, range(4)))
    assert set(predictor.seconds[4]) == {"dense", "dynamic", "specialists"}
    assert predictor.chosen[4] == min(predictor.seconds[4], key=predictor.seconds[4].get)
    for logits in found:
        np.testing.assert_array_equal(logits, found[0])


def test_images_go_to_the_cheapest_specialist_that_covers_them():
    keep = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)
    gates = np.array([[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(assign(gates, keep), [0, 1, 2, 0])


def test_groups_are_padded_to_few_sizes():
    assert group_sizes(20) == [1, 2, 3, 4, 6, 8, 12, 16, 20]
    np.testing.assert_array_equal(pad_size(np.array([0, 1, 5, 9, 17, 20, 21, 65]), 20), [0, 1, 6, 12, 20, 20, 21, 66])


@pytest.mark.parametrize(("backend", "cores"), [("cpu", 2), ("cpu", 64), ("gpu", 16)])
def test_a_batch_is_cut_for_the_machine(monkeypatch, backend, cores):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    cut = {
        ("cpu", 2): [Parts(1, 1), Parts(2, 2), Parts(8, 4), Parts(1, 4), Parts(1, 4)],
        ("cpu", 64): [Parts(1, 1), Parts(1, 3), Parts(1, 64), Parts(1, 64), Parts(1, 64)],
        ("gpu", 16): [Parts(1, 1), Parts(3, 1), Parts(64, 1), Parts(64, 1), Parts(64, 1)],
    }
    found = [choose_parts(1, 32), choose_parts(3, 32), choose_parts(64, 32), choose_parts(64, 224)]
    assert [*found, choose_parts(64, 32, one_by_one=True)] == cut[backend, cores]


@pytest.mark.parametrize("parts", [Parts(4, 1), Parts(4, 3), Parts(11, 1)])
def test_parts_are_put_together_in_order_without_the_padding(parts):
    images, sizes = np.arange(12.0), []

    def run(images, chosen):
        sizes.append(len(chosen))
        return {"twice": 2 * images[chosen]}

    np.testing.assert_array_equal(PartsRunner(parts)(run, images, 10)["twice"], 2 * images[:10])
    assert set(sizes) == {parts.size}


def test_clustered_gates_get_specialists_and_random_ones_few(model):
    rng = np.random.default_rng(0)
    size = sum(site.size for site in model.gate_sites)
    clustered = (rng.random((4, size)) < 0.3)[rng.integers(4, size=200)]
    plan = plan_specialists(clustered, model.gate_sites, None, 64)
    assert len(plan.keep) == 4
    assert plan.seconds < 0.7
    assert (assign(clustered, plan.keep) < 4).all()
    assert plan_specialists(rng.random((200, size)) < 0.5, model.gate_sites, None, 64).seconds > 0.9


@pytest.mark.parametrize("change", [dict(kept=[0, 0]), dict(kept=[99]), dict(gated=5), dict(kept=None)])
def test_a_selection_of_another_model(model, change):
    content = json.loads(json.dumps(to_json(everything(model.gate_sites))))
    assert from_json(content, model.gate_sites) == everything(model.gate_sites)
    content[model.gate_sites[0].name] |= change
    with pytest.raises(UserError, match="not those of this model"):
        from_json(content, model.gate_sites)
