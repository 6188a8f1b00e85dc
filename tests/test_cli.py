"""The console script, and what it may import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import configs.cifar10
import gaternet_jax.configs.cifar10
from gaternet_jax.cli import COMMANDS, main
from gaternet_jax.configs import card_names, find_card
from gaternet_jax.errors import UserError

LIGHT = ("train", "evaluate", "predict", "prepare", "convert", "compact", "export", "analyze")
HEAVY = ("jax", "tensorflow_datasets", "grain", "matplotlib", "sklearn", "cv2")


def imported(code):
    """The heavy packages that a new process has imported after some code, and what it printed."""
    code = f"import sys\ntry:\n    {code}\nexcept SystemExit as ending:\n    assert not ending.code\n"
    code += f"print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *printed, packages = done.stdout.splitlines()
    return set(packages.split()), "\n".join(printed)


def test_help_lists_the_commands(capsys):
    for argv in ([], ["--help"], ["-h"]):
        main(argv)
        printed = capsys.readouterr().out
        assert all(f"gaternet {command} " in printed for command in COMMANDS)


@pytest.mark.parametrize("command", LIGHT)
def test_help_of_a_command_needs_no_heavy_package(command):
    packages, printed = imported(f"from gaternet_jax.cli import main; main(['{command}', '--help'])")
    assert not packages
    flags = ("config", "workdir", "mode", "data_dir") if command in ("train", "evaluate") else ("help",)
    assert all(f"--{flag}" in printed for flag in flags)


def test_loading_and_predicting_need_no_data():
    packages, _ = imported("from gaternet_jax import load_model")
    assert packages == {"jax"}
    packages, _ = imported("from gaternet_jax import load_run; from gaternet_jax.inference.predictor import Predictor")
    assert packages == {"jax", "cv2"}, "OpenCV reads a person's own pictures"


def test_unknown_command_ends_with_2(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["trian"])
    assert ending.value.code == 2
    assert capsys.readouterr().err.startswith("error: 'trian' is no command; there are train, evaluate, ")


def test_commands_are_modules():
    folder = Path(gaternet_jax.__file__).parent / "tools"
    assert {path.stem for path in folder.glob("[a-z]*.py")} == set(COMMANDS) - {"train", "evaluate"}


def test_the_card_of_a_checkout_is_that_of_the_package():
    folder = Path(configs.__file__).parent
    assert sorted(path.stem for path in folder.glob("[a-z]*.py")) == card_names()
    assert configs.cifar10.get_config is gaternet_jax.configs.cifar10.get_config


def test_cards_by_name_and_by_file(tmp_path):
    found = Path(gaternet_jax.configs.cifar10.__file__)
    assert find_card("cifar10") == str(found)
    assert find_card("cifar10:resnet56-all") == f"{found}:resnet56-all"
    assert find_card("configs/cifar10.py:resnet56") == "configs/cifar10.py:resnet56"
    assert find_card(f"{tmp_path}/x.py") == f"{tmp_path}/x.py"
    with pytest.raises(UserError, match=r"--config=mnist:a: no run card is called 'mnist'; there are cifar10, "):
        find_card("mnist:a")


def test_a_reader_that_has_enough_ends_a_command_without_a_word():
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-c", "from gaternet_jax.cli import main; main(['--help'])"]
    ended = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (ended.returncode, ended.stderr) == (1, "")
