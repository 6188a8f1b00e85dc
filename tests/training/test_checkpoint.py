"""Crash safety: damaged checkpoints, a full disk, a workdir in use."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gaternet_jax import load_model
from gaternet_jax.errors import UserError
from gaternet_jax.training.loop import train
from gaternet_jax.workdir import in_use
from tests.helpers import digits_config

# Orbax leaves callbacks behind when it cannot read a file.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 44 steps with checkpoints at 40 and 44, and 22 kept as the best or not."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    config = digits_config(**{"train.epochs": 2.0, "checkpoint.every_steps": 20})
    devices = jax.devices()
    patch = pytest.MonkeyPatch()
    patch.setattr(jax, "devices", lambda *_: devices[:1])
    train(config, workdir)
    patch.undo()
    return config, workdir


@pytest.fixture
def copy(run, tmp_path, use_devices):
    use_devices(1)
    config, workdir = run
    return config, shutil.copytree(workdir, tmp_path / "copy")


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def empty(checkpoint):
    for path in checkpoint.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def truncate(checkpoint):
    for path in files(checkpoint):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(checkpoint):
    """Damages the largest file of the model, which holds its numbers."""
    path = max(files(checkpoint / "model"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content), len(content) // 7):
        content[place] ^= 0x10
    path.write_bytes(content)


def flip_exponent(checkpoint):
    """Changes what was saved in a way that no file format notices: another checkpoint's contents."""
    other = next(p for p in checkpoint.parent.iterdir() if p.name.isdigit() and p != checkpoint)
    shutil.rmtree(checkpoint / "model")
    shutil.copytree(other / "model", checkpoint / "model")


def files(checkpoint):
    return [path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize("damage", [empty, truncate, pytest.param(flip, marks=pytest.mark.slow), flip_exponent])
def test_damaged_newest_checkpoint_is_named_and_the_one_before_taken(copy, damage, capsys):
    config, workdir = copy
    undisturbed = jax.tree.leaves(load_model(workdir, "latest"))
    *_, before, newest = steps(workdir)
    damage(workdir / "checkpoints" / str(newest))
    load_model(workdir, "latest")
    assert re.search(rf"checkpoint {newest} in .* is damaged: ", capsys.readouterr().err)
    assert steps(workdir)[-1] == newest, "reading moves nothing"
    metrics = train(config, workdir)
    said = capsys.readouterr()
    assert f"checkpoint {newest} in" in said.err and f"Going on from step {before}" in said.out
    assert metrics["finished"] and steps(workdir)[-1] == newest
    for one, other in zip(undisturbed, jax.tree.leaves(load_model(workdir, "latest")), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [path.name.split("-")[0] for path in (workdir / "damaged").iterdir()] == [str(newest)]


def test_without_a_whole_checkpoint_nothing_is_deleted(copy):
    config, workdir = copy
    for step in steps(workdir):
        flip(workdir / "checkpoints" / str(step))
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UserError, match=r"(?s)no checkpoint is whole:\n  checkpoint 44 in .*Nothing was deleted"):
        train(config, workdir)
    with pytest.raises(UserError, match="no checkpoint is whole"):
        load_model(workdir)
    assert sorted(workdir.rglob("*")) == before


def test_leftover_of_a_killed_save_is_no_checkpoint(copy):
    config, workdir = copy
    shutil.copytree(workdir / "checkpoints" / "44", workdir / "checkpoints" / "60.orbax-checkpoint-tmp")
    (workdir / "checkpoints" / "60.orbax-checkpoint-tmp" / "_CHECKPOINT_METADATA").unlink(missing_ok=True)
    assert train(config, workdir)["step"] == 44


def test_evaluation_that_was_interrupted_is_made_up_for(copy, monkeypatch):
    """An end that is asked for while evaluating: saved at once, evaluated by the next run."""
    config, workdir = copy
    shutil.rmtree(workdir)
    asked = iter([False] * 22 * 2 + [True] * 100)  # two looks at each step, then one at each evaluation batch
    monkeypatch.setattr("gaternet_jax.training.setup.interruptible", _context(lambda: next(asked)))
    stopped = train(config, workdir)
    assert stopped == {"step": 22, "finished": False}
    monkeypatch.undo()
    lines = (workdir / "metrics.jsonl").read_text()
    assert '"eval"' not in lines
    train(config, workdir)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if line["split"] == "eval"] == [22, 44]


def _context(value):
    import contextlib

    return lambda: contextlib.nullcontext(value)


def test_workdir_in_use_is_refused(run):
    config, workdir = run
    with (
        in_use(workdir, config),
        pytest.raises(UserError, match=rf"in use by process {os.getpid()} on .*; wait for its end"),
    ):
        train(config, workdir)


def test_finished_run_leaves_its_mark(run):
    assert (run[1] / "finished").read_text() == "44\n"


FULL_DISK = """
import resource, sys
from gaternet_jax.training.loop import train
from gaternet_jax.errors import UserError
from tests.helpers import digits_config
config = digits_config(**{"train.epochs": 2.0, "checkpoint.every_steps": 20})
try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # files may not grow beyond it, as on a full disk
    train(config, sys.argv[1])
except UserError as error:
    sys.exit(f"error: {error}")
"""


def test_full_disk_ends_the_run_and_the_earlier_checkpoints_stay_whole(copy, data_dir):
    _, workdir = copy
    shutil.rmtree(workdir / "checkpoints" / "44")
    before = steps(workdir)
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(workdir)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 1
    assert re.search(r"error: a checkpoint cannot be written to .*: .*The earlier ones are whole", result.stderr)
    assert steps(workdir) == before and before[-1] == 40
    load_model(workdir, 40)
