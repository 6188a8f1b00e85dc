"""Checkpoints of a workdir (Orbax): the latest few and the best, saved in the background.

    workdir/checkpoints/STEP/  "model" (params, or their moving average; stats) and "training"
    workdir/damaged/           checkpoints that could not be read when a run was resumed

A converted checkpoint has the same form without "training". A run that is killed goes on from the last checkpoint that
was finished; up to two later ones (`checkpoint_writer.IN_FLIGHT`) may have been on their way.
"""

import contextlib
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from gaternet_jax.errors import UserError
from gaternet_jax.models.build import empty_model
from gaternet_jax.models.functional import Tree, merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.paths import quote
from gaternet_jax.training.checkpoint_reader import (
    DamagedError,
    ReplacedError,
    read_checkpoint,
    read_metadata,
    unless_replaced,
)
from gaternet_jax.training.checkpoint_writer import BEST_METRIC, CheckpointWriter
from gaternet_jax.training.processes import is_primary, wait_for_all
from gaternet_jax.training.state import TrainState
from gaternet_jax.workdir import REPLACED, check_not_narrow, has_checkpoint, load_config, saved_steps

Which = Literal["best", "latest"] | int
TRIES = 20  # of reading checkpoints while a run replaces them


class Checkpoints:
    """Saves and restores the checkpoints of one workdir.

    Args:
        workdir: folder of the run.
        keep_latest: how many of the latest are kept; the one with the best top-1 is kept besides.
    """

    def __init__(self, workdir: str | Path, keep_latest: int = 1):
        self._folder, self._keep_latest = Path(workdir).absolute() / "checkpoints", keep_latest
        self._writer: CheckpointWriter | None = None  # opened by the first save: reading changes nothing

    @property
    def steps(self) -> list[int]:
        """Lists the steps of the checkpoints there are, ascending."""
        return saved_steps(self._folder.parent)

    @property
    def latest(self) -> int | None:
        """Gives the step of the latest checkpoint."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """Gives the step with the best top-1 among the checkpoints evaluated (the later of equals), else the latest."""
        top1, _ = self._evaluations()
        return max(top1, key=lambda step: (top1[step], step), default=self.latest)

    def save(self, state: TrainState, *, window: dict, metrics: dict | None = None, overwrite: bool = False) -> None:
        """Starts saving a state; returns once it is safe to change it.

        Args:
            state: what to save, at its own step.
            window: training metrics not yet written, from `TrainMetrics.window`.
            metrics: of an evaluation of this state.
            overwrite: replace the checkpoint of that step, if there is one.

        Raises:
            UserError: this one or an earlier one cannot be written, e.g. because the disk is full.
        """
        parts = {
            "model": {"params": state.eval_params, "stats": state.stats},
            "training": _training_part(state),
        }
        metadata = {"window": copy.deepcopy(window), "metrics": metrics}
        step = int(state.step)
        if overwrite:
            self._make_room(step)
        self._save(step, parts, metadata)

    def save_model(self, params: Tree, stats: Tree) -> None:
        """Saves a model without a training state, as step 0 (for converted checkpoints)."""
        self._save(0, {"model": {"params": params, "stats": stats}}, {})

    def _save(self, step: int, parts: dict, metadata: dict) -> None:
        if self._writer is None:
            top1, damaged = self._evaluations()
            self._set_aside(damaged)
            self._writer = CheckpointWriter(self._folder, self._keep_latest, top1)
        self._writer.save(step, parts, metadata)

    def _make_room(self, step: int) -> None:
        """Renames the old one: Orbax would delete it before writing the new one; a kill in between would leave none."""
        self.close()  # it remembers what is there
        path = self._folder / str(step)
        if is_primary() and path.exists():
            path.rename(path.with_name(f"{step}{REPLACED}"))
        wait_for_all("the checkpoint to replace has its other name")

    def restore(self, state: TrainState) -> tuple[TrainState, dict, bool]:
        """Restores the latest whole checkpoint, placed on the devices as `state` is.

        Damaged ones after it are named, and moved to workdir/damaged.

        Returns:
            The state; its window of training metrics; whether it was evaluated.

        Raises:
            UserError: no checkpoint is whole, or the checkpoint is of another model.
        """
        like = {
            "model": {"params": state.eval_params, "stats": state.stats},
            "training": _training_part(state),
        }
        step, restored = self._read_first(self._in_order("latest"), lambda path: read_checkpoint(path, like))
        metadata = read_metadata(self._path(step))
        self._set_aside([damaged for damaged in self.steps if damaged > step])
        model, training = restored["model"], restored["training"]
        params, ema = (model["params"], None) if state.ema is None else (training["params"], model["params"])
        restored = TrainState(training["step"], params, model["stats"], training["opt_state"], ema)
        return restored, metadata["window"], metadata["metrics"] is not None

    def restore_model(self, which: Which, params: Tree, stats: Tree) -> tuple[int, Tree, Tree]:
        """Restores a step: number, parameters and statistics, placed as given; also while a run saves and deletes here.

        Args:
            which: a step, which is then the one that is read; "best" or "latest", of those that are whole: damaged
                ones are named and passed over.
            params: what is read is placed like these.
            stats: likewise.

        Raises:
            UserError: no such checkpoint, it is damaged, no checkpoint is whole, or it is of another model.
        """
        like = {"model": {"params": params, "stats": stats}}

        def read(path: Path) -> dict:
            return unless_replaced(path, lambda: read_checkpoint(path, like))

        for _ in range(TRIES):
            with contextlib.suppress(ReplacedError):
                step, restored = self._read_first(self._in_order(which), read)
                return step, restored["model"]["params"], restored["model"]["stats"]
        raise UserError(f"the checkpoints in {self._folder} are replaced faster than they can be read; try again")

    def _in_order(self, which: Which) -> list[int]:
        """Lists the steps to try, one after the other, until one is whole."""
        steps = self.steps[::-1]
        if which == "latest":
            return steps
        if which == "best":
            top1, damaged = self._evaluations()
            first = damaged + sorted(top1, key=lambda step: (top1[step], step), reverse=True)
            return first + [step for step in steps if step not in first]
        if which not in steps:
            raise UserError(
                f"{self._folder.parent} has no checkpoint '{which}'; it has steps {steps[::-1]}, or take best or latest"
            )
        return [which]

    def _evaluations(self) -> tuple[dict[int, float], list[int]]:
        """Gives the top-1 of the checkpoints that were evaluated, by step; and the steps of those that cannot tell."""
        top1, damaged = {}, []
        for step in self.steps:
            try:
                if metrics := read_metadata(self._path(step)).get("metrics"):
                    top1[step] = metrics[BEST_METRIC]
            except DamagedError:
                damaged.append(step)
        return top1, damaged

    def _read_first(self, steps: list[int], read: Callable[[Path], dict]) -> tuple[int, dict]:
        """Reads the first of `steps` that is whole; gives it and what it holds. Those before it are named."""
        reasons = []
        for step in steps:
            try:
                found = read(self._path(step))
            except DamagedError as error:
                reasons.append(f"checkpoint {step} in {self._folder} is damaged: {error}")
            else:
                print("".join(f"{reason}\n" for reason in reasons), end="", file=sys.stderr, flush=True)
                return step, found
        if others := sorted(set(self.steps) - set(steps)):
            raise UserError(f"{reasons[0]}. Other checkpoints there: {others}")
        raise UserError(
            "no checkpoint is whole:\n  " + "\n  ".join(reasons) + "\nNothing was deleted. Put one back from a "
            "copy, or begin anew in another --workdir"
        )

    def _path(self, step: int) -> Path:
        path = self._folder / str(step)
        return path if path.exists() else path.with_name(f"{step}{REPLACED}")

    def _set_aside(self, steps: list[int]) -> None:
        if is_primary():
            for step in steps:
                folder = self._folder.parent / "damaged"
                folder.mkdir(exist_ok=True)
                name = f"{step}-{time.strftime('%Y%m%d-%H%M%S')}"
                again = sum(path.name.startswith(name) for path in folder.iterdir())  # within this very second
                aside = folder / (f"{name}-{again}" if again else name)
                self._path(step).rename(aside)
                print(f"Moved to {aside}", file=sys.stderr, flush=True)
        wait_for_all("damaged checkpoints are set aside")

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
            UserError: it cannot be written.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _training_part(state: TrainState) -> dict:
    """Gives what a resumed run needs besides the model; the raw parameters only where the model holds their average."""
    part = {"step": state.step, "opt_state": state.opt_state}
    return part if state.ema is None else part | {"params": state.params}


def load_model(workdir: str | Path, checkpoint: Which = "best", *, tell: bool = False) -> GaterNet:
    """Loads the model of a training run, of a conversion or of a compaction, in evaluation mode.

    The run may be at work meanwhile.

    Args:
        workdir: the --workdir of a run, or the --out of `tools.convert` or `tools.compact`.
        checkpoint: "best" (top-1 on the evaluation split; the latest if none was evaluated), "latest", or a step.
            Instead of a best or latest one that is damaged, the next whole one is taken, and that is said on stderr.
        tell: say on stderr which step it is.

    Raises:
        UserError: no run there, no such checkpoint, a damaged one where a step was asked for, or one of another model.

    Example:
        >>> model = gx.load_model("runs/digits")
        >>> model(jnp.ones((1, 8, 8, 1))).logits.shape
        (1, 10)
    """
    model = empty_model(load_config(workdir).model)
    model.eval()
    check_not_narrow(workdir)
    graphdef, params, stats = split_model(model)
    if not has_checkpoint(Path(workdir)):
        raise UserError(f"{workdir} has no checkpoint yet; train with --workdir={quote(workdir)}")
    with Checkpoints(workdir) as checkpoints:
        step, params, stats = checkpoints.restore_model(checkpoint, params, stats)
    if tell and is_primary():
        print(f"Checkpoint {step} of {workdir}", file=sys.stderr, flush=True)
    return merge_model(graphdef, params, stats)
