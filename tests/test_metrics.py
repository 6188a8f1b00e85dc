import json

import jax.numpy as jnp
import pytest

from gaternet_jax.metrics import MetricWriter, NonFiniteError, Throughput, TrainMetrics


def values(loss):
    return {"loss": jnp.float32(loss), "top1": jnp.float32(0.5)}


def test_means_are_over_the_steps_since_the_last_call():
    metrics = TrainMetrics()
    for step, loss in enumerate([1.0, 2.0, 6.0], 1):
        metrics.add(step, values(loss))
    assert metrics.mean() == {"loss": 3.0, "top1": 0.5}
    metrics.add(4, values(8.0))
    assert metrics.mean()["loss"] == 8.0
    assert metrics.mean() == {}


def test_steps_are_fetched_late_but_not_later_than_the_lag():
    metrics = TrainMetrics(lag=2)
    metrics.add(1, values(float("nan")))
    metrics.add(2, values(1.0))
    assert metrics.window["steps"] == 0, "nothing was fetched yet"
    with pytest.raises(NonFiniteError, match="loss is nan at step 1"):
        metrics.add(3, values(1.0))


def test_waiting_finds_what_is_not_finite():
    metrics = TrainMetrics()
    metrics.add(7, values(float("inf")))
    with pytest.raises(NonFiniteError, match="loss is inf at step 7"):
        metrics.wait()


def test_window_goes_on_where_it_was_saved():
    whole, first, second = TrainMetrics(), TrainMetrics(), TrainMetrics()
    for step, loss in enumerate([0.1, 0.2, 0.7], 1):
        whole.add(step, values(loss))
        (first if step < 3 else second).add(step, values(loss))
        if step == 2:
            first.wait()
            second.window = json.loads(json.dumps(first.window))
    assert whole.mean() == second.mean()


def test_writer_appends_and_drops_what_a_resumed_run_computes_again(tmp_path):
    with MetricWriter(tmp_path, resume_step=0) as writer:
        for step in (1, 2, 3):
            writer.write(step, "train", {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "spl')
    with MetricWriter(tmp_path, resume_step=2) as writer:
        writer.write(3, "eval", {"top1": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "split": "train", "loss": 1.0},
        {"step": 2, "split": "train", "loss": 2.0},
        {"step": 3, "split": "eval", "top1": 0.5},
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_throughput_leaves_pauses_out(monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    throughput = Throughput()  # at 0
    throughput.add(100)
    with throughput.paused():  # from 1 to 11
        pass
    assert throughput.measure() == 50.0  # 2 of 12 seconds were training
