"""The loop on real digits: learns, resumes bit for bit, counts exactly, refuses what it cannot do."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from gaternet_jax import load_model
from gaternet_jax.data.batches import BatchShard
from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.data.splits import open_split
from gaternet_jax.errors import NonFiniteError, UserError
from gaternet_jax.models.functional import split_model
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.training import setup
from gaternet_jax.training.checkpoint import Checkpoints
from gaternet_jax.training.checkpoint_reader import read_metadata
from gaternet_jax.training.evaluate import Evaluator, evaluate
from gaternet_jax.training.loop import train
from gaternet_jax.training.state import TrainState
from gaternet_jax.workdir import load_config, load_labels
from tests.helpers import digits_config, save_random_model


def read_metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name != "images_per_second" and not name.startswith("time_")}
        for line in lines
    ]


def read_state(workdir, step):
    """Every array of a checkpoint, as saved."""
    with Checkpoints(workdir) as checkpoints:
        saved = ocp.load_checkpointables(checkpoints._path(step))
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
    events = b"".join(path.read_bytes() for path in (workdir / "tensorboard").glob("events.*"))
    assert all(name in events for name in (b"eval/top1", b"probe/open_stage3", b"probe/open_gates"))
    assert not any(name.startswith("probe") for line in evaluations for name in line)


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
@pytest.mark.slow
def test_interrupted_run_ends_bit_for_bit_where_the_undisturbed_one_ends(finished, tmp_path, use_devices, stops):
    workdir, metrics = finished
    use_devices(2)
    config = digits_config(**{"train.epochs": 2.0})
    for stop in stops:
        assert train(config, tmp_path, stop_at=stop)["step"] == stop
    assert train(config, tmp_path) == metrics
    assert_same_bits(read_state(tmp_path, 44), read_state(workdir, 44))
    assert read_metrics(tmp_path) == read_metrics(workdir)


def test_interrupt_saves_and_the_run_goes_on_bit_for_bit(finished, tmp_path, use_devices, monkeypatch):
    """With saves in between, whose background part must not see what comes after them."""
    workdir, metrics = finished
    use_devices(2)
    config = digits_config(**{"train.epochs": 2.0, "checkpoint.every_steps": 3})
    with monkeypatch.context() as patch:
        answers = iter([False] * 33 + [True])  # two looks a step
        patch.setattr(setup, "interruptible", lambda: contextlib.nullcontext(lambda: next(answers)))
        interrupted = train(config, tmp_path)
    assert interrupted["step"] == 17 and not interrupted["finished"]
    assert train(config, tmp_path) == metrics
    assert_same_bits(read_state(tmp_path, 44), read_state(workdir, 44))
    assert read_metrics(tmp_path) == read_metrics(workdir)


def test_saved_window_is_that_of_the_moment(finished, tmp_path):
    with Checkpoints(finished[0]) as checkpoints:
        saved = ocp.load_checkpointables(checkpoints._path(44))
    params, stats = saved["model"]["params"], saved["model"]["stats"]
    state = TrainState(jnp.int32(1), params, stats, {"trace": params}, None)
    window = {"steps": 1, "sums": {"loss": 1.0}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, window=window)
        window["steps"], window["sums"]["loss"] = 2, 9.0
    metadata = read_metadata(tmp_path / "checkpoints" / "1")
    assert metadata["window"] == {"steps": 1, "sums": {"loss": 1.0}}


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


def test_one_and_eight_devices_agree(tmp_path, use_devices):
    results = {}
    for devices in (1, 8):
        use_devices(devices)
        workdir = tmp_path / str(devices)
        train(digits_config(), workdir, stop_at=6)
        results[devices] = read_state(workdir, 6)["model"], read_metrics(workdir)[0]["loss"]
    for one, several in zip(*(jax.tree.leaves(results[n][0]) for n in (1, 8)), strict=True):
        np.testing.assert_allclose(one, several, atol=2e-5)
    np.testing.assert_allclose(results[1][1], results[8][1], rtol=1e-5)


def test_latest_few_and_best_checkpoints_are_kept(tmp_path, use_devices, monkeypatch):
    use_devices(1)
    accuracies = iter([0.9, 0.1, 0.2, 0.3])  # the first evaluation is the best one
    run = Evaluator.run
    monkeypatch.setattr(Evaluator, "run", lambda *arguments: run(*arguments) | {"top1": next(accuracies)})
    config = digits_config(**{"train.eval_every_epochs": 0.25, "checkpoint.keep_latest": 2, "train.epochs": 1.0})
    train(config, tmp_path, stop_at=20)
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        assert checkpoints.steps == [6, 18, 20]
        assert checkpoints.best == 6 and checkpoints.latest == 20
    for which, step in (("best", 6), ("latest", 20)):
        _, params, _ = split_model(load_model(tmp_path, which))
        assert_same_bits(jax.tree.map(np.asarray, params), read_state(tmp_path, step)["model"]["params"])
    assert_same_bits(*(split_model(load_model(tmp_path, *which))[1] for which in ((), ("best",))))


def test_moving_average_is_evaluated_saved_and_resumed(tmp_path, use_devices):
    use_devices(1)
    config = digits_config(**{"train.ema_decay": 0.9, "train.eval_every_epochs": 0.5})
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_at=7)
    assert train(config, tmp_path / "parts") == whole
    one, other = (read_state(tmp_path / name, 22) for name in ("whole", "parts"))
    assert_same_bits(one, other)
    raw, averaged = (jax.tree.leaves(one[part]["params"]) for part in ("training", "model"))
    assert all(not np.array_equal(a, b) for a, b in zip(raw, averaged, strict=True))
    _, params, _ = split_model(load_model(tmp_path / "whole", "latest"))
    assert_same_bits(jax.tree.map(np.asarray, params), one["model"]["params"])


def test_a_run_starts_from_another_which_it_needs_only_once(tmp_path, use_devices, capsys):
    use_devices(1)
    save_random_model(tmp_path / "first")
    config = digits_config(init_from=str(tmp_path / "first"))
    assert train(config, tmp_path / "second", stop_at=2)["step"] == 2
    assert f"The gater starts from {tmp_path}/first\n" in capsys.readouterr().out
    (tmp_path / "first").rename(tmp_path / "moved")
    assert train(config, tmp_path / "second", stop_at=3)["step"] == 3
    assert "starts from" not in capsys.readouterr().out


@pytest.mark.slow
def test_asking_for_half_of_the_macs_ends_near_half(tmp_path, use_devices):
    use_devices(1)
    fields = {"train.epochs": 8.0, "loss.gate": "macs", "loss.gate_target": 0.5, "loss.gate_weight": 10.0}
    metrics = train(digits_config(**fields, **{"train.eval_every_epochs": 8.0}), tmp_path)
    assert abs(metrics["macs"] - 0.5) < 0.05
    assert metrics["top1"] > 0.6


def test_changed_config_is_refused_with_the_fields_that_differ(finished):
    workdir, _ = finished
    changed = digits_config(**{"optimizer.learning_rate": 0.3, "model.gater.bottleneck": 4, "train.epochs": 2.0})
    with pytest.raises(UserError) as error:
        train(changed, workdir)
    assert "model.gater.bottleneck: 8 in the workdir, 4 given" in str(error.value)
    assert "optimizer.learning_rate: 0.2 in the workdir, 0.3 given" in str(error.value)
    assert "train.batch_size" not in str(error.value)
    assert "Fields that may change: " in str(error.value) and "data.data_dir, " in str(error.value)


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


def test_fewer_epochs_than_done_are_refused(finished, use_devices):
    use_devices(2)
    before = (finished[0] / "config.json").read_text()
    with pytest.raises(UserError, match=r"has done 44 steps already; train.epochs=1.0 asks for less"):
        train(digits_config(), finished[0])
    assert (finished[0] / "config.json").read_text() == before


def test_checkpoint_of_another_model_is_refused(finished, tmp_path):
    workdir, _ = finished
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text().replace('"width": 8', '"width": 4'))
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    with pytest.raises(UserError, match=r"is of another model:\n  params\.backbone\.") as error:
        load_model(tmp_path)
    assert "and" in str(error.value) and "more" in str(error.value)


def test_evaluation_on_another_split(finished):
    assert evaluate(finished[0], {"data.eval_split": "train[:100]", "train.eval_batch_size": 61})["images"] == 100
    with pytest.raises(UserError, match=r"evaluation cannot change seed; it can change data.data_dir, data.eval_split"):
        evaluate(finished[0], {"seed": 1})


def test_evaluation_counts_gates(finished):
    """Against the model itself, over the whole test set."""
    workdir, _ = finished
    metrics, config, model = evaluate(workdir), load_config(workdir), load_model(workdir)
    split = open_split(find_dataset("digits"), "test", config, BatchShard(0, 1))
    outputs = jax.jit(lambda x: model(normalize(x, config.data)))(split.images)
    gates, logits = np.asarray(outputs.gates), np.asarray(outputs.logits)
    rate = gates.mean(0)
    np.testing.assert_allclose(metrics["gates_on"], gates.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["gates_input_dependent"], ((rate > 0) & (rate < 1)).mean(), atol=0.02)
    np.testing.assert_allclose(metrics["gates_always_on"], (rate == 1).mean(), atol=0.02)
    np.testing.assert_allclose(metrics["top1"], (logits.argmax(-1) == split.labels).mean(), atol=0.004)
    in_top5 = (np.argsort(-logits)[:, :5] == split.labels[:, None]).any(-1)
    np.testing.assert_allclose(metrics["top5"], in_top5.mean(), atol=0.004)
    macs = MacCounter(model, 8).fraction(outputs.gates).mean()
    np.testing.assert_allclose(metrics["macs"], macs, rtol=1e-3)
