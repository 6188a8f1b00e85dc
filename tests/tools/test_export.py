import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from gaternet_jax.inference.export import load_artifact
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
    pytest.importorskip("jax2onnx")
    export.main([f"--workdir={workdir}", f"--out={tmp_path / 'digits.onnx'}"])
    assert "digits.onnx (onnx, 0." in capsys.readouterr().out


def test_opset_that_cannot_be_written(workdir, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: --opset=21 is of ONNX files; give --format=onnx with it"):
        export.main([f"--workdir={workdir}", f"--out={tmp_path / 'model.zip'}", "--opset=21"])
    with pytest.raises(SystemExit, match=r"^error: opset 17 must be at least 18"):
        export.main([f"--workdir={workdir}", f"--out={tmp_path / 'model.onnx'}", "--opset=17"])


def test_opset_of_onnx(workdir, tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx")

    for opset in (18, 21):
        export.main([f"--workdir={workdir}", f"--out={tmp_path / f'{opset}.onnx'}", f"--opset={opset}"])
        model = onnx.load(tmp_path / f"{opset}.onnx")
        assert model.opset_import[0].version == opset and model.ir_version <= 10

    def refuse(reason):
        def session(*_, **__):
            raise RuntimeError(reason)

        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        with pytest.raises(SystemExit) as error:
            export.main([f"--workdir={workdir}", f"--out={tmp_path / 'model.onnx'}", "--opset=23"])
        return str(error.value)

    assert "is too old for opset 23 (it reads files till opset 21); upgrade it" in refuse("official till opset 21.")
    assert "too old" in refuse("Unsupported model IR version: 11, max supported IR version: 10")
    assert "does not run this model (opset 23): no Conv. Use --format=stablehlo" in refuse("no Conv")


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
