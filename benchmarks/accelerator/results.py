"""Measurements within a time: each is written as soon as it is known, none is made twice."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from gaternet_jax.files import write_file

ACCELERATORS = ("--xla_gpu", "--xla_tpu")  # how their flags begin
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")


@dataclasses.dataclass(frozen=True)
class Task:
    """A measurement.

    Attributes:
        name: unique in its section.
        run: makes it; gives what goes into the JSON file.
        seconds: a first guess of what it takes, compilation included, until others of its section were measured.
    """

    name: str
    run: Callable[[], dict]
    seconds: float = 60.0


class Results:
    """The results of one machine in a folder, and the time that is left.

    Args:
        folder: SECTION.json for each section, and machine.json.
        minutes: the time there is, from now on.
    """

    def __init__(self, folder: Path, minutes: float):
        self.folder, self._end = folder, time.monotonic() + 60 * minutes
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "machine.json", machine())

    def seconds_left(self) -> float:
        """Seconds until the end."""
        return max(self._end - time.monotonic(), 0.0)

    def describe_machine(self) -> str:
        """One line for people."""
        found = machine()
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        return f"{found['devices']}, driver {found['driver']}, Python {found['python']}, {versions}"

    def measure(self, section: str, tasks: Iterable[Task], share: float) -> None:
        """Makes the measurements of a section that are not there yet. Flags of XLA are part of names.

        One that fails is recorded with its error and is made again by the next start. One that is expected to take
        longer than the time there is, is left for it, too.

        Args:
            section: its name.
            tasks: in the order of their worth.
            share: of the time that is left now, for this section.
        """
        path, end = self.folder / f"{section}.json", time.monotonic() + share * self.seconds_left()
        done: dict[str, dict] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        measured = [result["seconds_taken"] for result in done.values() if "error" not in result]
        flags = " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag.startswith(ACCELERATORS))
        for task in tasks:
            name = f"{task.name}, XLA_FLAGS={flags}" if flags else task.name
            if "error" not in done.get(name, {"error": ""}):
                continue
            expected = min(task.seconds, 1.5 * max(measured)) if measured else task.seconds
            if time.monotonic() + expected > end:
                print(f"{section} {name}: not begun, it takes about {expected:.0f} s", flush=True)
                continue
            start = time.monotonic()
            try:
                result = task.run()
                measured.append(time.monotonic() - start)
            except Exception as error:  # whatever a device, a compiler or another library meets
                traceback.print_exc()
                result = {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:300]}
            done[name] = result | {"seconds_taken": round(time.monotonic() - start, 1)}
            write_json(path, done)
            print(f"{section} {name}: {json.dumps(done[name])}", flush=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a file; a crash leaves the old one or the new one."""
    write_file(path, json.dumps(content, indent=1) + "\n")


def machine() -> dict:
    """The card, its driver, and the versions of libraries."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "driver": _driver(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "none"


def seconds_per_call(run: Callable[[], Any], wait: Callable[[Any], Any], *, budget: float, blocks: int = 5) -> float:
    """Median seconds of a call, over blocks of calls that are waited for together.

    Args:
        run: starts one.
        wait: returns when what `run` gave is there.
        budget: seconds for all blocks.
        blocks: at least one call each.
    """
    wait(run())
    start = time.perf_counter()
    wait(run())
    calls = max(int(budget / blocks / max(time.perf_counter() - start, 1e-6)), 1)
    taken = []
    for _ in range(blocks):
        start = time.perf_counter()
        for _ in range(calls - 1):
            run()
        wait(run())
        taken.append((time.perf_counter() - start) / calls)
    return statistics.median(taken)
