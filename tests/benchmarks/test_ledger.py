"""Entries of made-up runs: nothing is trained here."""

import json

import pytest

from benchmarks import ledger
from benchmarks.runs import Run, parse_settings
from gaternet_jax.errors import UserError
from gaternet_jax.models.build import abstract_model, count_parameters
from gaternet_jax.training import starts
from gaternet_jax.workdir import save_config

RUN = Run("configs/cifar10.py", "resnet20-strong", {"train.epochs": 2.0, "seed": 3})
START = {"epochs": 2.0, "commit": "abc", "dirty": False, "versions": {"jax": "1"}, "device": "D", "devices": 1}


def lines(step, epoch, top1, speed, **gates):
    return [
        {"step": step, "split": "train", "epoch": epoch, "loss": 1.0, "images_per_second": speed},
        {"step": step, "split": "eval", "epoch": epoch, "images": 10000, "top1": top1, **gates},
    ]


GATES = {"gates_on": 0.75, "gates_input_dependent": 0.25, "gates_always_on": 0.625, "macs": 0.8}
METRICS = [*lines(390, 1.0, 0.25, 100.0, **GATES), *lines(780, 2.0, 0.8125, 300.0, **GATES)]
STARTS = [
    {"step": 100, "seconds": 10.5} | START,
    {"step": 390, "seconds": 20.0} | START,
    {"step": 780, "seconds": 30.0} | START | {"device": "E"},
]


def fake(workdir, run=RUN, metrics=METRICS, started=STARTS, finished=True):
    """The folder of a run that never ran."""
    save_config(run.config(), ["a"], workdir)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (workdir / starts.FILE).write_text(json.dumps(started))
    if finished:
        (workdir / "finished").write_text("780\n")
    return workdir


def test_an_entry_tells_all_of_a_run(tmp_path):
    entry = ledger.make_entry(RUN, fake(tmp_path / "run"), tmp_path / "ledger")
    assert entry["config"] == {
        "optimizer.nesterov": True, "optimizer.schedule": "cosine", "optimizer.weight_decay": 5e-4, "seed": 3,
        "train.epochs": 2.0,
    }  # fmt: skip
    assert entry["name"].startswith("cifar10-resnet20-strong-2ep-seed3-")
    assert (entry["recipe"], entry["seed"], entry["epochs"], entry["steps"]) == ("strong", 3, 2.0, 780)
    assert (entry["test_error"], entry["test_images"], entry["diverged"]) == (18.75, 10000, "")
    assert entry["curve"] == [[1.0, 75.0], [2.0, 18.75]]
    assert (entry["parameters"], entry["gates"]) == (547_842, 336)
    macs = entry["macs"]
    assert macs["with_gates"] == round(macs["gater"] + 0.8 * macs["dense"])
    assert macs["dense"] == 40_813_184
    assert entry["gate_statistics"] == {"open": 0.75, "always_on": 0.625, "always_off": 0.125, "input_dependent": 0.25}
    assert entry["wall_seconds"] == 60.5, "starts add up"
    assert entry["images_per_second"] == 150.0, "of the time, not the mean of speeds"
    assert [(start["starts"], start["to_step"], start["seconds"]) for start in entry["starts"]] == [
        (2, 390, 30.5), (1, 780, 30.0),
    ]  # fmt: skip
    assert (entry["starts"][0]["commit"], entry["starts"][1]["device"]) == ("abc", "E")
    assert entry["command"] == (
        "python -m gaternet_jax.main --config=configs/cifar10.py:resnet20-strong --config.train.epochs=2.0 "
        "--config.seed=3"
    )


def test_the_command_of_a_run_survives_a_shell():
    run = Run("configs/digits.py", "", parse_settings(["data.train_split=train[:100]"]))
    assert run.command.endswith("--config=configs/digits.py --config.data.train_split='train[:100]'")


def test_a_plain_run_has_no_gates(tmp_path):
    run = Run("configs/cifar10.py", "resnet20-plain-he", {"train.epochs": 2.0})
    plain = [line for line in METRICS if line["split"] == "train"] + [lines(780, 2.0, 0.5, 1.0)[1]]
    entry = ledger.make_entry(run, fake(tmp_path / "run", run, plain), tmp_path)
    assert (entry["gates"], entry["gate_statistics"], entry["macs"]["gater"]) == (0, None, 0)
    assert entry["macs"]["with_gates"] == entry["macs"]["dense"]
    assert entry["parameters"] == count_parameters(abstract_model(run.config().model))


def test_a_run_that_diverged_has_no_error_and_no_path(tmp_path):
    entry = ledger.make_entry(RUN, fake(tmp_path / "run", finished=False), tmp_path, diverged="loss is nan at step 5")
    assert (entry["diverged"], entry["test_error"], entry["gate_statistics"]) == ("loss is nan at step 5", None, None)
    assert str(tmp_path) not in json.dumps(entry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finished": False}, "is not finished; go on with it first: python -m gaternet_jax.main"),
        ({"started": [STARTS[0] | {"epochs": 1.0}, STARTS[2]]}, "was begun with another train.epochs"),
        ({"run": Run("configs/cifar10.py", "resnet20-he", {"train.epochs": 2.0, "seed": 3})}, "differ in optimizer"),
    ],
)
def test_what_is_no_finished_run_of_this_config_is_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        ledger.make_entry(RUN, fake(tmp_path, **change), tmp_path)


def test_entries_are_found_by_what_they_computed(tmp_path):
    folder = tmp_path / "ledger"
    ledger.write(ledger.make_entry(RUN, fake(tmp_path / "run"), folder), folder)
    (entry,) = ledger.load(folder)
    config = RUN.config()
    config.data.data_dir, config.train.eval_batch_size = "elsewhere", 16
    assert ledger.find(config, folder) == entry, "where the data are makes no other run"
    config.train.epochs = 3.0
    assert ledger.find(config, folder) is None
    other_seed = Run(RUN.card, RUN.variant, RUN.settings | {"seed": 9})
    assert ledger.find(other_seed.config(), folder) is None
    assert ledger.alike(other_seed, [entry], folder) == [entry]
    assert ledger.alike(Run(RUN.card, "resnet20-he", RUN.settings), [entry], folder) == []


def test_a_default_that_changes_changes_no_entry(tmp_path, monkeypatch):
    folder = tmp_path / "ledger"
    ledger.write(ledger.make_entry(RUN, fake(tmp_path / "run"), folder), folder)
    today = ledger.default()
    today.loss.gate_weight = 0.3
    today.new = 5
    monkeypatch.setattr(ledger, "default", lambda: today)
    assert ledger.find(RUN.config(), folder), "the run card still has the old value"
    config = RUN.config()
    config.loss.gate_weight = 0.3
    assert ledger.find(config, folder) is None
    assert ledger.difference(config, folder)["loss.gate_weight"] == 0.3
    assert ledger.defaults(folder)["new"] == 5, "of a new field, the default"


def test_what_only_gates_depend_on_makes_no_other_run_of_a_plain_network(tmp_path):
    folder = tmp_path / "ledger"
    fields = {"loss.gate_weight": 0.3, "model.gater.initial_bias": 1.0}
    for card, other in (("resnet20-plain-strong", False), ("resnet20-strong", True)):
        run = Run(RUN.card, card, RUN.settings | fields)
        assert (fields.items() <= ledger.difference(run.config(), folder).items()) == other
        assert bool(fields.keys() & ledger.difference(run.config(), folder).keys()) == other


@pytest.mark.parametrize(("text", "message"), [("{", "is no entry"), ('{"name": "other"}', "its name is not that")])
def test_damaged_entries_are_named(text, message, tmp_path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(
        UserError, match=rf"run\.json is no entry of the ledger: .*{message.removeprefix('is no entry')}"
    ):
        ledger.load(tmp_path)


def test_the_ledger_of_the_repository_is_whole():
    for entry in ledger.load():
        assert entry["config"].keys() <= ledger.defaults().keys(), entry["name"]
        assert "/home" not in json.dumps(entry), "no path of somebody's machine"


def test_entries_of_another_machine_are_entered(tmp_path, monkeypatch):
    entry = ledger.make_entry(RUN, fake(tmp_path / "run"), tmp_path / "ledger")
    (tmp_path / "study.json").write_text(json.dumps([entry]))
    flags = [f"--entries={tmp_path / 'study.json'}", f"--ledger={tmp_path / 'ledger'}"]
    monkeypatch.setattr("sys.argv", ["ledger", *flags])
    ledger.main()
    assert ledger.load(tmp_path / "ledger") == [entry]
    monkeypatch.setattr("sys.argv", ["ledger", *flags[1:]])
    with pytest.raises(SystemExit, match="say which run: --workdir and --config, or --entries"):
        ledger.main()
