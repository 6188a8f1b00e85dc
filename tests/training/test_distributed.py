"""Joining processes: whom one waits for, and clusters that tell too little."""

import time

import jax
import pytest

from gaternet_jax.errors import UserError
from gaternet_jax.training import processes as distributed

SLURM = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}


@pytest.fixture
def joining(monkeypatch):
    """A function: joining does this."""
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "PATIENCE_SECONDS", 0.05)
    return lambda act: monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: act())


@pytest.mark.parametrize(
    ("variables", "arguments", "whom"),
    [
        (SLURM, (), "the other 3 of 4 processes (SLURM_NTASKS of job 77; this is process 0)"),
        (SLURM | {"SLURM_PROCID": "2"}, (), "process 0 of 4 processes (SLURM_NTASKS of job 77; this is process 2)"),
        ({}, ("host:1", 2, 1), "process 0 of 2 processes (--num_processes; this is process 1)"),
        ({}, (), "the other processes of this run"),
    ],
)
def test_a_wait_says_whom_it_is_for(variables, arguments, whom, joining, monkeypatch, capfd):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    joining(lambda: time.sleep(0.4))
    distributed.initialize(*arguments)
    said = capfd.readouterr().err
    assert said == f"Waiting for {whom}. Start them too, or run this one process alone: {distributed.ALONE}\n"


@pytest.mark.parametrize("variables", [{}, SLURM | {"SLURM_NTASKS": "1"}])
def test_what_is_quick_or_alone_says_nothing(variables, joining, monkeypatch, capfd):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    joining(lambda: time.sleep(0.2) if variables else None)
    distributed.initialize()
    time.sleep(0.1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file", "token"),
        ValueError("invalid literal for int()"),
        type("ConfigException", (Exception,), {})(),
    ],
)
def test_a_cluster_that_tells_too_little(error, joining):
    def fail():
        raise error

    joining(fail)
    with pytest.raises(UserError, match=r"a part of a cluster, of which it cannot read more .*--num_processes=1"):
        distributed.initialize()


def test_no_cluster_is_one_process(joining):
    def fail():
        raise ValueError("coordinator_address should be defined.")

    joining(fail)
    distributed.initialize()
