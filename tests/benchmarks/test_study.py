import sys
import time

import pytest

from benchmarks import ledger, study
from benchmarks.study import choose
from gaternet_jax.errors import UserError


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    study.main()


def test_the_order_of_the_study():
    names = [run.name for run in choose("cifar10")]
    assert len(names) == len(set(names))
    assert names[:16:2] == [
        f"cifar10-resnet20-{model}-he-30ep-seed0"
        for model in ("plain", "gated", "aux", "wider", "se", "local", "all", "macs50")
    ]
    assert names[1] == "cifar10-resnet20-plain-strong-30ep-seed0", "both recipes side by side"
    half = len(names) // 2
    assert all("-30ep-" in name for name in names[:half]) and all("-200ep-" in name for name in names[half:])
    stages = [
        "cifar10-resnet20",
        "cifar10-resnet56",
        "cifar100-resnet20",
        "cifar100-resnet56",
        "cifar10-resnet164_paper",
    ]
    first = [next(i for i, name in enumerate(names) if name.startswith(stage)) for stage in stages]
    assert first == sorted(first)
    for seed in range(3):
        for model in ("plain", "gated"):
            assert f"cifar100-resnet56-{model}-strong-200ep-seed{seed}" in names


def test_settings_of_the_runs():
    configs = {run.name: run.config() for run in choose("cifar10", "*resnet20-macs50-he-30ep*,*resnet20-gated-s*seed2")}
    budget = configs["cifar10-resnet20-macs50-he-30ep-seed0"]
    assert (budget.loss.gate, budget.loss.gate_target, budget.train.epochs) == ("macs", 0.5, 30)
    assert configs["cifar10-resnet20-gated-strong-200ep-seed2"].seed == 2
    small = choose("cifar10-16px")
    assert len(small) == 8 and small[0].name == "cifar10-16px-resnet20-plain-strong-24ep-seed0"
    for run in small:
        data = run.config().data
        assert (data.image_size, data.crop_padding, run.config().train.epochs) == (16, 2, 24)


def test_mistakes_end_in_a_sentence(monkeypatch, capsys):
    with pytest.raises(UserError, match="--study=mnist is not known; choose one of cifar10, cifar10-16px, digits"):
        choose("mnist")
    with pytest.raises(SystemExit):
        main(monkeypatch, "--study=digits", "--minutes=0")
    assert "argument --minutes: 0 must be a number greater than 0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"--only=\*vgg\* fits no run .* names are digits-resnet8-plain-40ep-seed0"):
        main(monkeypatch, "--study=digits", "--only=*vgg*")


def test_all_data_are_looked_for_before_the_first_run(tmp_path, monkeypatch):
    looked_for = []

    def find_dataset(name, data_dir):
        looked_for.append((name, data_dir))
        if name == "cifar100":
            raise UserError("cifar100 is not prepared")

    monkeypatch.setattr(study, "find_dataset", find_dataset)
    with pytest.raises(SystemExit, match=r"cifar100 is not prepared. Or do without it: --only='cifar10-\*'"):
        main(monkeypatch, f"--out={tmp_path}", f"--ledger={tmp_path}", "--data_dir=D")
    assert looked_for == [("cifar10", "D"), ("cifar100", "D")]


def test_a_study_is_cut_short_and_goes_on(tmp_path, monkeypatch, capsys, use_devices):
    use_devices(1)
    out, folder = tmp_path / "out", tmp_path / "ledger"
    arguments = ["--study=tiny", "--only=*plain*", f"--out={out}", f"--ledger={folder}"]
    main(monkeypatch, *arguments, "--minutes=0.5")
    assert "is for another time" in capsys.readouterr().out, "a start takes longer"
    assert not out.exists() and ledger.load(folder) == []

    with monkeypatch.context() as patch:
        patch.setattr(study, "START", -1e9)
        main(patch, *arguments, "--minutes=0.001")
    assert "Interrupted; the same command goes on." in capsys.readouterr().out
    main(monkeypatch, *arguments, "--list")
    assert capsys.readouterr().out.split()[1:] == ["at", "step", "1"]

    main(monkeypatch, *arguments)
    (entry,) = ledger.load(folder)
    assert entry["steps"] == 4 and entry["starts"][0]["starts"] == 2
    seconds = sum(start["seconds"] for start in entry["starts"])
    assert entry["wall_seconds"] == pytest.approx(seconds) and seconds > 0
    capsys.readouterr()
    main(monkeypatch, *arguments)
    assert "Compil" not in capsys.readouterr().out, "what is in the ledger is not repeated"
    main(monkeypatch, *arguments, "--list")
    assert f"{entry['test_error']:.2f}% test error" in capsys.readouterr().out


def test_time_is_estimated_from_like_runs_on_this_machine(monkeypatch):
    machine = {"device": "D", "devices": 1, "processes": 1, "cores": 2}
    monkeypatch.setattr(study, "describe_machine", lambda: machine)
    run, other = choose("cifar10", "*resnet20-plain-*-200ep-seed1")[0], choose("cifar10", "*resnet56-gated*")[0]
    measured = choose("cifar10", "*resnet20-plain-strong-30ep-seed0")[0]
    entry = {
        "config": ledger.difference(measured.config()), "starts": [machine | {"commit": "a"}], "diverged": "",
        "wall_seconds": 60.0, "epochs": 30.0,
    }  # fmt: skip
    assert study.estimate(run, [entry]) == 400.0
    assert study.estimate(other, [entry]) is None
    assert study.estimate(run, [entry | {"starts": [machine | {"device": "E"}]}]) is None
    assert study.estimate(run, [entry | {"diverged": "nan"}]) is None


def test_a_signal_is_repeated_until_training_ends(monkeypatch):
    sent = []
    monkeypatch.setattr(study.os, "kill", lambda pid, signum: sent.append(signum))
    with study.ended_at(time.monotonic() + 3600):
        pass
    assert not sent
    with study.ended_at(time.monotonic()):
        while len(sent) < 2:
            time.sleep(0.05)
