"""launch/tpu_vm.sh run: from an order to the end of a run, through what may happen on the way."""

import re
import signal

import pytest

from tests.launch.stubs import wait_for
from tests.launch.tpu import (
    CONFIG,
    CREATE,
    DELETE,
    ENDED,
    FAILS,
    FINISHED,
    GONE,
    INSTALL,
    LOG,
    NO_RUN,
    NOT_FINISHED,
    RUNNING,
    START,
    STATE,
    STATUS,
    announces,
    stages,
    tpu_stubs,
    workers,
)


@pytest.fixture
def stubs(tmp_path):
    return tpu_stubs(tmp_path)


def test_run_does_everything_until_the_run_is_finished(stubs):
    stubs.answer(
        {
            STATE: [GONE, "WAITING_FOR_RESOURCES\n", "PROVISIONING\n", "ACTIVE\n"],
            STATUS: [NO_RUN, RUNNING, ENDED],
            LOG: ["step 1\n", "step 2 done\n"],
            FINISHED: [NOT_FINISHED, "500"],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 0, done.stderr
    assert stages(stubs) == ["create", "install", "start", "delete"]
    assert done.stdout == "step 1\nstep 2 done\n"
    assert "finished (step 500): gs://my-bucket/gaternet" in done.stderr
    assert ["gcloud", "storage", "cat", "gs://my-bucket/gaternet/finished"] in stubs.calls()
    logs = [call[-1] for call in stubs.calls() if LOG in call[-1]]
    assert [re.search(r"\+\d+", log)[0] for log in logs] == ["+1", "+8"]  # only what is new


def test_run_keeps_the_tpu_if_asked(stubs):
    stubs.answer({STATE: ["ACTIVE\n"], STATUS: [NO_RUN, ENDED], FINISHED: [NOT_FINISHED, "500"]})
    done = stubs.run("tpu_vm.sh", "run", CONFIG, KEEP="1")
    assert done.returncode == 0
    assert stages(stubs) == ["install", "start"]
    assert announces(done)


@pytest.mark.parametrize("lost_as", ["SUSPENDING\n", "SUSPENDED\n", "FAILED\n"])
def test_run_goes_on_after_preemption(stubs, lost_as):
    stubs.answer(
        {
            STATE: [GONE, "ACTIVE\n", "ACTIVE\n", lost_as, lost_as, GONE, "ACTIVE\n"],
            STATUS: [NO_RUN, RUNNING, NO_RUN, RUNNING, ENDED],
            FINISHED: [NOT_FINISHED, NOT_FINISHED, "500"],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG, SPOT="1")
    assert done.returncode == 0, done.stderr
    assert stages(stubs) == ["create", "install", "start", "delete", "create", "install", "start", "delete"]
    assert all("--spot" in call for call in stubs.calls() if "create" in call)


def test_run_creates_again_what_failed_before_it_was_active(stubs):
    stubs.answer(
        {
            STATE: [GONE, "FAILED\n", "FAILED\n", GONE, "ACTIVE\n"],
            STATUS: [NO_RUN, ENDED],
            FINISHED: [NOT_FINISHED, "500"],
        }
    )
    assert stubs.run("tpu_vm.sh", "run", CONFIG).returncode == 0
    assert stages(stubs) == ["create", "delete", "create", "install", "start", "delete"]


def test_run_creates_again_when_the_workers_no_longer_answer(stubs):
    stubs.answer(
        {
            STATE: [GONE] + ["ACTIVE\n"] * 7 + [GONE, "ACTIVE\n"],
            STATUS: [NO_RUN] + [FAILS] * 5 + [NO_RUN, ENDED],
            FINISHED: [NOT_FINISHED, "500"],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 0, done.stderr
    assert "5 of 5 times" in done.stderr
    assert stages(stubs).count("create") == 2


def test_run_goes_on_asking_when_gcloud_itself_fails(stubs):
    unknown = {"code": 1, "err": "ERROR: network is unreachable\n"}
    stubs.answer(
        {
            STATE: ["ACTIVE\n", "ACTIVE\n"] + [unknown] * 8 + ["ACTIVE\n"],
            STATUS: [NO_RUN, ENDED],
            FINISHED: [NOT_FINISHED, "500"],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 0
    assert done.stderr.count("asking again") == 8
    assert stages(stubs) == ["install", "start", "delete"]  # nothing was deleted or created on a guess


def test_run_starts_again_after_a_crash_on_the_same_tpu(stubs):
    stubs.answer(
        {
            STATE: [GONE, "ACTIVE\n"],
            STATUS: [NO_RUN, workers("exited 1", "killed 9"), NO_RUN, ENDED],
            FINISHED: [NOT_FINISHED, NOT_FINISHED, "500"],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 0, done.stderr
    assert stages(stubs) == ["create", "install", "start", "start", "delete"]


def test_run_does_not_start_again_after_a_mistake(stubs):
    stubs.answer(
        {
            STATE: [GONE, "ACTIVE\n"],
            STATUS: [NO_RUN, workers("exited 2", "running"), workers("exited 2", "exited 1")],
            LOG: ["error: no such config\n", ""],
            FINISHED: [NOT_FINISHED],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 2
    assert stages(stubs) == ["create", "install", "start"]
    assert "error: no such config" in done.stdout
    assert "stage 'run' failed" in done.stderr
    assert announces(done)


def test_run_gives_up_after_so_many_restarts(stubs):
    stubs.answer({STATE: ["ACTIVE\n"], STATUS: [workers("exited 1", "exited 1")], FINISHED: [NOT_FINISHED]})
    done = stubs.run("tpu_vm.sh", "run", CONFIG, MAX_RESTARTS="2")
    assert done.returncode == 1
    assert stages(stubs) == ["install", "start", "start", "start"]
    assert "giving up" in done.stderr
    assert announces(done)


def test_run_stops_workers_that_hang_after_another_has_failed(stubs):
    half = workers("killed 9", "running")
    stubs.answer(
        {
            STATE: ["ACTIVE\n"],
            STATUS: [NO_RUN, half, workers("killed 9", "absent"), NO_RUN, ENDED],
            FINISHED: [NOT_FINISHED, NOT_FINISHED, "500"],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG, GRACE_SECONDS="0")
    assert done.returncode == 0, done.stderr
    sent = [call[-1].removeprefix("--command=") for call in stubs.calls()]
    assert sent.count("sudo systemctl stop gaternet") == 1


def test_run_ends_when_the_run_was_stopped_on_purpose(stubs):
    stubs.answer({STATE: ["ACTIVE\n"], STATUS: [NO_RUN, workers("stopped", "stopped")], FINISHED: [NOT_FINISHED]})
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 1
    assert "stopped on purpose" in done.stderr
    assert stages(stubs) == ["install", "start"]
    assert announces(done)


def test_run_takes_up_a_run_that_is_going_on(stubs):
    stubs.answer({STATE: ["ACTIVE\n"], STATUS: [RUNNING, ENDED], FINISHED: [NOT_FINISHED, "500"]})
    assert stubs.run("tpu_vm.sh", "run", CONFIG).returncode == 0
    assert stages(stubs) == ["delete"]


def test_run_does_nothing_when_the_run_is_finished(stubs):
    stubs.answer({STATE: [GONE], FINISHED: ["500"]})
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 0
    assert "finished already (step 500)" in done.stderr
    assert stages(stubs) == []


@pytest.mark.parametrize(
    ("stage", "answers", "done_before"),
    [
        ("create", {CREATE: [FAILS], STATE: [GONE, "FAILED\n"]}, ["create"]),
        ("wait", {STATE: [GONE, "WAITING_FOR_RESOURCES\n"]}, ["create"]),
        ("install", {INSTALL: [FAILS], STATE: [GONE, "ACTIVE\n"]}, ["create", "install"]),
        ("start", {START: [FAILS], STATE: [GONE, "ACTIVE\n"]}, ["create", "install", "start"]),
        ("delete", {DELETE: [FAILS], STATE: ["SUSPENDED\n"]}, ["delete"]),
    ],
)
def test_a_stage_that_fails_is_named_and_what_is_left_announced(stubs, stage, answers, done_before):
    stubs.answer({**answers, STATUS: [NO_RUN], FINISHED: [NOT_FINISHED]})
    done = stubs.run("tpu_vm.sh", "run", CONFIG, WAIT_ACTIVE_SECONDS="0")
    assert done.returncode == 1
    assert f"error: stage '{stage}' failed" in done.stderr
    assert stages(stubs) == done_before
    assert announces(done)


def test_nothing_is_announced_where_nothing_is_left(stubs):
    stubs.answer({CREATE: [FAILS], STATE: [GONE]})
    done = stubs.run("tpu_vm.sh", "create")
    assert "stage 'create' failed" in done.stderr
    assert "cost money" not in done.stderr


def test_what_may_be_left_is_announced_when_gcloud_cannot_tell(stubs):
    stubs.answer({CREATE: [FAILS], STATE: [{"code": 1, "err": "ERROR: command not found\n"}]})
    done = stubs.run("tpu_vm.sh", "create")
    assert "it may still be there" in done.stderr
    assert announces(done)


def test_control_c_leaves_the_run_going_and_says_so(stubs):
    stubs.answer({STATE: ["ACTIVE\n"], STATUS: [RUNNING], FINISHED: [NOT_FINISHED]})
    run = stubs.popen("tpu_vm.sh", "run", CONFIG, POLL_SECONDS="1")
    wait_for(lambda: any(STATUS in call[-1] for call in stubs.calls()))
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=10)
    assert run.returncode == 130
    assert "a started run goes on" in output
    assert "is NOT deleted" in output
    assert stages(stubs) == []
