"""Which code on which machine trained a run, and for how long: a record per start, which add up over interruptions.

workdir/starts.json: a list, in order. Every checkpoint brings the record of the present start up to date, so that what
a killed run had done since its last checkpoint, and does again, is not counted.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from pathlib import Path

import jax

from gaternet_jax.errors import UserError
from gaternet_jax.files import write_file
from gaternet_jax.training.processes import is_primary

FILE = "starts.json"
COMMIT = "GATERNET_COMMIT"  # environment variable, for a copy of the code without its git repository
_ROOT = Path(__file__).parents[2]


class StartRecord:
    """Records one start of a run in workdir/starts.json.

    Args:
        workdir: the run's folder.
        epochs: how many this start aims at.
    """

    def __init__(self, workdir: Path, epochs: float):
        self._since, self._path = time.perf_counter(), workdir / FILE
        self._earlier = load_starts(workdir)
        self._facts = {"epochs": epochs} | describe_code() | describe_machine() if is_primary() else {}

    def saved(self, step: int) -> None:
        """Notes that `step` was saved."""
        if is_primary():
            now = {"step": step, "seconds": round(time.perf_counter() - self._since, 1)} | self._facts
            write_file(self._path, json.dumps([*self._earlier, now], indent=1) + "\n")


def load_starts(workdir: Path) -> list[dict]:
    """Reads the starts of a run, none if there is no record: step, the last one saved; seconds; epochs; code; machine.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it: the run's time so far is lost, nothing else"
        ) from None


def describe_code() -> dict:
    """Tells the commit, whether files differ from it (None where the code is no git checkout), and versions."""
    commit, dirty = os.environ.get(COMMIT), None
    if not commit and (_ROOT / ".git").exists():
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", "gaternet_jax", "configs", "benchmarks")
        dirty = None if changed is None else bool(changed)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    return {"commit": commit or None, "dirty": dirty, "versions": {"python": platform.python_version()} | versions}


def describe_machine() -> dict:
    """Tells the devices by kind and number, processes, and CPU cores of this one."""
    kind = jax.devices()[0].device_kind
    if jax.devices()[0].platform == "cpu":
        kind = f"CPU ({platform.machine()})"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"device": kind, "devices": len(jax.devices()), "processes": jax.process_count(), "cores": cores}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
