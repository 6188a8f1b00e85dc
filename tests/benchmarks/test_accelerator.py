"""The benchmark of accelerators in its tiny form: every section, once; then nothing is measured again."""

import json
import sys

import pytest

from benchmarks.accelerator import __main__ as module
from benchmarks.accelerator.results import Results, Task
from gaternet_jax.errors import UserError


def run(monkeypatch, folder, *flags):
    command = ["accelerator", "--tiny", "--minutes=30", f"--out={folder / 'out'}", f"--scratch={folder / 'scratch'}"]
    monkeypatch.setattr(sys, "argv", [*command, *flags])
    module.main()
    return {path.name: path.read_text() for path in (folder / "out").iterdir() if path.suffix == ".json"}


def test_all_sections_are_measured_once_and_written(tmp_path, monkeypatch, use_devices, capsys):
    use_devices(1)
    found = run(monkeypatch, tmp_path)
    sections = {name: json.loads(text) for name, text in found.items()}
    assert sections["machine.json"]["versions"].keys() >= {"jax", "jaxlib", "flax"}
    for result in sections["parity.json"].values():
        assert result["gates"] == 2 * 28 and "error" not in result
    exact = sections["parity.json"]["resnet8, float32, highest"]
    assert exact["logits_difference"] == exact["gates_that_differ"] == exact["update_relative_difference"] == 0
    assert sections["parity.json"]["resnet8, bfloat16"]["logits_difference"] > 0
    train = sections["train.json"]
    assert train["tiny"]["images_per_second, 2 steps a dispatch"] > 0
    assert train["tiny loader"]["images_per_second, training"] > 0
    infer = sections["infer.json"]["tiny"]
    for mode in ("compact", "specialist", "profile", "dense"):
        assert infer[f"{mode}, ms"] > 0 and infer[f"{mode}, difference"] <= 1e-5 * infer["largest_logit"], mode
    assert [entry["test_images"] for entry in sections["study.json"]] == [64]
    capsys.readouterr()
    again = run(monkeypatch, tmp_path)
    assert again == found
    said = capsys.readouterr().out
    assert "parity" not in said and "train tiny:" not in said and "Compiling" not in said


def test_patterns_choose_measurements(tmp_path, monkeypatch, use_devices):
    use_devices(1)
    made = [Task(name, dict, 0.0) for name in ("a, batch 1", "a, batch 2", "b, batch 1")]
    monkeypatch.setitem(module.SECTIONS, "train", (lambda *_: made, 0.5))
    found = run(monkeypatch, tmp_path, "--only=train", "--tasks", "a*1", "b*")
    assert list(json.loads(found["train.json"])) == ["a, batch 1", "b, batch 1"]


def test_other_flags_of_xla_are_other_measurements(tmp_path, monkeypatch):
    results = Results(tmp_path, 1.0)
    for flags in ("", "--xla_gpu_autotune_level=0 --xla_force_host_platform_device_count=2"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        results.measure("train", [Task("a", dict, 0.0)], 1.0)
    assert list(json.loads((tmp_path / "train.json").read_text())) == ["a", "a, XLA_FLAGS=--xla_gpu_autotune_level=0"]


def test_what_was_interrupted_goes_on(tmp_path):
    made = []

    def tasks(fails):
        for name in ("a", "b", "c"):

            def measure(name=name):
                made.append(name)
                if name == "b" and fails:
                    raise fails
                return {"value": name}

            yield Task(name, measure, 0.0)

    with pytest.raises(KeyboardInterrupt):
        Results(tmp_path, 1).measure("train", tasks(KeyboardInterrupt()), 1.0)
    assert made == ["a", "b"]
    Results(tmp_path, 1).measure("train", tasks(None), 1.0)
    assert made == ["a", "b", "b", "c"]


def test_error_is_recorded_and_measured_again_by_the_next_start(tmp_path):
    def fail():
        raise RuntimeError("out of memory\nmore")

    results = Results(tmp_path, 1)
    results.measure("train", [Task("a", fail, 0.0), Task("b", lambda: {"value": 1}, 0.0)], 1.0)
    found = json.loads((tmp_path / "train.json").read_text())
    assert found["a"]["error"] == "RuntimeError: out of memory" and found["b"]["value"] == 1
    results.measure("train", [Task("a", lambda: {"value": 2}, 0.0)], 1.0)
    assert json.loads((tmp_path / "train.json").read_text())["a"]["value"] == 2


def test_what_cannot_end_in_time_is_not_begun(tmp_path, capsys):
    made = []
    results = Results(tmp_path, 0.5)
    results.measure("infer", [Task("long", lambda: made.append(1) or {}, 31.0), Task("short", dict, 0.0)], 1.0)
    assert not made and "infer long: not begun, it takes about 31 s" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "infer.json").read_text())) == ["short"]


def test_files_that_came_in_parts_are_joined(tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    for name, content in (("x.part-ab", b"456"), ("x.part-aa", b"123"), ("y.part-aa", b"9"), ("info.json", b"{}")):
        (folder / name).write_bytes(content)
    module.join_parts(str(tmp_path))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "x": b"123456",
        "y": b"9",
        "info.json": b"{}",
    }
    with pytest.raises(UserError, match="nowhere is no folder"):
        module.join_parts(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--only=parity,speed"], "unknown sections speed; known: parity, train"), (["--minutes=0"], "greater than 0")],
)
def test_mistakes_are_named(tmp_path, monkeypatch, flags, message):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, tmp_path, *flags)
