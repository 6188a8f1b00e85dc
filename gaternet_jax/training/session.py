"""One start of a run, and what it does between the decisions of the training loop."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
from tqdm import tqdm

from gaternet_jax.signals import Interrupted
from gaternet_jax.training.checkpoint import Checkpoints
from gaternet_jax.training.dispatch import StepLoop
from gaternet_jax.training.evaluate import Evaluator, describe
from gaternet_jax.training.gate_summary import GateSummary
from gaternet_jax.training.metrics import LoopClock, MetricWriter, TrainMetrics
from gaternet_jax.training.profiling import Profiler
from gaternet_jax.training.run_plan import Plan
from gaternet_jax.training.starts import StartRecord
from gaternet_jax.training.state import TrainState
from gaternet_jax.training.step import Batch
from gaternet_jax.training.watchdog import Watchdog


@dataclasses.dataclass(kw_only=True)
class Session:
    """Holds one start of a run; `open_session` makes it.

    Attributes:
        plan: what happens after which step.
        step: how many are done.
        state: after them.
        run_steps: some of them in one dispatch.
        batches: of each dispatch, on the devices.
        key: of the run.
        flags: of a process that goes on, and of one that stops, see `stop_flags`.
        interrupted: whether this process was asked to end.
        evaluator: of the evaluation split.
        evaluation_is_due: whether the start before this one was interrupted in the evaluation after this step.
        epoch_steps: steps of an epoch.
    """

    plan: Plan
    step: int
    state: TrainState
    run_steps: StepLoop
    batches: Iterator[Batch]
    key: jax.Array
    flags: tuple[jax.Array, jax.Array]
    interrupted: Callable[[], bool]
    evaluator: Evaluator
    evaluation_is_due: bool
    checkpoints: Checkpoints
    epoch_steps: int
    metrics: TrainMetrics
    writer: MetricWriter
    bar: tqdm
    clock: LoopClock
    record: StartRecord
    gate_summary: GateSummary
    watchdog: Watchdog
    profiler: Profiler

    @property
    def end_was_asked(self) -> bool:
        """Tells whether an end was asked for; several processes learn it at the same step, from the step's metrics."""
        return self.metrics.stop or (jax.process_count() == 1 and self.interrupted())

    def advance(self, count: int) -> None:
        """Runs `count` steps in one dispatch, without waiting for them.

        Raises:
            NonFiniteError: a metric of an earlier step is NaN or infinite.
        """
        self.profiler.after(self.step)
        self.watchdog.begin()
        with self.clock.spent("input"):
            batch = next(self.batches)
        self.watchdog.finish()
        with self.clock.spent("step"):
            flag = self.flags[self.interrupted()]
            self.state, metrics = self.run_steps(self.state, batch, flag, count, self.key)
            self.metrics.add(range(self.step + 1, self.step + count + 1), metrics)
        self.step += count
        self.bar.update(count)

    def evaluate(self, *, overwrite: bool = False) -> dict:
        """Evaluates, writes the metrics, and saves.

        Args:
            overwrite: replace the checkpoint of this step.

        Raises:
            Interrupted: an end was asked for meanwhile; the state is saved, to be evaluated by the next start.
            NonFiniteError: as of `save`.
        """
        self._wait()
        try:
            with self.clock.paused():
                metrics = self.evaluator.run(self.state.eval_params, self.state.stats, self.interrupted)
        except Interrupted:
            self.save(overwrite=overwrite)
            raise
        epoch = self.step / self.epoch_steps
        self.writer.write(self.step, "eval", {"epoch": epoch} | metrics)
        self.bar.write(f"epoch {epoch:6.1f}  step {self.step:7d}  {describe(metrics)}")
        self.save(metrics, overwrite=overwrite)
        self.gate_summary.write(self.writer, self.step)  # last: its thread would compete with the copying of the state
        return metrics

    def save(self, metrics: dict | None = None, *, overwrite: bool = False) -> None:
        """Saves a checkpoint, in the background.

        Args:
            metrics: of an evaluation of this state.
            overwrite: replace the checkpoint of this step.

        Raises:
            NonFiniteError: loss, gradient or parameters became NaN or infinite; nothing of it is saved.
        """
        self._wait()
        self.checkpoints.save(self.state, window=self.metrics.window, metrics=metrics, overwrite=overwrite)
        self.record.saved(self.step)

    def _wait(self) -> None:
        """Waits for all steps so far; raises before anything that came of a NaN is saved."""
        with self.clock.spent("step"):
            self.metrics.wait()


def log_training(
    writer: MetricWriter,
    bar: tqdm,
    clock: LoopClock,
    epoch_steps: int,
    batch_size: int,
    step: int,
    means: dict[str, float],
) -> None:
    """Writes the means of a window of training steps that ends with `step`, with the speed since the last one."""
    measured = clock.measure(step)
    speed = measured.pop("steps_per_second") * batch_size
    values = {"epoch": step / epoch_steps} | means | {"images_per_second": speed} | measured
    loss = f"loss {means['loss']:.3f}, " if "loss" in means else ""
    with clock.spent("host"):  # not "step", where the means were waited for
        writer.write(step, "train", values)
        bar.set_postfix_str(f"{loss}{speed:,.0f} images/s", refresh=False)
