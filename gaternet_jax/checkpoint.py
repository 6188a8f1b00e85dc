"""Checkpoints of a workdir (Orbax): the latest few and the best, saved in the background.

    workdir/checkpoints/STEP/  "model" (params, or their moving average; stats) and "training"
    workdir/damaged/           checkpoints that could not be read when a run was resumed

A converted checkpoint has the same form without "training". A run that is killed goes on from the last checkpoint that
was finished; up to two later ones (`checkpoint_writer.IN_FLIGHT`) may have been on their way.
"""

import copy
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import jax
from orbax.checkpoint import v1 as ocp

from gaternet_jax.checkpoint_writer import BEST_METRIC, CheckpointWriter, checksum
from gaternet_jax.distributed import is_primary, wait_for_all
from gaternet_jax.errors import UserError
from gaternet_jax.inference.narrow import narrow_model
from gaternet_jax.inference.selection import from_json
from gaternet_jax.models.build import empty_model
from gaternet_jax.models.functional import Tree, merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.state import TrainState
from gaternet_jax.workdir import load_compaction, load_config


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
        workdir: folder of the run.
        keep_latest: how many of the latest are kept; the one with the best top-1 is kept besides.
    """

    def __init__(self, workdir: str | Path, keep_latest: int = 1):
        self._folder, self._keep_latest = Path(workdir).absolute() / "checkpoints", keep_latest
        self._writer: CheckpointWriter | None = None  # opened by the first save: reading changes nothing

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending."""
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the best top-1 among those evaluated (the later of equals), else the latest."""
        found = {step: self._metadata(step).get("metrics") for step in self.steps if self._can_be_listed(step)}
        evaluated = [(metrics[BEST_METRIC], step) for step, metrics in found.items() if metrics]
        return max(evaluated)[1] if evaluated else self.latest

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
        self._save(int(state.step), parts, metadata, metrics=metrics, overwrite=overwrite)

    def save_model(self, params: Tree, stats: Tree) -> None:
        """Saves a model without a training state, as step 0 (for converted checkpoints)."""
        self._save(0, {"model": {"params": params, "stats": stats}}, {})

    def _save(self, step: int, parts: dict, metadata: dict, **options: Any) -> None:
        if self._writer is None:
            self._set_aside([step for step in self.steps if not self._can_be_listed(step)])
            self._writer = CheckpointWriter(self._folder, self._keep_latest)
        self._writer.save(step, parts, metadata, **options)

    def restore(self, state: TrainState) -> tuple[TrainState, dict, bool]:
        """The latest whole checkpoint, placed on the devices as `state` is.

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
        step, restored = self._load_whole(reversed(self.steps), like)
        self._set_aside([damaged for damaged in self.steps if damaged > step])
        model, training = restored["model"], restored["training"]
        params, ema = (model["params"], None) if state.ema is None else (training["params"], model["params"])
        restored = TrainState(training["step"], params, model["stats"], training["opt_state"], ema)
        metadata = self._metadata(step)
        return restored, metadata["window"], metadata["metrics"] is not None

    def restore_model(self, step: int, params: Tree, stats: Tree) -> tuple[Tree, Tree]:
        """Parameters and statistics at a step, or, if that is damaged, at the latest that is whole; placed as given.

        Raises:
            UserError: no checkpoint is whole, or the checkpoint is of another model.
        """
        others = [other for other in reversed(self.steps) if other != step]
        _, restored = self._load_whole([step, *others], {"model": {"params": params, "stats": stats}})
        return restored["model"]["params"], restored["model"]["stats"]

    def _load_whole(self, steps: Iterable[int], like: dict) -> tuple[int, dict]:
        """The first of `steps` that is whole, and what it holds; those before it are named."""
        reasons = []
        for step in steps:
            try:
                return step, self._load(step, like)
            except UserError:  # it is of another model; the others are no better
                raise
            except Exception as error:  # whatever Orbax and TensorStore meet in broken files
                while error.__cause__ is not None:
                    error = error.__cause__
                reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
                reasons.append(f"checkpoint {step} in {self._folder} is damaged: {reason}")
                print(reasons[-1], file=sys.stderr, flush=True)
        raise UserError(
            "no checkpoint is whole:\n  " + "\n  ".join(reasons) + "\nNothing was deleted. Put one back from a "
            "copy, or begin anew in another --workdir"
        )

    def _load(self, step: int, like: dict) -> dict:
        if not self._can_be_listed(step):
            raise ValueError("its metadata cannot be read")
        self._check_shapes(step, like["model"])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        restored = ocp.load_checkpointables(self._path(step), abstract)
        checksums = self._metadata(step)["checksums"]
        changed = [name for name, part in restored.items() if checksum(part) != checksums[name]]
        if changed:
            raise ValueError(f"the contents of {' and '.join(changed)} do not match their checksums")
        return restored

    def _path(self, step: int) -> str:
        return str(self._folder / str(step))

    def _metadata(self, step: int) -> dict:
        metadata: Any = ocp.checkpointables_metadata(self._path(step)).custom_metadata
        return metadata

    def _can_be_listed(self, step: int) -> bool:
        try:
            return "checksums" in self._metadata(step)
        except Exception:  # whatever Orbax meets in broken files
            return False

    def _set_aside(self, steps: list[int]) -> None:
        if is_primary():
            for step in steps:
                aside = self._folder.parent / "damaged" / f"{step}-{time.strftime('%Y%m%d-%H%M%S')}"
                aside.parent.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(aside)
                print(f"Moved to {aside}", file=sys.stderr, flush=True)
        wait_for_all("damaged checkpoints are set aside")

    def _check_shapes(self, step: int, model: dict) -> None:
        """Orbax reports a wrong shape as a missing handler; say what is wrong instead."""
        saved = ocp.checkpointables_metadata(self._path(step)).metadata["model"]
        saved, wanted = _shapes(saved), _shapes(model)
        differing = [
            f"{path}: {saved.get(path, 'absent')} in the checkpoint, {wanted.get(path, 'absent')} in the model"
            for path in sorted(saved.keys() | wanted.keys())
            if saved.get(path) != wanted.get(path)
        ]
        if differing:
            more = f"\n  and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise UserError(
                f"checkpoint {step} in {self._folder} is of another model:\n  " + "\n  ".join(differing[:5]) + more
            )

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
    """What a resumed run needs besides the model; the raw parameters only where the model holds their average."""
    part = {"step": state.step, "opt_state": state.opt_state}
    return part if state.ema is None else part | {"params": state.params}


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    return {
        ".".join(str(getattr(key, "key", key)) for key in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def load_model(workdir: str | Path, checkpoint: Literal["best", "latest"] | int = "best") -> GaterNet:
    """Loads the model of a training run, of a conversion or of a compaction, in evaluation mode.

    Args:
        workdir: the --workdir of a run, or the --out of `tools.convert` or `tools.compact`.
        checkpoint: "best" (top-1 on the evaluation split; the latest if none was evaluated), "latest", or a step.

    Raises:
        UserError: no run there, no such checkpoint, or one of another model.
    """
    model = empty_model(load_config(workdir).model)
    model.eval()
    if (kept := load_compaction(workdir)) is not None:
        model = narrow_model(model, from_json(kept, model.gate_sites))
    graphdef, params, stats = split_model(model)
    if not (Path(workdir) / "checkpoints").is_dir():
        raise UserError(f"{workdir} has no checkpoint yet; train with --workdir={workdir}")
    with Checkpoints(workdir) as checkpoints:
        step: Any = checkpoint if isinstance(checkpoint, int) else getattr(checkpoints, checkpoint)
        if step not in checkpoints.steps:
            raise UserError(f"{workdir} has no checkpoint '{checkpoint}'; it has steps {checkpoints.steps}")
        return merge_model(graphdef, *checkpoints.restore_model(step, params, stats))
