import signal
import sys

import pytest

from tests.launch.stubs import ROOT, STUB, Stubs, alive, press_control_c, wait_for

TRAIN = "-m gaternet_jax.main"


@pytest.fixture
def stubs(tmp_path):
    stubs = Stubs(tmp_path, "nvidia-smi")
    stubs.add("python", STUB)
    stubs.environment |= {"RESTART_SECONDS": "0"}
    return stubs


def trainings(stubs):
    return [call for call in stubs.calls() if "gaternet_jax.main" in call]


def test_trains_after_looking_at_the_gpus(stubs):
    stubs.answer({"import jax": ["8\n"], TRAIN: [{"code": 0}]})
    done = stubs.run("gpu_node.sh", "--config=configs/digits.py", "--config.x=a b")
    assert done.returncode == 0
    assert "JAX sees 8 GPU(s)" in done.stderr
    assert [call[0] for call in stubs.calls()] == ["nvidia-smi", "python", "python"]
    assert trainings(stubs) == [["python", "-m", "gaternet_jax.main", "--config=configs/digits.py", "--config.x=a b"]]


@pytest.mark.parametrize("code", [1, 134])
def test_starts_again_after_a_crash(stubs, code):
    stubs.answer({TRAIN: [{"code": code}, {"code": code}, {"code": 0}]})
    assert stubs.run("gpu_node.sh", "--config=x").returncode == 0
    assert len(trainings(stubs)) == 3


def test_gives_up_after_so_many_restarts(stubs):
    stubs.answer({TRAIN: [{"code": 1}]})
    done = stubs.run("gpu_node.sh", "--config=x", MAX_RESTARTS="2")
    assert done.returncode == 1
    assert "giving up" in done.stderr
    assert len(trainings(stubs)) == 3


def test_does_not_start_again_after_a_mistake(stubs):
    stubs.answer({TRAIN: [{"code": 2}]})
    assert stubs.run("gpu_node.sh", "--config=x").returncode == 2
    assert len(trainings(stubs)) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=digits:resnet8-wide"],
        ["--config=mnist"],
        ["--config=digits", "--config.train.epoch=3"],
        ["--config=digits", "--config.train.epochs=many"],
        ["--config=digits", "--epochs=3"],
        ["--workdir=run"],
    ],
    ids=str,
)
def test_the_real_program_is_not_started_again_after_a_mistake(stubs, arguments):
    stubs.add(
        "python",
        f"""#!/bin/bash
        case "$*" in *"import jax"*) echo 8; exit ;; esac
        echo start; exec {sys.executable} "$@"
        """,
    )
    done = stubs.run("gpu_node.sh", *arguments, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    assert done.returncode == 2, done.stderr
    assert done.stdout == "start\n"
    assert "error: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["control-c", "SIGTERM twice"])
def test_a_signal_reaches_the_run_once_and_it_is_not_started_again(stubs, how):
    stubs.add(
        "python",
        """#!/bin/bash
        case "$*" in *import*) echo 1; exit ;; esac
        trap 'echo signal' INT TERM
        sleep 60 & echo "$!" > child
        touch started-$$
        for _ in {1..15}; do sleep 0.05 & wait $!; done
        exit 1
        """,
    )
    node = stubs.popen("gpu_node.sh", "--config=x")
    wait_for(lambda: list(stubs.folder.glob("started-*")))
    if how == "control-c":
        press_control_c(node)
    else:
        node.terminate()
        node.send_signal(signal.SIGTERM)
    output, _ = node.communicate(timeout=10)
    assert output.count("signal\n") == 1
    assert "restart" not in output
    assert node.returncode == 1
    assert len(list(stubs.folder.glob("started-*"))) == 1
    child = int((stubs.folder / "child").read_text())
    wait_for(lambda: not alive(child))  # what the run left behind is gone too


def test_without_a_driver(stubs):
    stubs.hide_system()
    (stubs.bin / "nvidia-smi").unlink()
    done = stubs.run("gpu_node.sh", "--config=x")
    assert done.returncode == 2
    assert "no NVIDIA driver" in done.stderr


@pytest.mark.parametrize(
    ("failing", "message"), [("nvidia-smi", "finds no working GPU"), ("import jax", "JAX does not see the GPUs")]
)
def test_without_gpus(stubs, failing, message):
    stubs.answer({failing: [{"code": 9}]})
    done = stubs.run("gpu_node.sh", "--config=x")
    assert done.returncode == 2
    assert message in done.stderr
    assert not trainings(stubs)


def test_dry_run(stubs):
    done = stubs.run("gpu_node.sh", "--config=a b", DRY_RUN="1")
    assert done.stdout.splitlines()[-1] == r"env JAX_PLATFORMS=cuda python -m gaternet_jax.main --config=a\ b"
    assert stubs.calls() == []
