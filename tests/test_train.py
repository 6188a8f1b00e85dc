"""The loop on real digits: learns, resumes bit for bit, counts exactly, refuses what it cannot do."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from gaternet_jax import load_model
from gaternet_jax.checkpoint import Checkpoints
from gaternet_jax.errors import UserError
from gaternet_jax.evaluate import evaluate
from gaternet_jax.metrics import NonFiniteError
from gaternet_jax.state import split_model
from gaternet_jax.train import train
from gaternet_jax.workdir import load_config, load_labels
from tests.helpers import digits_config


def read_metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def read_state(workdir, step):
    """Every array of a checkpoint, as saved."""
    with Checkpoints(workdir) as checkpoints:
        saved = checkpoints._orbax.load_checkpointables(step)
    return jax.tree.map(np.asarray, saved)


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run of two epochs, 44 steps, on two devices."""
    workdir = tmp_path_factory.mktemp("finished")
    devices = jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: devices[:2])
        metrics = train(digits_config(**{"train.epochs": 2.0}), workdir)
    return workdir, metrics


def test_training_learns_and_leaves_its_files(finished):
    workdir, metrics = finished
    lines = read_metrics(workdir)
    training = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in training] == [5, 10, 15, 20, 25, 30, 35, 40, 44]
    assert training[-1]["loss"] < 0.9 * training[0]["loss"]
    evaluations = [line for line in lines if line["split"] == "eval"]
    assert [line["step"] for line in evaluations] == [22, 44]
    for line in evaluations:
        assert line["images"] == 360
        assert 0 <= line["top1"] <= line["top5"] <= 1
        assert 0 < line["gates_on"] < 1
    assert metrics["step"] == 44
    assert metrics["top1"] == evaluations[-1]["top1"] > 0.25
    assert load_labels(workdir) == [str(digit) for digit in range(10)]
    assert load_config(workdir).train.epochs == 2.0
    assert list((workdir / "tensorboard").glob("events.*"))


def test_load_model_and_evaluate_give_what_training_reported(finished):
    workdir, _ = finished
    with Checkpoints(workdir) as checkpoints:
        best, steps = checkpoints.best, checkpoints.steps
    assert steps == [22, 44]
    line = next(line for line in read_metrics(workdir) if line["split"] == "eval" and line["step"] == best)
    metrics = evaluate(workdir)
    assert metrics["top1"] == line["top1"] and metrics["images"] == 360
    np.testing.assert_allclose(metrics["loss"], line["loss"], rtol=1e-5)
    model = load_model(workdir, 22)
    assert model.deterministic
    _, params, _ = split_model(model)
    assert_same_bits(jax.tree.map(np.asarray, params), read_state(workdir, 22)["model"]["params"])
    with pytest.raises(UserError, match=r"no checkpoint '7'; it has steps \[22, 44\]"):
        load_model(workdir, 7)


@pytest.mark.parametrize("stops", [[22], [7, 13]], ids=str)
def test_interrupted_run_ends_bit_for_bit_where_the_undisturbed_one_ends(finished, tmp_path, use_devices, stops):
    workdir, metrics = finished
    use_devices(2)
    config = digits_config(**{"train.epochs": 2.0})
    for stop in stops:
        assert train(config, tmp_path, stop_at=stop)["step"] == stop
    assert train(config, tmp_path) == metrics
    assert_same_bits(read_state(tmp_path, 44), read_state(workdir, 44))
    assert read_metrics(tmp_path) == read_metrics(workdir)


def test_run_that_has_ended_only_reports(finished, use_devices):
    workdir, metrics = finished
    use_devices(2)
    before = read_metrics(workdir)
    again = train(digits_config(**{"train.epochs": 2.0}), workdir)
    assert again["top1"] == metrics["top1"] and read_metrics(workdir) == before


def test_lines_after_the_checkpoint_are_computed_again(finished, tmp_path, use_devices):
    workdir, _ = finished
    use_devices(2)
    config = digits_config(**{"train.epochs": 2.0})
    train(config, tmp_path, stop_at=22)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "split": "train", "loss": 9.0}\n{"step": 30, "spl')  # killed while writing
    train(config, tmp_path)
    assert read_metrics(tmp_path) == read_metrics(workdir)


def test_one_two_four_and_eight_devices_agree(tmp_path, use_devices):
    results = {}
    for devices in (1, 2, 4, 8):
        use_devices(devices)
        workdir = tmp_path / str(devices)
        train(digits_config(), workdir, stop_at=6)
        results[devices] = read_state(workdir, 6)["model"], read_metrics(workdir)[0]["loss"]
    for devices in (2, 4, 8):
        for one, several in zip(*(jax.tree.leaves(results[n][0]) for n in (1, devices)), strict=True):
            np.testing.assert_allclose(one, several, atol=2e-5)
        np.testing.assert_allclose(results[1][1], results[devices][1], rtol=1e-5)


def test_latest_few_and_best_checkpoints_are_kept(tmp_path, use_devices, monkeypatch):
    use_devices(1)
    import gaternet_jax.train as module

    accuracies = iter([0.9, 0.1, 0.2, 0.3])  # the first evaluation is the best one
    make = module.make_evaluation

    def fake(*args):
        evaluation = make(*args)
        return lambda *state: evaluation(*state) | {"top1": next(accuracies)}

    monkeypatch.setattr(module, "make_evaluation", fake)
    config = digits_config(**{"train.eval_every_epochs": 0.25, "checkpoint.keep_latest": 2, "train.epochs": 1.0})
    train(config, tmp_path, stop_at=20)
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        assert checkpoints.steps == [6, 18, 20]
        assert checkpoints.best == 6 and checkpoints.latest == 20


def test_changed_config_is_refused_with_the_fields_that_differ(finished):
    workdir, _ = finished
    changed = digits_config(**{"optimizer.learning_rate": 0.3, "model.gater.bottleneck": 4, "train.epochs": 2.0})
    with pytest.raises(UserError) as error:
        train(changed, workdir)
    assert "model.gater.bottleneck: 8 in the workdir, 4 given" in str(error.value)
    assert "optimizer.learning_rate: 0.2 in the workdir, 0.3 given" in str(error.value)
    assert "train.batch_size" not in str(error.value)
    assert "Fields that may change: data.data_dir, train.epochs" in str(error.value)


def test_number_of_epochs_may_change(tmp_path, use_devices):
    use_devices(1)
    train(digits_config(**{"train.epochs": 0.25, "train.log_every_steps": 3}), tmp_path)
    longer = digits_config(**{"train.epochs": 0.5, "train.log_every_steps": 4})
    assert train(longer, tmp_path)["step"] == 11


def test_nan_stops_at_its_step_and_keeps_the_last_good_checkpoint(tmp_path, use_devices):
    use_devices(1)
    config = digits_config(**{"optimizer.learning_rate": 1e30, "checkpoint.every_steps": 1})
    with pytest.raises(NonFiniteError, match=r"training stopped: \w+ is (nan|inf) at step (\d+)") as error:
        train(config, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        latest = checkpoints.latest
    assert f"the last good checkpoint is step {latest}" in str(error.value)
    assert f"at step {latest + 1} " in str(error.value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(read_state(tmp_path, latest)["model"]))


def test_batch_that_does_not_divide_over_the_devices(tmp_path):
    with pytest.raises(UserError, match=r"train\.batch_size=20 must be a multiple of the number of devices, 8"):
        train(digits_config(**{"train.batch_size": 20}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_workdir_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds something that is not a run .*--workdir"):
        train(digits_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_wrong_number_of_classes(tmp_path):
    with pytest.raises(UserError, match=r"'digits' has 10 classes, but config.model.num_classes=7"):
        train(digits_config(**{"model.num_classes": 7}), tmp_path / "run")


def test_checkpoint_of_another_model_is_refused(finished, tmp_path):
    workdir, _ = finished
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text().replace('"width": 8', '"width": 4'))
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    with pytest.raises(UserError, match=r"is of another model:\n  params\.backbone\.") as error:
        load_model(tmp_path)
    assert "and" in str(error.value) and "more" in str(error.value)


def test_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no config\.json"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"is not a run"):
        evaluate(Path(tmp_path, "missing"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not a config"):
        load_model(tmp_path)
