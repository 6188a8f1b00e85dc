import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import inference as module
from benchmarks.accuracy_time import mean_macs
from benchmarks.inference import masked, medians, open_only, pattern
from gaternet_jax.models.build import build_model
from gaternet_jax.models.mac_counter import MacCounter
from tests.helpers import model_config, random_model


@pytest.mark.parametrize("backbone", ["resnet8", "resnet18", "resnet50"])
def test_pytorch_peer_computes_what_the_model_computes(backbone):
    torch = pytest.importorskip("torch")
    from benchmarks.pytorch_inference import MaskedGaterNet

    model = build_model(model_config(backbone=backbone, gating="all", width=4))
    model.eval()
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.inference_mode():
        logits = MaskedGaterNet(model)(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    outputs = jax.jit(lambda images: model(images))(images)
    assert 0 < outputs.gates.mean() < 1
    np.testing.assert_allclose(logits, outputs.logits, atol=1e-4)


def test_patterns_open_the_given_fraction_of_each_convolution():
    model = build_model(model_config(gating="all"))
    model.eval()
    keep = pattern(model, 0.5, np.random.default_rng(0))
    assert all(keep[site.gates].sum() == round(site.size / 2) for site in model.gate_sites)
    open_only(model, keep)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 3)), jnp.float32)
    np.testing.assert_array_equal(model(images).gates, np.broadcast_to(keep, (2, len(keep))))
    counter = MacCounter(model, 8)
    gates = jnp.ones((2, len(keep)))
    assert mean_macs(model, gates, 8) == pytest.approx(counter.gater + counter.dense)
    assert mean_macs(model, gates * keep[None], 8) < counter.gater + 0.7 * counter.dense


def test_every_run_is_timed_in_every_round(monkeypatch):
    """A quick one runs once before its burst of calls, of which the mean counts."""
    clock, calls = [0.0], []
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(module.time, "sleep", lambda _: None)

    def run(name, seconds):
        calls.append(name)
        clock[0] += seconds

    runs = {name: functools.partial(lambda name, s, _: run(name, s), name, s) for name, s in (("a", 0.009), ("b", 1.0))}
    assert medians(runs, np.zeros(1), rounds=3) == pytest.approx({"a": 0.009, "b": 1.0})
    assert calls.count("a") == 1 + 3 * (1 + 4) and calls.count("b") == 1 + 3


def test_every_mode_is_timed_with_the_gates_that_it_is_for(monkeypatch, tmp_path):
    """ "specialists" have an image of each class."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, rng = random_model(model_config(gating="all")), np.random.default_rng(0)
    keep, images = pattern(model, 0.5, rng), rng.normal(size=(4, 16, 16, 3)).astype(np.float32)
    open_only(model, keep)
    others = np.stack([pattern(model, 0.5, rng) for _ in range(module.CLASSES)]).astype(np.float32)
    runs = module.modes(model, keep, others, images, "onnxruntime")
    wanted = masked(model)(images)
    assert set(runs) == {"gater", "dense", "compact", "dynamic", "specialists"}
    for mode in ("dense", "compact", "dynamic"):
        np.testing.assert_allclose(runs[mode](images).logits, wanted.logits, atol=1e-4)
    outputs = runs["specialists"](images)
    np.testing.assert_array_equal(outputs.gates, others[:4])
    np.testing.assert_allclose(outputs.logits, model.backbone(jnp.asarray(images), jnp.asarray(others[:4])), atol=1e-4)
