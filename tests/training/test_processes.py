"""Several processes on this machine: the same numbers as one, whatever the layout."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from gaternet_jax import load_model
from gaternet_jax.errors import UserError
from gaternet_jax.training.loop import train
from gaternet_jax.training.processes import HEARTBEAT_SECONDS, initialize
from tests.helpers import digits_config

ROOT = Path(__file__).parents[2]
FIELDS = {"train.epochs": 20 / 22, "train.log_every_steps": 1, "checkpoint.every_steps": 7}


def start(workdir, processes, devices, stop_at=0):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tests.process_worker",
        str(workdir),
        str(devices),
        str(stop_at),
        json.dumps(FIELDS),
    ]
    joined = [[f"localhost:{port}", str(processes), str(index)] for index in range(processes)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    return [subprocess.Popen(command + extra, **pipes) for extra in joined]


def run(workdir, processes, devices, stop_at=0):
    """One process is this one: starting another takes longer than training."""
    if processes == 1:
        with pytest.MonkeyPatch.context() as patch:
            first = jax.devices()[:devices]
            patch.setattr(jax, "devices", lambda *_: first)
            train(digits_config(**FIELDS), workdir, stop_at=stop_at or None)
        return
    for process in start(workdir, processes, devices, stop_at):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines]


def assert_same(workdir, other):
    np.testing.assert_allclose(losses(workdir), losses(other), rtol=1e-5)
    assert len(losses(workdir)) == 21
    for one, two in zip(*(jax.tree.leaves(load_model(path, "latest")) for path in (workdir, other)), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run(workdir, 1, 4)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("processes, devices", [(2, 2), (4, 1)])
def test_processes_compute_what_one_computes(alone, tmp_path, processes, devices):
    run(tmp_path / "run", processes, devices)
    assert_same(alone, tmp_path / "run")


@pytest.mark.parametrize(
    "before, after",
    [
        ((2, 2), (1, 4)),
        pytest.param((1, 4), (2, 2), marks=pytest.mark.slow),
        pytest.param((1, 4), (4, 1), marks=pytest.mark.slow),
        pytest.param((4, 1), (2, 2), marks=pytest.mark.slow),
        pytest.param((1, 1), (2, 1), marks=pytest.mark.slow),
    ],
)
def test_run_goes_on_with_another_layout(alone, tmp_path, before, after):
    run(tmp_path / "run", *before, stop_at=10)
    run(tmp_path / "run", *after)
    assert_same(alone, tmp_path / "run")


@pytest.mark.slow
def test_signal_to_one_process_ends_all_at_the_same_step(tmp_path, data_dir):
    processes = start(tmp_path / "run", 2, 1)
    wait_for_step(tmp_path / "run", 3)
    processes[1].send_signal(signal.SIGTERM)
    last = [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert last[0] == last[1] and int(last[0]) <= 20
    assert (tmp_path / "run" / "checkpoints" / last[0]).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_others_end_when_one_is_killed(tmp_path, data_dir, killed):
    processes = start(tmp_path / "run", 2, 1)
    wait_for_step(tmp_path / "run", 2)
    processes[killed].kill()
    since = time.monotonic()
    processes[1 - killed].communicate(timeout=2 * HEARTBEAT_SECONDS)
    assert processes[1 - killed].returncode != 0
    print(f"ended after {time.monotonic() - since:.1f} s")
    processes[killed].communicate()


def wait_for_step(workdir, step):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        path = workdir / "metrics.jsonl"
        if path.exists() and len(path.read_text().splitlines()) >= step:
            return
        time.sleep(0.02)
    raise AssertionError("the run does not start")


@pytest.mark.parametrize(
    "given, message",
    [
        (("localhost:1", None, None), "belong together"),
        ((None, 2, 0), "belong together"),
        (("localhost:1", 2, 2), "--process_id=2 must be at least 0 and less than --num_processes=2"),
    ],
)
def test_incomplete_or_impossible_processes_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        initialize(*given)
