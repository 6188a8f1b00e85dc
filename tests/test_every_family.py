"""What a trained run is good for, with a small network of each family: exported, compacted, analysed."""

import json

import numpy as np
import onnxruntime
import pytest

from gaternet_jax import Predictor, load_run
from gaternet_jax.analysis.observe import load_observations
from gaternet_jax.inference.artifact import load_artifact
from gaternet_jax.tools import analyze, compact, export
from tests.helpers import SMALL, image_size, save_random_model

IMAGES = 24


@pytest.fixture(scope="module", params=[pytest.param(family, marks=pytest.mark.slow) for family in SMALL])
def workdir(request, tmp_path_factory, data_dir):
    (name, width), folder = SMALL[request.param], tmp_path_factory.mktemp(request.param) / "run"
    model = {"model.backbone": name, "model.width": width, "model.gating": "all", "model.gater.width": 4}
    save_random_model(folder, **model, **{"data.image_size": image_size(request.param)})
    return folder


def images_of(workdir, batch=3):
    data = load_run(workdir).config.data
    return np.random.default_rng(0).integers(0, 256, (batch, data.image_size, data.image_size, 1), np.uint8)


def test_exports_compute_what_the_run_predicts(workdir, tmp_path):
    pytest.importorskip("flatbuffers")
    images = images_of(workdir)
    wanted = Predictor.from_run(workdir, "dense", batch_sizes=(3,), tune=False, engine="xla")(images)
    for name in ("model.onnx", "model.zip"):
        export.main([f"--workdir={workdir}", f"--out={tmp_path / name}"])
    outputs = load_artifact(tmp_path / "model.zip")(images)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    probabilities, labels, gates = session.run(None, {"images": images})
    powers = np.exp(wanted.logits - wanted.logits.max(-1, keepdims=True))
    for kind, (likely, label, gate) in {
        "onnx": (probabilities, labels, gates),
        "stablehlo": (outputs["probabilities"], outputs["labels"], outputs["gates"]),
    }.items():
        np.testing.assert_allclose(likely, powers / powers.sum(-1, keepdims=True), atol=1e-4, err_msg=kind)
        np.testing.assert_array_equal(label, wanted.logits.argmax(-1), err_msg=kind)
        np.testing.assert_array_equal(gate, wanted.gates, err_msg=kind)


def test_a_compacted_run_gives_the_same_logits_for_the_same_gates(workdir, tmp_path):
    compact.main([f"--workdir={workdir}", f"--out={tmp_path / 'compact'}", f"--images={IMAGES}"])
    report = json.loads((tmp_path / "compact" / "compaction_report.json").read_text())
    assert report["largest_difference_of_logits"]["gates as calibrated"] <= 1e-4
    assert report["parameters"][1] < report["parameters"][0] and report["macs_backbone"][1] < report["macs_backbone"][0]
    predict = Predictor.from_run(tmp_path / "compact", "dense", batch_sizes=(3,), tune=False)
    assert np.isfinite(predict(images_of(workdir)).logits).all()


def test_the_gates_of_every_convolution_are_analysed(workdir, tmp_path, use_devices):
    use_devices(1)
    options = [f"--split=test[:{IMAGES}]", "--filters=2", "--sample=4"]
    analyze.main([f"--workdir={workdir}", f"--out={tmp_path}", *options])
    observed, run = load_observations(tmp_path / "gates.npz"), load_run(workdir)
    assert observed.sites == run.model.gate_sites and len(observed.gates) == IMAGES
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    assert len(statistics["per_gate"]["open_rate"]) == sum(site.size for site in run.model.gate_sites)
    assert len(statistics["ablation"]["gates"]) == 2
    assert (tmp_path / "report.html").stat().st_size > 10_000
