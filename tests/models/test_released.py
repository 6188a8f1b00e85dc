"""Released checkpoints: the converted model computes what PyTorch computes."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest

from gaternet_jax import load_model
from gaternet_jax.config import default
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.errors import UserError
from gaternet_jax.models.build import build_model
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.released import convert_released, flatten_released, infer_model
from gaternet_jax.models.safetensors import DTYPES, read_safetensors
from gaternet_jax.tools import convert
from gaternet_jax.workdir import load_config

GOLDEN = Path(__file__).parents[1] / "golden" / "released_resnet8.npz"
# A folder with resnet20_gated.pth and .npz of the authors' evaluation code; not part of the repository.
AUTHORS_GOLDEN = os.environ.get("GATERNET_GOLDEN", "")


@pytest.fixture
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture
def checkpoint(golden):
    """The contents of the .pth file, without needing PyTorch."""
    parts = {"backbone_state_dict": {}, "gater_state_dict": {}}
    for name, value in golden.items():
        if "/" in name:
            part, key = name.split("/")
            parts[part][key] = value
    return parts


def assert_golden(model, golden, config):
    model.eval()
    outputs = model(normalize(golden["images"], config))
    np.testing.assert_allclose(outputs.gate_scores, golden["gate_scores"], atol=1e-4)
    clear = np.abs(golden["gate_scores"]) > 1e-3
    np.testing.assert_array_equal(np.asarray(outputs.gates)[clear], golden["gates"][clear])
    agree = (np.asarray(outputs.gates) == golden["gates"]).all(axis=1)
    assert agree.mean() > 0.9
    np.testing.assert_allclose(np.asarray(outputs.logits)[agree], golden["logits"][agree], atol=1e-4)
    assert 0.2 < golden["gates"].mean() < 0.8 and np.abs(golden["logits"]).max() > 0.1, "the golden values say much"


def test_converted_model_gives_the_golden_outputs(golden, checkpoint):
    tensors, config = flatten_released(checkpoint), default()
    infer_model(tensors, config.model)
    assert (config.model.backbone, config.model.width, config.model.num_classes) == ("resnet8", 4, 10)
    assert (config.model.gater.extractor, config.model.gater.width) == ("resnet8", 4)
    graphdef, _, _ = split_model(build_model(config.model))
    assert_golden(merge_model(graphdef, *convert_released(tensors, config.model)), golden, config.data)


def test_convert_writes_what_load_model_takes(golden, tmp_path, capsys):
    pytest.importorskip("torch")
    out = tmp_path / "converted"
    convert.main([f"--checkpoint={GOLDEN.with_suffix('.pth')}", f"--out={out}"])
    assert "Converted resnet8-Gated (10 classes)" in capsys.readouterr().out
    assert_golden(load_model(out), golden, load_config(out).data)


@pytest.mark.skipif(not AUTHORS_GOLDEN, reason="GATERNET_GOLDEN names no folder with the authors' golden outputs")
def test_authors_golden_outputs(tmp_path):
    pytest.importorskip("torch")
    convert.main([f"--checkpoint={AUTHORS_GOLDEN}/resnet20_gated.pth", f"--out={tmp_path / 'out'}"])
    golden = dict(np.load(f"{AUTHORS_GOLDEN}/resnet20_gated.npz"))
    assert_golden(load_model(tmp_path / "out"), golden, load_config(tmp_path / "out").data)


def test_missing_unknown_and_misshapen_tensors_are_all_named(checkpoint):
    backbone = checkpoint["backbone_state_dict"]
    del backbone["module.stage2.block1.bn1.running_var"]
    backbone["module.stage2.block1.extra.weight"] = np.zeros(3, np.float32)
    backbone["module.stage3.block1.conv1.weight"] = np.zeros((16, 8, 5, 5), np.float32)
    tensors, config = flatten_released(checkpoint), default()
    infer_model(tensors, config.model)
    with pytest.raises(UserError) as error:
        convert_released(tensors, config.model)
    for part in (
        "missing: backbone.stage2.block1.bn1.running_var (8,)",
        "unknown: backbone.stage2.block1.extra.weight (3,)",
        "wrong shape: backbone.stage3.block1.conv1.weight (16, 8, 5, 5), expected (16, 8, 3, 3)",
    ):
        assert part in str(error.value)


def test_contents_of_another_kind(checkpoint):
    with pytest.raises(UserError, match=r"expected the keys .*backbone_state_dict.*, found \['model'\]"):
        flatten_released({"model": 1})
    with pytest.raises(UserError, match="found list"):
        flatten_released([1, 2])
    del checkpoint["backbone_state_dict"]["module.fc.weight"]
    with pytest.raises(UserError, match=r"not a released GaterNet checkpoint: 'backbone\.fc\.weight' is missing"):
        infer_model(flatten_released(checkpoint), default().model)


@pytest.mark.parametrize("contents", [b"", b"text, not tensors", b"\x80\x02}q\x00."], ids=["empty", "text", "pickle"])
def test_files_of_another_kind_write_nothing(tmp_path, contents):
    pytest.importorskip("torch")
    (tmp_path / "x.pth").write_bytes(contents)
    with pytest.raises(SystemExit, match=r"^error: .*not a (PyTorch|released GaterNet) checkpoint"):
        convert.main([f"--checkpoint={tmp_path / 'x.pth'}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_truncated_checkpoint_and_missing_file(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "x.pth").write_bytes(GOLDEN.with_suffix(".pth").read_bytes()[:5000])
    with pytest.raises(SystemExit, match="is not a PyTorch checkpoint"):
        convert.main([f"--checkpoint={tmp_path / 'x.pth'}", f"--out={tmp_path / 'out'}"])
    with pytest.raises(SystemExit, match="does not exist"):
        convert.main([f"--checkpoint={tmp_path / 'y.pth'}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("classes", "name"), [(10, "cifar10"), (5, ""), (20, "")])
def test_dataset_follows_from_the_number_of_classes(tmp_path, checkpoint, monkeypatch, capsys, classes, name):
    backbone = checkpoint["backbone_state_dict"]
    for part in ("weight", "bias"):
        tensor = np.asarray(backbone[f"module.fc.{part}"])
        backbone[f"module.fc.{part}"] = np.resize(tensor, (classes, *tensor.shape[1:]))
    monkeypatch.setattr(convert, "read_pickle", lambda path: checkpoint)
    convert.main(["--checkpoint=x.pth", f"--out={tmp_path / 'out'}"])
    assert load_config(tmp_path / "out").data.name == name
    said = capsys.readouterr().out
    assert ("--mode=evaluate" in said) == bool(name) and ("Its dataset is not known" in said) != bool(name)


def test_folder_in_use_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="is not an empty folder; choose another --out"):
        convert.main([f"--checkpoint={GOLDEN.with_suffix('.pth')}", f"--out={tmp_path}"])


def test_state_dicts_of_another_kind(checkpoint):
    with pytest.raises(UserError, match="backbone_state_dict is a list"):
        flatten_released(checkpoint | {"backbone_state_dict": [1]})
    checkpoint["gater_state_dict"]["module.resnet.newfc.weight"] = "text"
    with pytest.raises(UserError, match=r"gater\.resnet.newfc.weight is not a tensor of ordinary floats"):
        flatten_released(checkpoint)


def renamed(checkpoint, form):
    """The same tensors as another program saves them."""
    flat = {
        f"{part.partition('_')[0]}.{name.removeprefix('module.')}": value
        for part, state in checkpoint.items()
        for name, value in state.items()
    }
    return {
        "compiled": lambda: {
            part: {f"_orig_mod.{name}": value for name, value in state.items()} for part, state in checkpoint.items()
        },
        "compiled, then parallel": lambda: {f"module._orig_mod.{name}": value for name, value in flat.items()},
        "plain": lambda: flat | {"epoch": 3, "args": {"lr": 0.1}},
        "state_dict": lambda: {"state_dict": {f"model.{name}": value for name, value in flat.items()}, "epoch": 3},
        "net": lambda: {"net": flat, "optimizer": {"state": {}}},
        "model, of two": lambda: {"model": checkpoint},
        "averaged": lambda: {"n_averaged": np.int64(3)} | {f"module.{name}": value for name, value in flat.items()},
    }[form]()


FORMS = ["compiled", "compiled, then parallel", "plain", "state_dict", "net", "model, of two", "averaged"]


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_as_people_save_them(checkpoint, form):
    expected, found = flatten_released(checkpoint), flatten_released(renamed(checkpoint, form))
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("value", ["nan", "integers", "complex", "twice"])
def test_tensors_that_cannot_be_weights(checkpoint, value):
    state = checkpoint["backbone_state_dict"]
    state["module.fc.bias"] = {
        "nan": np.full(10, np.nan), "integers": np.zeros(10, np.int8),
        "complex": np.zeros(10, np.complex64), "twice": 0.0,
    }[value]  # fmt: skip
    if value == "twice":
        state |= {"module.fc.bias": np.zeros(10), "fc.bias": np.zeros(10)}
        checkpoint = {"state_dict": {f"backbone.{name}": tensor for name, tensor in state.items()}}
    messages = {"nan": "has numbers that are NaN", "twice": "has two tensors backbone.fc.bias"}
    with pytest.raises(UserError, match=messages.get(value, "ordinary floats")):
        flatten_released(checkpoint)


def test_parameters_and_bfloat16_of_pytorch(tmp_path, checkpoint):
    torch = pytest.importorskip("torch")
    changed = {
        part: {name: torch.nn.Parameter(torch.tensor(value).bfloat16()) for name, value in state.items() if value.shape}
        for part, state in checkpoint.items()
    }
    torch.save(changed, tmp_path / "x.pth")
    found, expected = flatten_released(convert.read_pickle(tmp_path / "x.pth")), flatten_released(checkpoint)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-2)


def test_other_python_objects_are_named_and_never_read(tmp_path, checkpoint):
    torch = pytest.importorskip("torch")
    torch.save(checkpoint | {"args": argparse.Namespace(lr=0.1)}, tmp_path / "x.pth")
    with pytest.raises(
        SystemExit, match=r"holds other Python objects than tensors \(.*\); reading them could run code"
    ):
        convert.main([f"--checkpoint={tmp_path / 'x.pth'}", f"--out={tmp_path / 'out'}"])


def save_safetensors(path, tensors, dtype="F32"):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        content = np.ascontiguousarray(tensor, DTYPES[dtype]).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(np.shape(tensor)), "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 0), ("F16", 1e-3), ("BF16", 1e-2), ("F64", 0)])
def test_safetensors(tmp_path, checkpoint, dtype, tolerance):
    expected = flatten_released(checkpoint)
    save_safetensors(tmp_path / "x.safetensors", expected, dtype)
    found = flatten_released(read_safetensors(tmp_path / "x.safetensors"))
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=tolerance, atol=1e-6 if tolerance else 0)


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    save_safetensors(path, {"a": np.zeros((2, 3))})
    whole = path.read_bytes()
    assert read_safetensors(path)["a"].shape == (2, 3)
    for damaged in (b"", whole[:5], whole[:40], whole[:-1], b"\xff" * 50, whole.replace(b"F32", b"F8x"), whole[:8]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is not a whole file of safetensors"):
            read_safetensors(path)
    path.write_bytes((2).to_bytes(8, "little") + b"[]")
    with pytest.raises(UserError, match="is not a whole file of safetensors"):
        read_safetensors(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_safetensors(tmp_path / "y.safetensors")


def test_weights_of_other_dimensions(checkpoint):
    backbone = checkpoint["backbone_state_dict"]
    with pytest.raises(UserError, match="a weight has another number of dimensions"):
        infer_model(
            flatten_released({**checkpoint, "backbone_state_dict": backbone | {"module.fc.weight": np.zeros(3)}}),
            default().model,
        )
    gray = backbone | {"module.conv.weight": np.zeros((4, 1, 3, 3))}
    with pytest.raises(UserError, match="sees RGB images; this one's first convolution has 1 channels"):
        infer_model(flatten_released({**checkpoint, "backbone_state_dict": gray}), default().model)
