import re

import pytest

from tests.launch.stubs import LAUNCH, Stubs

TEXT = (LAUNCH / "slurm.sbatch").read_text()
OPTIONS = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", TEXT, re.MULTILINE))


@pytest.fixture
def stubs(tmp_path):
    stubs = Stubs(tmp_path, "srun", "scontrol")
    stubs.environment |= {"SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "8"}
    (tmp_path / "run").mkdir()
    return stubs


def submit(stubs, *arguments, **environment):
    return stubs.run("slurm.sbatch", "--config=x", *(arguments or ("--workdir=run",)), **environment)


def programs(stubs):
    return [call[0] for call in stubs.calls()]


def test_a_finished_run_is_not_requeued(stubs):
    (stubs.folder / "run/finished").write_text("100")
    assert submit(stubs).returncode == 0
    srun = ["srun", "--kill-on-bad-exit=0", "--wait=300", "--gpu-bind=none", "--cpus-per-task=8"]
    assert stubs.calls() == [[*srun, "python", "-m", "gaternet_jax.main", "--config=x", "--workdir=run"]]


@pytest.mark.parametrize("arguments", [["--workdir=run"], ["--workdir", "run"], ["--workdir=other", "--workdir=run"]])
def test_a_run_that_ended_early_is_requeued(stubs, arguments):
    (stubs.folder / "other").mkdir()
    (stubs.folder / "other/finished").touch()
    done = submit(stubs, *arguments)
    assert done.returncode == 0
    assert stubs.calls()[1:] == [["scontrol", "requeue", "42"]]


def test_a_run_that_sigterm_ended_while_it_was_starting_is_requeued(stubs):
    stubs.answer({"srun": [{"code": 143}]})
    assert submit(stubs).returncode == 0
    assert programs(stubs) == ["srun", "scontrol"]  # and not started again in the last seconds of its time


def test_a_mistake_is_not_requeued(stubs):
    stubs.answer({"srun": [{"code": 2}]})
    assert submit(stubs).returncode == 2
    assert programs(stubs) == ["srun"]


def test_a_crash_is_started_again_in_the_same_allocation(stubs):
    (stubs.folder / "run/finished").touch()
    stubs.answer({"srun": [{"code": 1}, {"code": 139}, {"code": 0}]})
    assert submit(stubs).returncode == 0
    assert programs(stubs) == ["srun"] * 3


def test_gives_up_after_so_many_restarts(stubs):
    stubs.answer({"srun": [{"code": 1}]})
    done = submit(stubs, MAX_RESTARTS="1")
    assert done.returncode == 1
    assert "giving up" in done.stderr
    assert programs(stubs) == ["srun"] * 2


@pytest.mark.parametrize("code", [0, 1])
def test_a_job_that_somebody_ended_is_not_requeued(stubs, code):
    stubs.add("srun", f"#!/bin/bash\nkill -TERM $PPID\nexit {code}\n")  # SIGTERM to the batch script, as by scancel
    done = submit(stubs)
    assert done.returncode == code
    assert "not requeued" in done.stderr
    assert stubs.calls() == []


def test_says_how_to_go_on_when_requeueing_fails(stubs):
    stubs.answer({"scontrol": [{"code": 1}]})
    done = submit(stubs)
    assert done.returncode == 1
    assert "sbatch the same command again" in done.stderr


def test_needs_a_workdir(stubs):
    done = stubs.run("slurm.sbatch", "--config=x")
    assert done.returncode == 2
    assert "--workdir=DIR" in done.stderr
    assert stubs.calls() == []


def test_is_not_run_by_hand(stubs):
    del stubs.environment["SLURM_JOB_ID"]
    done = submit(stubs)
    assert done.returncode == 2
    assert "sbatch launch/slurm.sbatch" in done.stderr


def test_options():
    assert OPTIONS["signal"] == "TERM@120"  # to the steps: not B:, which is the batch script alone
    assert OPTIONS["open-mode"] == "append"
    assert "requeue" in OPTIONS
    assert OPTIONS["ntasks-per-node"] == OPTIONS["gpus-per-node"]
    assert "gpus-per-task" not in OPTIONS  # it would hide from JAX the device numbered SLURM_LOCALID


def test_options_stand_before_the_first_command():
    """SLURM reads no #SBATCH line below the first command."""
    lines = TEXT.splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command


def test_dry_run(stubs):
    done = submit(stubs, "--workdir=a b", DRY_RUN="1")
    assert done.stdout.splitlines()[0].endswith(r"python -m gaternet_jax.main --config=x --workdir=a\ b")
    assert done.stdout.splitlines()[1] == "scontrol requeue 42"
    assert stubs.calls() == []
