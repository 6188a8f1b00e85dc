import subprocess
import sys
import tomllib
from pathlib import Path

import jax.numpy as jnp
import pytest

import gaternet_jax
from gaternet_jax import gating


def test_names_are_those_of_their_modules():
    for name in ("count_macs", "find_sites", "gate", "skip_closed"):
        assert getattr(gaternet_jax, name) is getattr(gating, name)
    for name in gaternet_jax.__all__:
        assert getattr(gaternet_jax, name) is not None
    assert {*gaternet_jax.__all__, "write_onnx", "__all__"} <= set(dir(gaternet_jax))
    assert gaternet_jax.sem_hash(jnp.array([[-1.0, 0.0]])).tolist() == [[0, 1]]


def test_version_is_that_of_the_project():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert gaternet_jax.__version__ == project["version"]


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="'gaternet_jax' has no attribute 'gates'"):
        gaternet_jax.gates  # noqa: B018


def test_importing_the_package_imports_no_jax():
    code = "import sys, gaternet_jax; dir(gaternet_jax); sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
