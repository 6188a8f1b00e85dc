"""The command line, as a process of its own."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "gaternet_jax.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("cli") / "run"
    result = run(
        "--config=configs/digits.py:resnet8",
        f"--workdir={workdir}",
        "--config.model.width=4",
        "--config.model.gater.width=4",
        "--config.train.epochs=2",
        "--config.train.eval_every_epochs=1",
    )
    return workdir, result


def test_training_shows_progress_and_ends_with_a_summary(trained):
    workdir, result = trained
    assert result.returncode == 0, result.stderr
    for pattern in (
        r"Training resnet8 \(gating: all\) on digits in ",
        r"epoch    1\.0  step      22  loss .* top-1 .* open gates .*%",
        r"Done after step 44",
        r"top-1 +\d+\.\d\d% of 360 test images",
        r"open gates +\d+\.\d% on average; \d+\.\d% of the gates depend on the image",
        rf"checkpoints +{workdir}/checkpoints \(the best, which load_model takes: step \d+\)",
        rf"metrics +{workdir}/metrics\.jsonl",
        rf"TensorBoard +{workdir}/tensorboard",
        r"Next:\n +\S+ -m gaternet_jax\.main .* --mode=evaluate",
    ):
        assert re.search(pattern, result.stdout), pattern
    assert "images/s" in result.stderr, "the progress line"
    assert not re.search(r"^[IWE]\d{4} ", result.stdout + result.stderr, re.M), "no library chatter"


def test_same_command_again_goes_on(trained):
    workdir, _ = trained
    result = run(
        "--config=configs/digits.py:resnet8",
        f"--workdir={workdir}",
        "--config.model.width=4",
        "--config.model.gater.width=4",
        "--config.train.epochs=3",
    )
    assert result.returncode == 0, result.stderr
    assert f"Going on from step 44 of 66 in {workdir}" in result.stdout
    assert "Done after step 66" in result.stdout


def test_evaluate_needs_only_the_workdir(trained):
    workdir, _ = trained
    result = run(f"--workdir={workdir}", "--mode=evaluate")
    assert result.returncode == 0, result.stderr
    metrics = json.loads(result.stdout.splitlines()[-1])
    assert metrics["images"] == 360 and 0 <= metrics["top1"] <= 1


def test_evaluate_takes_other_splits_and_refuses_what_it_cannot_change(trained):
    workdir, _ = trained
    card = ("--config=configs/digits.py:resnet8", "--config.model.width=4", "--config.model.gater.width=4")
    common = (*card, f"--workdir={workdir}", "--mode=evaluate")
    result = run(*common, "--config.data.eval_split=train[:100]")
    assert json.loads(result.stdout.splitlines()[-1])["images"] == 100, result.stderr
    result = run(*common, "--config.loss.gate_weight=8")
    assert "error: evaluation cannot change loss.gate_weight; it can change data.data_dir" in result.stderr
    result = run("--config=configs/cifar10.py", f"--workdir={workdir}", "--mode=evaluate")
    assert result.returncode == 2
    assert "model.backbone: resnet8 in the run, resnet20 given" in result.stderr


def test_first_interrupt_ends_with_a_checkpoint_and_the_command_goes_on(tmp_path, data_dir):
    workdir = tmp_path / "run"
    command = [sys.executable, "-u", "-m", "gaternet_jax.main", "--config=configs/digits.py", f"--workdir={workdir}"]
    command += ["--config.model.width=4", "--config.model.gater.width=4", "--config.train.eval_every_epochs=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch"):
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    step = int(re.search(r"Interrupted after step (\d+); saved in .* The same command goes on", rest)[1])
    assert (workdir / "checkpoints" / str(step)).is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/digits.py:resnet21"], "no CIFAR ResNet has depth 21; depths are 6n + 2"),
        (
            ["--config=configs/digits.py", "--config.model.backbone=vgg"],
            "unknown model 'vgg'; known models: densenet100",
        ),
        (["--config=configs/digits.py", "--config.data.name=x"], "unknown dataset 'x'"),
    ],
    ids=str,
)
def test_mistakes_end_in_a_sentence(arguments, message, tmp_path):
    result = run(*arguments, f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 2
    assert message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "workdir"),
    [
        ("configs/cifar10.py:resnet56", "runs/cifar10-resnet56"),
        ("configs/cifar10.py", "runs/cifar10"),
        ("cifar10:resnet56", "runs/cifar10-resnet56"),
        ("/some/where/digits.py:plain", "runs/digits-plain"),
    ],
)
def test_default_workdir(config, workdir):
    from gaternet_jax.main import workdir_of

    assert workdir_of(config) == workdir
