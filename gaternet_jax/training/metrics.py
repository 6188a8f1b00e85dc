"""Metrics to metrics.jsonl and TensorBoard; training metrics fetched late, so that devices never wait."""

import contextlib
import json
import math
import re
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import RecordWriter, summary
from tensorboardX.proto import event_pb2

from gaternet_jax.errors import NonFiniteError
from gaternet_jax.files import write_file

# In the order of their computation.
TERMS = ("loss", "gate_loss", "auxiliary_loss", "total_loss", "gradient_norm", "parameter_norm")
GROWN = 10.0  # times its least value: worth telling
FLUSH_SECONDS = 10.0  # so long TensorBoard may wait for a line; flushing waits for the disk

_protos: Any = event_pb2  # made at run time, unknown to type checkers


class MetricWriter:
    """Appends to workdir/metrics.jsonl and to TensorBoard files in workdir/tensorboard.

    TensorBoard's part, milliseconds a line, is done in a thread of its own; what fails there is raised at a later call.

    Args:
        workdir: the run's folder.
        resume_step: lines of steps beyond this one are removed; the run computes them again.
        enabled: False in processes that write nothing.
    """

    def __init__(self, workdir: Path, resume_step: int, *, enabled: bool = True):
        self._enabled = enabled
        if not enabled:
            return
        self.path = workdir / "metrics.jsonl"
        _drop_lines_after(self.path, resume_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._tensorboard = _TensorBoard(workdir / "tensorboard", resume_step + 1)
        self._thread, self._started = ThreadPoolExecutor(1, "tensorboard"), deque[Future[None]]()

    def write(self, step: int, split: str, values: dict[str, float | int]) -> None:
        """Writes one line: step, split, and the values."""
        if not self._enabled:
            return
        line = {"step": step, "split": split} | values
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        scalars = {f"{split}/{name}": value for name, value in values.items()}
        self.show(step, lambda: (scalars, {}))

    def show(self, step: int, view: Callable[[], tuple[dict[str, float], dict[str, np.ndarray]]]) -> None:
        """Writes to TensorBoard alone what `view`, called in its thread, gives: scalars; pictures, uint8 [H, W, C]."""
        if not self._enabled:
            return
        while self._started and self._started[0].done():
            self._started.popleft().result()
        self._started.append(self._thread.submit(self._show, step, view))

    def _show(self, step: int, view: Callable[[], tuple[dict[str, float], dict[str, np.ndarray]]]) -> None:
        scalars, pictures = view()
        for name, value in scalars.items():
            self._tensorboard.write(step, summary=summary.scalar(name, value))
        for name, picture in pictures.items():
            self._tensorboard.write(step, summary=summary.image(name, picture, dataformats="HWC"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self._enabled:
            return
        self._thread.shutdown()
        self._file.close()
        self._tensorboard.close()
        for started in self._started:
            started.result()


class TrainMetrics:
    """Collects the metrics of training steps without making the devices wait, and gives their means now and then.

    The values of a dispatch are fetched when `lag` further ones have been started: by then they are there, and the
    host never runs further ahead than that.

    Args:
        emit: called with (step, means) when the window of steps that ends with this step is complete.
        every: a window ends at each multiple of this many steps.
        last_step: the last window ends here.
        max_skipped: how many steps may be skipped because of numbers that are not finite.
        lag: see above.

    Attributes:
        stop: whether a process was asked to end; all processes learn of it at the same step.
        window: what goes into checkpoints: sums since the last means, and the number of steps skipped in the run.
    """

    def __init__(
        self,
        emit: Callable[[int, dict[str, float]], None],
        *,
        every: int,
        last_step: int,
        max_skipped: int = 0,
        lag: int = 2,
    ):
        self.window: dict = {"steps": 0, "sums": {}, "skipped": 0}
        self.stop = False
        self._emit, self._every, self._last_step, self._lag = emit, every, last_step, lag
        self._max_skipped = max_skipped
        self._pending: deque[tuple[range, dict[str, jax.Array]]] = deque()
        self._finite: tuple[int, dict[str, float]] = (0, {})  # the last step whose numbers were finite
        self._least: dict[str, float] = {}  # magnitude of each number so far

    def add(self, steps: range, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of the steps of one dispatch.

        Args:
            steps: their numbers, the first of a run being 1.
            metrics: of each, [len(steps)] or longer.

        Raises:
            NonFiniteError: a metric of an earlier step is NaN or infinite, or too many steps were skipped.
        """
        for value in metrics.values():
            value.copy_to_host_async()
        self._pending.append((steps, metrics))
        if len(self._pending) > self._lag:
            self._fetch()

    def wait(self) -> None:
        """Waits for all steps so far.

        Raises:
            NonFiniteError: a metric of a step is NaN or infinite.
        """
        while self._pending:
            self._fetch()

    def _fetch(self) -> None:
        numbers, metrics = self._pending.popleft()
        fetched = jax.device_get(metrics)
        for place, step in enumerate(numbers):
            self._take(step, {name: float(values[place]) for name, values in fetched.items()})

    def _take(self, step: int, values: dict[str, float]) -> None:
        self.stop |= bool(values.pop("stop", False))
        steps, sums, skipped = self.window["steps"], self.window["sums"], self.window["skipped"]
        can_skip = "skipped" in values
        if values.pop("skipped", False):
            skipped += 1
            if skipped > self._max_skipped:
                what = self._explain(step, values) or f"the last at step {step}"
                raise NonFiniteError(f"a loss, gradient or update was not finite in {skipped} steps: {what}")
        else:
            if what := self._explain(step, values):
                raise NonFiniteError(what)
            self._finite = (step, values)
            self._least = {name: min(abs(values[name]), self._least.get(name, math.inf)) for name in values}
            steps, sums = steps + 1, {name: sums.get(name, 0.0) + value for name, value in values.items()}
        if step % self._every == 0 or step == self._last_step:
            means = {name: total / steps for name, total in sums.items()}
            steps, sums = 0, {}
            self._emit(step, means | ({"skipped_steps": skipped} if can_skip else {}))
        self.window = {"steps": steps, "sums": sums, "skipped": skipped}

    def _explain(self, step: int, values: dict[str, float]) -> str:
        """Says which number is not finite, the first in the order of their computation; and what grew before it."""
        wrong = [name for name in (*TERMS, *values) if not math.isfinite(values.get(name, 0.0))]
        if not wrong:
            return ""
        before, seen = self._finite
        grown = {name: abs(seen[name]) / max(self._least[name], 1e-9) for name in TERMS if name in seen}
        most = max(grown, key=lambda name: grown[name], default="")
        growth = ""
        if most and grown[most] > GROWN:
            growth = f"; before it {most} grew most, from {self._least[most]:.2g} to {seen[most]:.2g} at step {before}"
        return f"{wrong[0]} is {values[wrong[0]]} at step {step}{growth}"


class LoopClock:
    """Measures steps per second, and where the time of the loop goes, without the time spent in `paused`.

    input: waiting for a batch. step: starting one, and waiting for the devices. host: all else, checkpoints included.
    """

    def __init__(self, step: int):
        self._part, self._since = "host", time.perf_counter()
        self._begin(step)

    def _begin(self, step: int) -> None:
        self._step, self._seconds = step, {"input": 0.0, "step": 0.0, "host": 0.0, "paused": 0.0}

    def _go_over_to(self, part: str) -> str:
        """Counts time for this part from here on; returns the part it counted for before."""
        before, now = self._part, time.perf_counter()
        self._seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    @contextlib.contextmanager
    def spent(self, part: str):
        """Counts time in this context for a part, and not for that of a context around it."""
        before = self._go_over_to(part)
        yield
        self._go_over_to(before)

    def paused(self):
        """Leaves time in this context uncounted."""
        return self.spent("paused")

    def measure(self, step: int) -> dict[str, float]:
        """Measures since the last call, at `step` steps done: steps_per_second; fractions time_input, _step, _host."""
        self._go_over_to(self._part)
        del self._seconds["paused"]
        elapsed = sum(self._seconds.values())
        shares = {f"time_{part}": seconds / elapsed for part, seconds in self._seconds.items()}
        speed = (step - self._step) / elapsed
        self._begin(step)
        return {"steps_per_second": speed} | shares


class _TensorBoard:
    """Writes a file for TensorBoard that comes last by its name, which is the order in which TensorBoard reads.

    The name is that of the second. Where the clock went back, the file would come before those that it goes on from,
    and be forgotten; within the same second, it would take another one's place.

    Not by tensorboardX's SummaryWriter: its thread ends when the disk is full, and whoever writes then waits for ever.
    """

    def __init__(self, folder: Path, purge_step: int):
        folder.mkdir(exist_ok=True)
        found = [re.match(r"events\.out\.tfevents\.(\d{10})", path.name) for path in folder.glob("events.*")]
        second = max(int(time.time()), *(int(match[1]) + 1 for match in found if match), 0)
        self._file = RecordWriter(str(folder.absolute() / f"events.out.tfevents.{second:010d}.{socket.gethostname()}"))
        self._flushed = -math.inf
        self.write(0, file_version="brain.Event:2")
        self.write(purge_step, session_log=_protos.SessionLog(status=_protos.SessionLog.START))

    def write(self, step: int, **content: Any) -> None:
        event = _protos.Event(wall_time=time.time(), step=step, **content)
        self._file.write(event.SerializeToString())
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


def _drop_lines_after(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # the run was killed while it wrote this line
        if step <= last_step:
            kept.append(line + "\n")
    write_file(path, "".join(kept))
