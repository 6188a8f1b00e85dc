import sys

import numpy as np
import onnxruntime
import pytest

from gaternet_jax.inference.artifact import load_artifact
from gaternet_jax.tools import export
from tests.helpers import prefer_two, save_random_model


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A random digits model, saved; its third logit is raised."""
    folder = tmp_path_factory.mktemp("export") / "run"
    save_random_model(folder, prefer_two, "digit {}", **{"model.width": 4, "model.gating": "none"})
    return folder


def test_run_to_artifact(workdir, tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    out = tmp_path / "new folder" / "digits.zip"
    export.main([f"--workdir={workdir}", f"--out={out}", "--checkpoint=0"])
    assert f"Wrote {out} (stablehlo, 0." in capsys.readouterr().out
    artifact = load_artifact(out)
    preprocessing = artifact.metadata["preprocessing"]
    size, channels = preprocessing["image_size"], preprocessing["channels"]
    outputs = artifact(np.zeros((2, size, size, channels), np.uint8))
    assert [artifact.labels[label] for label in outputs["labels"]] == ["digit 2", "digit 2"]


def test_suffix_chooses_onnx(workdir, tmp_path, capsys):
    export.main([f"--workdir={workdir}", f"--out={tmp_path / 'digits.onnx'}"])
    assert "digits.onnx (onnx, 0." in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx", providers=["CPUExecutionProvider"])
    _, labels = session.run(None, {"images": np.zeros((3, 8, 8, 1), np.uint8)})
    np.testing.assert_array_equal(labels, [2, 2, 2])


def test_onnx_runtime_that_does_not_run_the_model(workdir, tmp_path, monkeypatch):
    def session(*_, **__):
        raise RuntimeError("no Conv\nhere")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(SystemExit, match=r"^error: onnxruntime .* does not run this model: no Conv$"):
        export.main([f"--workdir={workdir}", f"--out={tmp_path / 'model.onnx'}"])
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced(workdir, tmp_path):
    (tmp_path / "model.zip").write_text("mine")
    with pytest.raises(SystemExit, match=r"^error: .*model\.zip is there already; choose another --out"):
        export.main([f"--workdir={workdir}", f"--out={tmp_path / 'model.zip'}"])
    assert (tmp_path / "model.zip").read_text() == "mine"


def test_folder_that_cannot_be_made(workdir, tmp_path):
    pytest.importorskip("flatbuffers")
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"^error: .*model\.zip cannot be written: .*; choose another --out"):
        export.main([f"--workdir={workdir}", f"--out={tmp_path / 'file' / 'model.zip'}"])


def test_missing_run_and_checkpoint(workdir, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .* is not a run"):
        export.main([f"--workdir={tmp_path / 'nothing'}", f"--out={tmp_path / 'model.zip'}"])
    with pytest.raises(SystemExit, match="has no checkpoint '7'; it has steps"):
        export.main([f"--workdir={workdir}", f"--out={tmp_path / 'model.zip'}", "--checkpoint=7"])


def test_checkpoint_is_a_name_or_a_step(workdir, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export.main([f"--workdir={workdir}", f"--out={tmp_path / 'model.zip'}", "--checkpoint=newest"])
    assert "'newest' is neither best, nor latest, nor a step" in capsys.readouterr().err


def test_missing_flatbuffers(workdir, tmp_path, monkeypatch):
    for name in ("flatbuffers", "jax._src.export.serialization"):  # JAX imports the first in the second
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r"^error: writing an artefact needs flatbuffers, .*pip install flatbuffers"):
        export.main([f"--workdir={workdir}", f"--out={tmp_path / 'model.zip'}"])
