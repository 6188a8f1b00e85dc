"""Runs that are killed at random moments end where the undisturbed run ends, bit for bit."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from gaternet_jax import load_model
from tests.training.test_checkpoint import empty, flip, steps, truncate

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def start(workdir, epochs):
    fields = {"train.epochs": epochs, "train.eval_every_epochs": 2.0, "checkpoint.every_steps": 5}
    command = [sys.executable, "-u", "-m", "tests.process_worker", str(workdir), "1", "0", json.dumps(fields)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    return subprocess.Popen(command, **pipes)


def finish(workdir, epochs):
    process = start(workdir, epochs)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def read_until(process, text):
    """What a process says, up to a line with `text`, or all of it."""
    said = ""
    while line := process.stdout.readline():
        said += line
        if text in line:
            break
    return said


def disturb(workdir, epochs, signum, seconds, checkpoints=0):
    """Starts the run, lets it train for some time, sends a signal; what it said, and whether it was still at work.

    The time begins when the run has left so many checkpoints of its own (older ones may be half deleted).
    """
    process = start(workdir, epochs)
    said = read_until(process, "Compiled in")
    begun, deadline = int((re.findall(r"Going on from step (\d+)", said) or [0])[0]), time.monotonic() + 120
    while checkpoints and time.monotonic() < deadline:
        if (workdir / "checkpoints").is_dir() and sum(step > begun for step in steps(workdir)) >= checkpoints:
            break
        time.sleep(0.01)
    time.sleep(seconds)
    alive = process.poll() is None
    process.send_signal(signum)
    rest, _ = process.communicate(timeout=120)
    return said + rest, alive


def lines(workdir):
    read = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "images_per_second" and not k.startswith("time_")} for line in read]


def assert_same_run(workdir, other):
    assert lines(workdir) == lines(other)
    for checkpoint in ("latest", "best"):
        found, expected = (jax.tree.leaves(load_model(path, checkpoint)) for path in (workdir, other))
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir):
    runs = {}

    def get(epochs):
        if epochs not in runs:
            runs[epochs] = tmp_path_factory.mktemp("undisturbed") / "run"
            finish(runs[epochs], epochs)
        return runs[epochs]

    return get


@pytest.mark.parametrize(
    "epochs, signals, longest",
    [
        (3.0, [signal.SIGKILL, signal.SIGTERM], 0.3),
        pytest.param(60.0, [signal.SIGKILL] * 20, 2.0, marks=pytest.mark.slow),
        pytest.param(60.0, [signal.SIGTERM] * 20, 2.0, marks=pytest.mark.slow),
    ],
    ids=["short", "kills", "terminations"],
)
def test_disturbed_run_ends_bit_for_bit_where_the_undisturbed_one_ends(undisturbed, tmp_path, epochs, signals, longest):
    workdir, moments, last = tmp_path / "run", random.Random(epochs), 0
    for signum in signals:
        said, alive = disturb(workdir, epochs, signum, moments.uniform(0, longest))
        assert alive, "the run was over before its last signal; give it more epochs"
        if last:
            assert f"Going on from step {last} " in said, "no step is lost by SIGTERM"
        if signum == signal.SIGTERM:
            assert "Traceback" not in said
            last = int(said.split()[-1])
            assert steps(workdir)[-1] == last
    finish(workdir, epochs)
    assert_same_run(workdir, undisturbed(epochs))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, empty, flip])
def test_killed_run_whose_newest_checkpoint_is_damaged_ends_there_too(undisturbed, tmp_path, damage):
    epochs, workdir = 12.0, tmp_path / "run"
    for seconds in (0.5, 0.2, 0.0):
        disturb(workdir, epochs, signal.SIGKILL, seconds, checkpoints=2)
        assert len(steps(workdir)) > 1, "there is one before the newest to go on from"
        newest = steps(workdir)[-1]
        damage(workdir / "checkpoints" / str(newest))
    said = finish(workdir, epochs)
    assert re.search(rf"checkpoint {newest} in .* is damaged", said)
    assert_same_run(workdir, undisturbed(epochs))
