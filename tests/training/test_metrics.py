import errno
import json
import struct
import threading

import jax.numpy as jnp
import pytest
from tensorboardX.proto import event_pb2

from gaternet_jax.errors import NonFiniteError
from gaternet_jax.training.metrics import LoopClock, MetricWriter, TrainMetrics


def values(loss):
    return {"loss": jnp.float32(loss), "top1": jnp.float32(0.5)}


def add(metrics, step, values):
    """One step, in a dispatch of its own."""
    metrics.add(range(step, step + 1), {name: value[None] for name, value in values.items()})


def collect(every=3, last_step=100, lag=2):
    emitted = []
    return TrainMetrics(lambda *line: emitted.append(line), every=every, last_step=last_step, lag=lag), emitted


def test_means_are_over_the_steps_of_a_window():
    metrics, emitted = collect(every=3, last_step=4)
    for step, loss in enumerate([1.0, 2.0, 6.0, 8.0], 1):
        add(metrics, step, values(loss))
    metrics.wait()
    assert emitted == [(3, {"loss": 3.0, "top1": 0.5}), (4, {"loss": 8.0, "top1": 0.5})]


def test_steps_are_fetched_late_but_not_later_than_the_lag():
    metrics, emitted = collect(every=1, lag=2)
    add(metrics, 1, values(1.0))
    add(metrics, 2, values(float("nan")))
    assert emitted == [], "nothing was fetched yet"
    add(metrics, 3, values(1.0))
    assert [step for step, _ in emitted] == [1]
    with pytest.raises(NonFiniteError, match="loss is nan at step 2"):
        add(metrics, 4, values(1.0))


def test_steps_of_one_dispatch_are_taken_one_by_one():
    metrics, emitted = collect(every=2, last_step=5)
    metrics.add(range(1, 4), {"loss": jnp.array([1.0, 3.0, 5.0, 99.0])})  # what is beyond the dispatch means nothing
    metrics.add(range(4, 6), {"loss": jnp.array([7.0, 9.0, 99.0, 99.0])})
    metrics.wait()
    assert emitted == [(2, {"loss": 2.0}), (4, {"loss": 6.0}), (5, {"loss": 9.0})]
    metrics.add(range(6, 9), {"loss": jnp.array([1.0, float("nan"), float("inf"), 1.0])})
    with pytest.raises(NonFiniteError, match="loss is nan at step 7"):
        metrics.wait()


def test_waiting_finds_what_is_not_finite():
    metrics, _ = collect()
    add(metrics, 7, values(float("inf")))
    with pytest.raises(NonFiniteError, match="loss is inf at step 7"):
        metrics.wait()


def test_window_goes_on_where_it_was_saved():
    (whole, expected), (first, _), (second, resumed) = collect(), collect(), collect()
    for step, loss in enumerate([0.1, 0.2, 0.7], 1):
        add(whole, step, values(loss))
        add(first if step < 3 else second, step, values(loss))
        if step == 2:
            first.wait()
            second.window = json.loads(json.dumps(first.window))
    whole.wait(), second.wait()
    assert resumed == expected != []


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


def shown(folder):
    """What TensorBoard shows: files in the order of their names; a start forgets the steps from its own on."""
    steps = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event, content = event_pb2.Event.FromString(content[12 : 12 + size]), content[16 + size :]
            if event.session_log.status == event_pb2.SessionLog.START:
                steps = {step: value for step, value in steps.items() if step < event.step}
            for value in event.summary.value:
                steps[event.step] = value.simple_value
    return steps


@pytest.mark.parametrize("seconds", [60, 0, -3600], ids=["later", "in the same second", "the clock went back"])
def test_tensorboard_shows_what_follows_a_resume(tmp_path, monkeypatch, seconds):
    now = 1_790_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    for resumed_at, value in ((0, 1.0), (2, 2.0), (3, 3.0)):
        with MetricWriter(tmp_path, resume_step=resumed_at) as writer:
            for step in (resumed_at + 1, resumed_at + 2, resumed_at + 3):
                writer.write(step, "train", {"loss": value})
        now += seconds
    assert shown(tmp_path / "tensorboard") == {1: 1.0, 2: 1.0, 3: 2.0, 4: 3.0, 5: 3.0, 6: 3.0}


def test_a_disk_that_is_full_is_told_and_nothing_waits_for_it(tmp_path, monkeypatch):
    writer = MetricWriter(tmp_path, resume_step=0)

    def write(data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboardX.RecordWriter.write", lambda self, data: write(data))
    ended = []

    def run():
        try:
            with writer:
                for step in range(30):  # tensorboardX's own queue holds ten
                    writer.write(step, "train", {"loss": 1.0})
        except OSError as error:
            ended.append(error.strerror)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert ended == ["No space left on device"]


def test_clock_tells_where_time_goes_and_leaves_pauses_out(monkeypatch):
    now = iter([0.0, 0.0, 1.0, 2.0, 8.0, 10.0, 30.0, 30.0, 30.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = LoopClock(40)
    with clock.spent("input"):  # from 0 to 1
        pass
    with clock.spent("step"):  # from 2 to 8
        pass
    with clock.paused():  # from 10 to 30
        pass
    measured = clock.measure(140)  # 10 s without the pause
    assert measured == {"steps_per_second": 10.0, "time_input": 0.1, "time_step": 0.6, "time_host": pytest.approx(0.3)}


def test_time_in_an_inner_context_counts_there_only(monkeypatch):
    now = iter([0.0, 0.0, 6.0, 7.0, 9.0, 10.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = LoopClock(0)
    with clock.spent("step"), clock.spent("host"):  # the one from 0 to 9, the other from 6 to 7
        pass
    measured = clock.measure(5)  # at 10
    assert measured == {"steps_per_second": 0.5, "time_input": 0.0, "time_step": 0.8, "time_host": 0.2}


def test_measure_inside_a_context_gives_each_window_its_part(monkeypatch):
    now = iter([0.0, 0.0, 3.0, 4.0, 8.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = LoopClock(0)
    with clock.spent("step"):  # from 0 to 4
        assert clock.measure(1)["time_step"] == 1.0  # at 3
    assert clock.measure(2) == {"steps_per_second": 0.2, "time_input": 0.0, "time_step": 0.2, "time_host": 0.8}  # at 8


def test_skipped_steps_count_in_no_mean_and_are_bounded():
    emitted = []
    metrics = TrainMetrics(lambda *line: emitted.append(line), every=2, last_step=9, max_skipped=2, lag=0)
    nan = {"loss": jnp.float32(0), "skipped": jnp.int32(1)}
    good = {"loss": jnp.float32(3), "skipped": jnp.int32(0)}
    for step, values in enumerate([good, nan, nan, good], 1):
        add(metrics, step, values)
    assert emitted == [(2, {"loss": 3.0, "skipped_steps": 1}), (4, {"loss": 3.0, "skipped_steps": 2})]
    with pytest.raises(NonFiniteError, match="not finite in 3 steps: the last at step 5"):
        add(metrics, 5, nan)


@pytest.mark.parametrize("skip", [False, True])
def test_the_term_that_grew_is_named(skip):
    metrics = TrainMetrics(lambda *_: None, every=9, last_step=9, lag=0)
    steps = [
        {"loss": 2.0, "gate_loss": 0.1, "gradient_norm": 3.0, "parameter_norm": 9.0, "top1": 0.01},
        {"loss": 4.0, "gate_loss": 0.1, "gradient_norm": 6e7, "parameter_norm": 99.0, "top1": 0.99},
        {
            "loss": float("nan"),
            "gate_loss": float("nan"),
            "gradient_norm": float("nan"),
            "parameter_norm": float("inf"),
        },
    ]
    with pytest.raises(NonFiniteError) as error:
        for step, values in enumerate(steps, 1):
            skipped = {"skipped": jnp.int32(step == 3)} if skip else {}
            add(metrics, step, {name: jnp.float32(value) for name, value in values.items()} | skipped)
    told = "loss is nan at step 3; before it gradient_norm grew most, from 3 to 6e+07 at step 2"
    assert str(error.value) == ("a loss, gradient or update was not finite in 1 steps: " if skip else "") + told


def test_a_term_that_is_infinite_at_once_is_named():
    metrics = TrainMetrics(lambda *_: None, every=9, last_step=9, lag=0)
    values = {"gate_loss": float("inf"), "gradient_norm": float("nan"), "loss": 2.0, "total_loss": float("inf")}
    with pytest.raises(NonFiniteError, match=r"^gate_loss is inf at step 1$"):
        add(metrics, 1, {name: jnp.float32(value) for name, value in values.items()})


def test_window_of_skipped_steps_only_has_no_means():
    emitted = []
    metrics = TrainMetrics(lambda *line: emitted.append(line), every=1, last_step=9, max_skipped=1, lag=0)
    add(metrics, 1, {"loss": jnp.float32(0), "skipped": jnp.int32(1)})
    assert emitted == [(1, {"skipped_steps": 1})]


def test_all_learn_that_one_stops():
    metrics, emitted = collect(every=1, lag=1)
    add(metrics, 1, values(1.0) | {"stop": jnp.int8(0)})
    add(metrics, 2, values(1.0) | {"stop": jnp.int8(1)})
    assert not metrics.stop
    metrics.wait()
    assert metrics.stop and "stop" not in emitted[-1][1]


def test_process_that_does_not_write_leaves_nothing(tmp_path):
    with MetricWriter(tmp_path, 0, enabled=False) as writer:
        writer.write(1, "train", {"loss": 1.0})
    assert not list(tmp_path.iterdir())
