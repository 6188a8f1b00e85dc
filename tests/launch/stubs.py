"""Stub programs on PATH that record their arguments and answer as scripted; no real cloud or cluster is ever asked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"

STUB = f"""#!{sys.executable} -IS
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["STUBS"])
program, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open(folder / "calls.jsonl", "a") as calls:
    calls.write(json.dumps([program, *arguments]) + "\\n")
line = " ".join([program, *arguments])
for number, (pattern, replies) in enumerate(json.loads((folder / "answers.json").read_text())):
    if pattern in line:
        count = folder / f"count-{{number}}"
        done = int(count.read_text()) if count.exists() else 0
        count.write_text(str(done + 1))
        reply = replies[min(done, len(replies) - 1)]
        sys.stdout.write(reply.get("out", ""))
        sys.stderr.write(reply.get("err", ""))
        sys.exit(reply.get("code", 0))
"""


class Stubs:
    """A folder of stub programs. `answer` maps a part of the command line to its replies; the last one repeats."""

    def __init__(self, folder: Path, *programs: str):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for program in programs:
            self.add(program, STUB)
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder),
            "STUBS": str(folder),
            "CLOUDSDK_CONFIG": str(folder / "gcloud"),  # were a real gcloud ever reached, it would have no account
        }
        self.answer({})

    def add(self, program: str, text: str) -> None:
        (self.bin / program).write_text(text)
        (self.bin / program).chmod(0o755)

    def hide_system(self) -> None:
        """Leaves on PATH only the stubs and what the scripts themselves need, whatever this machine has."""
        for tool in ("bash", "env", "dirname", "awk", "rm", "sleep"):
            (self.bin / tool).symlink_to(next(p for p in (Path("/usr/bin") / tool, Path("/bin") / tool) if p.exists()))
        self.environment["PATH"] = str(self.bin)

    def answer(self, answers: dict) -> None:
        as_replies = {
            pattern: [reply if isinstance(reply, dict) else {"out": reply} for reply in replies]
            for pattern, replies in answers.items()
        }
        (self.folder / "answers.json").write_text(json.dumps(list(as_replies.items())))

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(LAUNCH / script), *arguments],
            env=self.environment | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def popen(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(LAUNCH / script), *arguments],
            env=self.environment | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that a test can signal it as a terminal would: the whole group
        )


def wait_for(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def press_control_c(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGINT)
