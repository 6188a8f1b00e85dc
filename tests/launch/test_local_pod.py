import os
import re
import signal
import sys

import pytest

from tests.launch.stubs import Stubs, alive, press_control_c, wait_for

# Ends with 0 at the first signal, after a while, as the program does; counts signals; starts a child of its own.
PATIENT = """
import os, pathlib, signal, subprocess, sys, time
got = []
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda signum, frame: got.append(signum))
child = subprocess.Popen(["sleep", "60"])
me = sys.argv[-1].split("=")[1]
pathlib.Path(f"pids-{me}").write_text(f"{os.getpid()} {child.pid}")
while not got:
    time.sleep(0.02)
time.sleep(0.3)
print("signals", [int(signum) for signum in got], "child", child.poll(), flush=True)
"""

STUBBORN = """
import os, pathlib, signal, subprocess, sys, time
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
me = sys.argv[-1].split("=")[1]
pathlib.Path(f"pids-{me}").write_text(f"{os.getpid()} {child.pid}")
if me == "0" and "fail" in sys.argv:
    sys.exit(3)
time.sleep(60)
"""


@pytest.fixture
def stubs(tmp_path):
    return Stubs(tmp_path)


def pids(stubs):
    return [int(pid) for path in stubs.folder.glob("pids-*") for pid in path.read_text().split()]


def started(stubs, count):
    wait_for(lambda: len(pids(stubs)) == 2 * count)
    return pids(stubs)


def test_arguments_environment_and_prefixes(stubs):
    show = "import os, sys; print(sys.argv[1:], os.environ['JAX_PLATFORMS'], os.environ['JAX_NUM_CPU_DEVICES'])"
    done = stubs.run("local_pod.sh", "3", sys.executable, "-c", show, "a b", DEVICES_PER_PROCESS="4")
    assert done.returncode == 0
    ports = set(re.findall(r"localhost:(\d+)", done.stdout))
    assert len(ports) == 1
    port = ports.pop()
    assert sorted(done.stdout.splitlines()) == [
        f"[{i}] ['a b', '--coordinator=localhost:{port}', '--num_processes=3', '--process_id={i}'] cpu 4"
        for i in range(3)
    ]


def test_both_streams_and_a_last_line_without_an_end_are_shown(stubs):
    done = stubs.run("local_pod.sh", "1", "bash", "-c", "echo out; echo err >&2; printf end")
    assert done.stdout.splitlines() == ["[0] out", "[0] err", "[0] end"]


@pytest.mark.parametrize(("codes", "expected"), [("0 0 0", 0), ("0 2 0", 2), ("0 0 1", 1)])
def test_exit_code(stubs, codes, expected):
    command = "codes=($0); exit ${codes[${@: -1:1}]}".replace("${@: -1:1}", "${3#*=}")
    assert stubs.run("local_pod.sh", "3", "bash", "-c", command, codes).returncode == expected


def test_exit_code_is_that_of_the_first_failure(stubs):
    command = 'if [ "$3" = --process_id=1 ]; then exit 5; fi; sleep 0.5; exit 1'
    done = stubs.run("local_pod.sh", "2", "bash", "-c", command, "x")
    assert done.returncode == 5
    assert "process 1 ended with 5" in done.stderr


def test_a_process_killed_by_a_signal_counts_as_failed(stubs):
    assert stubs.run("local_pod.sh", "1", "bash", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("how", ["control-c", "SIGTERM"])
def test_a_signal_reaches_every_process_once_and_none_of_their_children(stubs, how):
    pod = stubs.popen("local_pod.sh", "2", sys.executable, "-c", PATIENT)
    processes = started(stubs, 2)
    if how == "control-c":
        press_control_c(pod)
    else:
        pod.terminate()
    output, _ = pod.communicate(timeout=10)
    signum = 2 if how == "control-c" else 15
    for i in range(2):
        assert f"[{i}] signals [{signum}] child None" in output
    assert pod.returncode == 0
    wait_for(lambda: not any(map(alive, processes)))


def test_when_one_fails_the_others_get_time_and_are_then_ended(stubs):
    done = stubs.run("local_pod.sh", "2", sys.executable, "-c", STUBBORN, "fail", GRACE_SECONDS="1", KILL_SECONDS="1")
    assert done.returncode == 3
    assert "terminating" in done.stderr
    assert "killing" in done.stderr
    processes = started(stubs, 2)
    wait_for(lambda: not any(map(alive, processes)))


def test_others_that_end_in_time_are_not_terminated(stubs):
    command = 'if [ "$3" = --process_id=0 ]; then exit 1; fi; sleep 0.5; echo "lost a peer"; exit 1'
    done = stubs.run("local_pod.sh", "2", "bash", "-c", command, "x", GRACE_SECONDS="5")
    assert "[1] lost a peer" in done.stdout
    assert "terminating" not in done.stderr
    assert done.returncode == 1


def test_a_second_signal_kills(stubs):
    pod = stubs.popen("local_pod.sh", "2", sys.executable, "-c", STUBBORN)
    processes = started(stubs, 2)
    press_control_c(pod)
    for line in pod.stdout:
        if "SIGINT" in line:
            break
    os.kill(pod.pid, signal.SIGTERM)
    output, _ = pod.communicate(timeout=10)
    assert "second signal" in output
    assert pod.returncode == 128 + signal.SIGKILL
    wait_for(lambda: not any(map(alive, processes)))


@pytest.mark.parametrize("arguments", [[], ["two", "true"], ["0", "true"], ["2"]])
def test_mistakes(stubs, arguments):
    done = stubs.run("local_pod.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: say")


def test_a_grace_time_must_be_a_number(stubs):
    done = stubs.run("local_pod.sh", "1", "true", GRACE_SECONDS="long")
    assert (done.returncode, done.stderr) == (2, "error: GRACE_SECONDS must be a whole number, not 'long'\n")


def test_dry_run(stubs):
    done = stubs.run("local_pod.sh", "2", "touch", "a b", DRY_RUN="1")
    assert len(done.stdout.splitlines()) == 2
    assert r"env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 touch a\ b --coordinator=" in done.stdout
    assert not (stubs.folder / "a b").exists()
