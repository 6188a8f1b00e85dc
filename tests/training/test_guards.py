"""Watchdog, profiler, steps that are not finite, debugging."""

import gzip
import json
import time

import jax
import pytest

from gaternet_jax.errors import NonFiniteError, UserError
from gaternet_jax.training.loop import train
from gaternet_jax.training.profiling import parse_steps
from gaternet_jax.training.watchdog import Watchdog
from tests.helpers import digits_config


def test_watchdog_reports_a_wait_once_and_where_threads_are(capfd):
    with Watchdog(0.2) as watchdog:
        watchdog.begin()
        time.sleep(0.6)
        watchdog.finish()
    said = capfd.readouterr().err
    assert said.count("No batch for 0.2 s (data.stall_seconds): the input pipeline hangs") == 1
    assert "test_watchdog_reports_a_wait_once" in said, "the stack of the thread that waits"


def test_watchdog_is_silent_while_batches_come(capfd):
    with Watchdog(0.2) as watchdog:
        for _ in range(8):
            watchdog.begin()
            time.sleep(0.05)
            watchdog.finish()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("text", ["10", "20:10", "10:10", "a:b", ":5", "-1:5"])
def test_steps_to_profile_are_start_and_stop(text):
    with pytest.raises(UserError, match=r"must be START:STOP"):
        parse_steps(text)


def test_profile_leaves_a_trace(tmp_path, use_devices, capsys):
    use_devices(1)
    train(digits_config(), tmp_path / "run", stop_at=5, profile=parse_steps("2:4"))
    folder = tmp_path / "run" / "profile"
    (for_tensorboard,), (for_perfetto,) = folder.rglob("*.xplane.pb"), folder.rglob("perfetto_trace.json.gz")
    planes = jax.profiler.ProfileData.from_file(str(for_tensorboard)).planes
    assert any("train_step)" in event.name for plane in planes for line in plane.lines for event in line.events)
    events = json.loads(gzip.decompress(for_perfetto.read_bytes()))["traceEvents"]
    assert any("train_step)" in event.get("name", "") and event.get("dur") for event in events)
    assert f"Trace in {folder}" in capsys.readouterr().out


@pytest.mark.slow  # the suite has each half of it elsewhere: test_dispatch.py, test_loop.py
def test_large_learning_rate_ends_the_run_or_skips_some_steps(tmp_path, use_devices):
    use_devices(1)
    wild = {"optimizer.learning_rate": 1e30, "optimizer.warmup_epochs": 0.0, "train.log_every_steps": 1}
    with pytest.raises(NonFiniteError, match="training stopped"):
        train(digits_config(**wild), tmp_path / "stop")
    with pytest.raises(NonFiniteError, match="not finite in 4 steps"):
        train(digits_config(**wild, **{"train.on_nonfinite": "skip", "train.max_skipped_steps": 3}), tmp_path / "skip")


@pytest.mark.slow
def test_finite_run_is_the_same_whether_steps_may_be_skipped(tmp_path, use_devices):
    use_devices(1)
    runs = [digits_config(**{"train.on_nonfinite": choice}) for choice in ("stop", "skip")]
    results = [train(config, tmp_path / config.train.on_nonfinite) for config in runs]
    assert results[0]["top1"] == pytest.approx(results[1]["top1"], abs=0.01)
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-3)


def test_debug_nans_names_the_operation(tmp_path, use_devices):
    use_devices(1)
    wild = {"optimizer.learning_rate": 1e30, "optimizer.warmup_epochs": 0.0}
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=r"invalid value \((nan|inf)\)"):
        train(digits_config(**wild), tmp_path / "run")
