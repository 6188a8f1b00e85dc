"""Exported models compute what the model computes, in a process that has none of this package."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest

from gaternet_jax.config import default
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.errors import UserError
from gaternet_jax.inference import artifact
from gaternet_jax.inference.artifact import export_onnx
from gaternet_jax.inference.compaction import fix_gates
from gaternet_jax.inference.engines import OnnxRuntime
from gaternet_jax.models.functional import merge_model, split_model
from tests.helpers import model_config, random_model

SIZE = 8
LABELS = [f"Klasse ä{label}" for label in range(10)]
KINDS = {
    "dense": {"gating": "all"},
    "compacted": {"gating": "all"},
    "local": {"gating": "all", "gater.scope": "local", "se_ratio": 2},
    "plain": {"gating": "none"},
    "large images": {"backbone": "resnet18", "gating": "all", "width": 4},
    "strided": {"backbone": "shake26_2x2d", "gating": "last", "width": 0},  # JAX gathers slices of a symbolic batch
}


def make(kind):
    config = default()
    config.model = model_config(**KINDS[kind])
    config.data.image_size = SIZE
    model = random_model(config.model)
    if kind == "compacted":
        rng, gates = np.random.default_rng(1), sum(site.size for site in model.gate_sites)
        closed = rng.random(gates) < 0.3
        model = fix_gates(model, closed, ~closed & (rng.random(gates) < 0.2))
    return model, config


def images_of(batch):
    return np.random.default_rng(batch).integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)


def run_model(model, config, images):
    """The expected outputs, without the exported function."""
    graphdef, params, stats = split_model(model)
    outputs = jax.jit(lambda x: merge_model(graphdef, params, stats)(normalize(x, config.data)))(images)
    logits = np.asarray(outputs.logits)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = powers / powers.sum(-1, keepdims=True)
    return {"probabilities": probabilities, "labels": logits.argmax(-1), "gates": np.asarray(outputs.gates)}


def assert_same(outputs, expected, tolerance=1e-5):
    for name, values in outputs.items():
        assert values.shape == expected[name].shape
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.fixture
def artifact_path(tmp_path):
    pytest.importorskip("flatbuffers")
    model, config = make("plain")
    path = tmp_path / "plain.zip"
    artifact.export_stablehlo(model, config, LABELS, path)
    return path


@pytest.mark.parametrize(("kind", "batches"), [("compacted", (3, 1)), ("local", (3,)), ("strided", (3,))])
def test_artifact_computes_what_the_model_computes_for_any_batch(kind, batches, tmp_path):
    pytest.importorskip("flatbuffers")
    model, config = make(kind)
    artifact.export_stablehlo(model, config, LABELS, tmp_path / "model.zip")
    loaded = artifact.load_artifact(tmp_path / "model.zip")
    images = images_of(3)
    expected = run_model(model, config, images)
    for batch in batches:
        outputs = loaded(images[:batch])
        assert {name: str(values.dtype) for name, values in outputs.items()} == {
            "probabilities": "float32",
            "labels": "int32",
            "gates": "float32",
        }
        assert_same(outputs, {name: values[:batch] for name, values in expected.items()})
    assert 0 < expected["gates"].mean() < 1
    assert loaded.labels == LABELS
    assert loaded.metadata["platforms"] == ["cpu", "cuda", "tpu"]
    assert loaded.metadata["preprocessing"]["mean"] == list(config.data.mean)
    assert sum(site["size"] for site in loaded.metadata["gate_sites"]) == outputs["gates"].shape[1]
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_readme_of_an_artifact_loads_it_with_jax_alone(tmp_path):
    pytest.importorskip("flatbuffers")
    model, config = make("dense")
    artifact.export_stablehlo(model, config, LABELS, tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        readme = archive.read("README.txt").decode()
    np.save(tmp_path / "images.npy", images_of(3))
    code = [line[4:] for line in readme.splitlines() if line.startswith("    ")]
    program = [
        "import sys",
        "import numpy as np",
        "images = np.load('images.npy')",
        *code,
        "assert not {'flax', 'gaternet_jax'} & set(sys.modules)",
        "np.savez('outputs.npz', **outputs)",
    ]
    # -P: without the folder of the tests; the package may be installed, but must not be imported.
    ran = subprocess.run(
        [sys.executable, "-P", "-X", "utf8", "-c", "\n".join(program)], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    expected = run_model(model, config, images_of(3))
    assert ran.stdout.strip() == str([LABELS[label] for label in expected["labels"]])
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert_same(dict(outputs), expected)


def test_same_model_gives_the_same_bytes_without_paths(artifact_path, tmp_path):
    model, config = make("plain")
    (tmp_path / "again").mkdir()
    again = tmp_path / "again" / artifact_path.name
    artifact.export_stablehlo(model, config, LABELS, again)
    assert again.read_bytes() == artifact_path.read_bytes()
    with zipfile.ZipFile(again) as archive:
        program = archive.read("model.stablehlo")
    assert b".py" in program  # where an operation comes from, but for the folder
    assert str(Path(artifact.__file__).parents[2]).encode() not in program


def test_images_that_do_not_fit_are_refused(artifact_path):
    loaded = artifact.load_artifact(artifact_path)
    images = images_of(2)
    for wrong, message in (
        (
            images.astype(np.float32),
            r"images are float32 \[2, 8, 8, 3\]; this model takes uint8 \[batch, 8, 8, 3\]",
        ),
        (images[:, :4], r"uint8 \[2, 4, 8, 3\].*resize them to 8 x 8 pixels"),
        (images[..., :1], r"uint8 \[2, 8, 8, 1\].*convert them to RGB"),
        (images[0], r"uint8 \[8, 8, 3\].*as images\[None\]"),
        (images[:0], r"uint8 \[0, 8, 8, 3\].*at least one image"),
        (images.tolist(), "images are a list;.*NumPy or JAX array"),
    ):
        with pytest.raises(UserError, match=message):
            loaded(wrong)


def rewrite(path, **contents):
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | contents).items():
            archive.writestr(name, content)


def test_newer_artifact(artifact_path):
    metadata = artifact.load_artifact(artifact_path).metadata | {"format": 2}
    rewrite(artifact_path, **{"metadata.json": json.dumps(metadata), "model.stablehlo": b"unknown"})
    with pytest.raises(UserError, match=r"made by a newer gaternet-jax: format 2, this one reads 1; upgrade"):
        artifact.load_artifact(artifact_path)


def test_program_that_this_jax_cannot_read(artifact_path):
    rewrite(artifact_path, **{"model.stablehlo": b"unknown"})
    with pytest.raises(UserError, match=r"was made with jax .* cannot read it .*export the model again"):
        artifact.load_artifact(artifact_path)


def test_files_that_are_no_artifacts(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.zip cannot be read: No such file"):
        artifact.load_artifact(tmp_path / "nothing.zip")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        artifact.load_artifact(tmp_path)
    path = tmp_path / "file.zip"
    path.write_text("hello")
    with pytest.raises(UserError, match=r"file\.zip is not an artefact of gaternet-jax, or a damaged one"):
        artifact.load_artifact(path)
    for content in ("[]", "{}", '{"format": "one"}', '{"format": 1}', "{"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", content)
            archive.writestr("model.stablehlo", b"")
        with pytest.raises(UserError, match="is not an artefact"):
            artifact.load_artifact(path)


def test_truncated_artifact(artifact_path):
    artifact_path.write_bytes(artifact_path.read_bytes()[:-100])
    with pytest.raises(UserError, match="or a damaged one"):
        artifact.load_artifact(artifact_path)


def test_labels_must_be_those_of_the_classes(tmp_path):
    model, config = make("plain")
    with pytest.raises(UserError, match="9 names were given for 10 classes"):
        artifact.export_stablehlo(model, config, LABELS[:9], tmp_path / "model.zip")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "strided"])
def test_onnx_runtime_computes_what_the_model_computes(kind, tmp_path):
    model, config = make(kind)
    path = tmp_path / "model.onnx"
    export_onnx(model, config, LABELS, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["probabilities", "labels", "gates"][: 2 if kind == "plain" else 3]
    images = images_of(3)
    expected = run_model(model, config, images)
    for batch in (3, 1):
        outputs = dict(zip(names, session.run(None, {"images": images[:batch]}), strict=True))
        assert outputs["labels"].dtype == np.int32
        assert_same(outputs, {name: values[:batch] for name, values in expected.items()}, tolerance=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == LABELS
    assert json.loads(metadata["preprocessing"])["image_size"] == SIZE


@pytest.mark.parametrize(("name", "message"), [("gates", r"4 of 224 gates"), ("probabilities", r"by 5\.0e-01")])
def test_onnx_that_computes_something_else_is_not_written(name, message, tmp_path, monkeypatch):
    def changed(run, rows, images):
        outputs = dict(zip(("probabilities", "labels", "gates"), OnnxRuntime.__call__(run, rows, images), strict=True))
        outputs[name] = np.where(np.arange(outputs[name].shape[1]) == 0, outputs[name] + 0.5, outputs[name])
        return list(outputs.values())

    monkeypatch.setattr(artifact, "OnnxRuntime", type("Changed", (OnnxRuntime,), {"__call__": changed}))
    with pytest.raises(UserError, match=f"differs from JAX's: .*{message}.* Use --format=stablehlo"):
        export_onnx(*make("dense"), LABELS, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_bfloat16_model_computes_in_float32_in_onnx(tmp_path):
    (_, config), path = make("plain"), tmp_path / "model.onnx"
    config.model.dtype = "bfloat16"
    export_onnx(random_model(config.model), config, LABELS, path)
    probabilities, _ = onnxruntime.InferenceSession(path).run(None, {"images": images_of(3)})
    np.testing.assert_allclose(probabilities, run_model(*make("plain"), images_of(3))["probabilities"], atol=1e-4)


def test_what_is_fixed_closed_is_not_exported(tmp_path):
    pytest.importorskip("flatbuffers")
    sizes = {}
    for kind in ("dense", "compacted"):
        model, config = make(kind)
        artifact.export_stablehlo(model, config, LABELS, tmp_path / "model.zip")
        export_onnx(model, config, LABELS, tmp_path / "model.onnx")
        with zipfile.ZipFile(tmp_path / "model.zip") as archive:
            sizes[kind] = [archive.getinfo("model.stablehlo").file_size, (tmp_path / "model.onnx").stat().st_size]
    assert all(narrow < whole - 4000 for narrow, whole in zip(sizes["compacted"], sizes["dense"], strict=True)), sizes


def test_onnx_without_its_packages(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(UserError, match=r"needs onnx and onnxruntime: pip install -e '\.\[onnx\]'"):
        export_onnx(*make("plain"), LABELS, tmp_path / "model.onnx")
