import sys

import pytest

from benchmarks import comparison
from benchmarks.ledger import load

SMALL = [
    "--set=model.width=4", "--set=model.gater.width=4", "--set=train.epochs=0.2", "--set=optimizer.warmup_epochs=0.0",
    "--set=data.eval_split='test[:64]'",
]  # fmt: skip


def run(monkeypatch, *arguments):
    ledger = (
        next(argument for argument in arguments if argument.startswith("--out=")).removeprefix("--out=") + "/ledger"
    )
    monkeypatch.setattr(sys, "argv", ["comparison", *arguments, f"--ledger={ledger}"])
    comparison.main()


def test_study_ends_in_a_table_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys, use_devices):
    use_devices(1)
    out = tmp_path / "study"
    common = ["--config=configs/digits.py", "--models=resnet8", "--variants=gated", f"--out={out}", *SMALL]
    run(monkeypatch, *common, "--seeds=1")
    first = (out / "table.md").read_text()
    assert "| resnet8 | gated |" in first
    assert "±" not in first
    capsys.readouterr()
    run(monkeypatch, *common, "--seeds=2")
    printed = capsys.readouterr().out
    assert printed.count("Compiled in") == 1, "the first seed is in the ledger"
    assert [entry["seed"] for entry in load(out / "ledger")] == [0, 1]
    assert "±" in (out / "table.md").read_text()
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [
        "ledger",
        "resnet8-gated-0",
        "resnet8-gated-1",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/none.py"], "is no run card"),
        (["--config=configs/digits.py", "--variants=best"], "unknown part 'best'"),
        (["--config=configs/digits.py", "--set=train.epoch=3"], "--set names unknown fields: train.epoch"),
        (["--config=configs/digits.py", "--set=train.epochs=foo"], "--set has a value of the wrong type"),
        (["--config=configs/digits.py", "--set=seed=3"], "say how many with --seeds"),
        (["--config=configs/digits.py", "--variants=plain,best"], "unknown part 'best'"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments, message, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "--models=resnet8", f"--out={tmp_path}", *arguments)


def test_a_run_that_diverges_does_not_end_the_study(tmp_path, monkeypatch, capsys, use_devices):
    use_devices(1)
    settings = [*SMALL, "--set=optimizer.learning_rate=1e30", "--set=train.epochs=0.5"]
    arguments = ["--config=configs/digits.py", "--models=resnet8", "--variants=plain", f"--out={tmp_path / 'study'}"]
    run(monkeypatch, *arguments, *settings)
    assert "| resnet8 | plain | - (1 diverged) |" in (tmp_path / "study" / "table.md").read_text()
    assert "training stopped" in capsys.readouterr().out
