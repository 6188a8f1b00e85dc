"""The wheel, in an environment of its own and outside of the checkout, as a user has it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "gaternet_jax", source / "gaternet_jax", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = run(*pip, "--wheel-dir", str(out), str(source), cwd=source)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The console script of an environment with the wheel, which sees the packages that the tests run with."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", str(environment), cwd=environment)
    folder = next(environment.glob("lib/python*/site-packages"))
    (folder / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), "install", "--quiet"]
    done = run(*pip, "--no-deps", "--no-index", "--no-compile", "--ignore-installed", str(wheel), cwd=environment)
    assert done.returncode == 0, done.stderr
    return environment / "bin" / "gaternet"


def test_the_wheel_has_what_is_no_code_too(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "gaternet_jax").rglob("*") if path.is_file()}
    assert {name for name in there if "__pycache__" not in name} <= names
    assert {"gaternet_jax/py.typed", "gaternet_jax/configs/cifar10.py"} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"gaternet_jax"}, "no tests, no configs/"


def test_trains_and_predicts(installed, tmp_path, data_dir):
    short = ("--config.model.width=4", "--config.train.epochs=0.2", "--config.optimizer.warmup_epochs=0")
    trained = run(str(installed), "train", "--config=digits:plain", "--workdir=run", *short, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "Done after step 4." in trained.stdout
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["gating"] == "none"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    predicted = run(str(installed), "predict", "--workdir=run", "--top=1", "black.png", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert predicted.stdout.startswith("black.png") and len(predicted.stdout.splitlines()) == 2


def test_it_is_the_wheel_that_runs(installed, tmp_path):
    python = installed.with_name("python")
    code = "import gaternet_jax; print(gaternet_jax.__file__, gaternet_jax.__version__)"
    file, version = run(str(python), "-c", code, cwd=tmp_path).stdout.split()
    assert Path(file).is_relative_to(installed.parents[1])
    assert run(str(installed), "--version", cwd=tmp_path).stdout == f"gaternet-jax {version}\n"
