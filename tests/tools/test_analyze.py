import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from gaternet_jax.analysis.observe import load_observations
from gaternet_jax.tools import analyze
from tests.helpers import digits_config, save_random_model


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyze") / "a-run"
    save_random_model(folder)
    return folder


def run(*arguments):
    analyze.main([str(argument) for argument in arguments])


def test_split_of_the_runs_dataset(workdir, capsys, use_devices):
    use_devices(1)
    run(f"--workdir={workdir}", "--split=test[:48]", "--filters=2", "--sample=20")
    printed = capsys.readouterr().out
    for part in ("Gates of 48 images", "Linear probe", "2 filters forced shut and open for 20 images", "Figures"):
        assert re.search(rf"^{part}: \d+\.\d s$", printed, re.MULTILINE), part
    out = workdir / "analysis"
    observations = load_observations(out / "gates.npz")
    statistics = json.loads((out / "statistics.json").read_text())
    assert observations.gates.shape == (48, 112) and statistics["images"] == 48
    np.testing.assert_allclose(statistics["per_gate"]["open_rate"], observations.gates.mean(0), rtol=1e-5)
    right = (observations.predictions == observations.labels).mean()
    assert statistics["accuracy"] == pytest.approx(right, rel=1e-5) and f"accuracy: {right:.2%}" in printed
    assert statistics["linear_probe"].keys() >= {"accuracy", "majority", "shuffled"}
    assert statistics["map"].keys() >= {"neighbour_purity", "neighbour_purity_with_shuffled_labels"}
    portraits = json.loads((out / "portraits.json").read_text())
    gates = [portrait["gate"] for portrait in portraits["filters"]]
    assert gates == statistics["ablation"]["gates"] == [f["gate"] for f in statistics["most_specific_filters"][:2]]
    assert np.shape(statistics["ablation"]["shut"]) == (2, 10)
    assert {path.suffix for path in out.iterdir()} == {".npz", ".json", ".png", ".svg", ".html"}
    assert "a-run" in (out / "report.html").read_text(encoding="utf-8")
    assert f"Open {out}/report.html" in printed


def test_files_of_unknown_class_beside_another_run(workdir, tmp_path, capsys, use_devices):
    use_devices(1)
    (tmp_path / "pictures").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    out = tmp_path / "out"
    run(f"--workdir={workdir}", f"--images={tmp_path / 'pictures'}", f"--out={out}", f"--compare={workdir}")
    printed = capsys.readouterr().out
    assert "No image's class is known" in printed and "No map" in printed
    assert "accuracy:" not in printed and "Linear probe" not in printed and "forced" not in printed
    for prefix in ("", "compared-"):
        assert json.loads((out / f"{prefix}statistics.json").read_text())["ablation"] is None
    with Image.open(out / "kinds_by_depth.png") as figure:
        assert figure.width > 1900, "two columns"


def test_what_cannot_be_analysed_is_explained(workdir, tmp_path, monkeypatch):
    def refused(*arguments):
        with pytest.raises(SystemExit) as exit_:
            run(*arguments)
        return str(exit_.value)

    assert re.match(r"error: .*absent is not a folder", refused(f"--workdir={tmp_path / 'absent'}"))
    assert "is not a run" in refused(f"--workdir={tmp_path}")
    both = refused(f"--workdir={workdir}", "--split=test", f"--images={tmp_path}")
    assert both == f"error: --split=test and --images={tmp_path} were both given; choose one of them"
    (tmp_path / "file").write_text("")
    assert "choose another --out" in refused(f"--workdir={workdir}", f"--out={tmp_path / 'file' / 'out'}")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text(digits_config(**{"model.gating": "none"}).to_json())
    message = refused(f"--workdir={plain}")
    assert "is a plain resnet8: it has no gates" in message and "--config.model.gating=all" in message
    assert message == refused(f"--workdir={workdir}", f"--compare={plain}")
    gateless = SimpleNamespace(gate_sites=())
    monkeypatch.setattr("gaternet_jax.analysis.observe.load_model", lambda workdir, tell: gateless)  # of a compaction
    assert "has no gates left, because compaction found them always open" in refused(f"--workdir={workdir}")
