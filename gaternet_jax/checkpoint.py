"""Checkpoints of a workdir (Orbax): the latest few and the best, saved in the background.

    workdir/checkpoints/STEP/  "model" (params, or their moving average; stats) and "training"

A converted checkpoint has the same form without "training".
"""

import copy
from pathlib import Path
from typing import Any, Literal

import jax
from orbax.checkpoint import v1 as ocp

from gaternet_jax.errors import UserError
from gaternet_jax.models.build import build_model
from gaternet_jax.models.functional import Tree, merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.state import TrainState
from gaternet_jax.workdir import load_config

BEST_METRIC = "top1"


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
        workdir: folder of the run.
        keep_latest: how many of the latest are kept; the one with the best top-1 is kept besides.
    """

    def __init__(self, workdir: str | Path, keep_latest: int = 1):
        policies: Any = ocp.training.preservation_policies
        self._orbax = ocp.training.Checkpointer(
            str(Path(workdir).absolute() / "checkpoints"),
            save_decision_policy=_Always(),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep_latest),
                    policies.BestN(
                        n=1,
                        get_metric_fn=lambda metrics: metrics[BEST_METRIC],
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
        )

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint."""
        return self._orbax.latest.step if self._orbax.latest else None

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the best top-1 among those evaluated (the later of equals), else the latest."""
        evaluated: list[Any] = [c for c in self._orbax.checkpoints if c.metrics]
        best = max(evaluated, key=lambda c: (c.metrics[BEST_METRIC], c.step), default=None)
        return best.step if best else self.latest

    def save(self, state: TrainState, *, window: dict, metrics: dict | None = None) -> None:
        """Starts saving a state; returns once it is safe to change it.

        Args:
            state: what to save, at its own step.
            window: training metrics not yet written, from `TrainMetrics.window`.
            metrics: of an evaluation of this state.
        """
        step = int(state.step)
        self._orbax.save_checkpointables_async(
            step,
            {
                "model": {"params": state.eval_params, "stats": state.stats},
                "training": _training_part(state),
            },
            metrics=metrics,
            custom_metadata={"window": copy.deepcopy(window)},  # written later, in the background,
        )

    def save_model(self, params: Tree, stats: Tree) -> None:
        """Saves a model without a training state, as step 0 (for converted checkpoints)."""
        self._orbax.save_checkpointables(0, {"model": {"params": params, "stats": stats}})

    def restore(self, state: TrainState) -> tuple[TrainState, dict]:
        """The latest checkpoint, placed on the devices as `state` is, and its window of training metrics.

        Raises:
            UserError: the checkpoint is of another model.
        """
        assert self.latest is not None
        like = {
            "model": {"params": state.eval_params, "stats": state.stats},
            "training": _training_part(state),
        }
        restored = self._load(self.latest, like)
        model, training = restored["model"], restored["training"]
        params, ema = (model["params"], None) if state.ema is None else (training["params"], model["params"])
        restored = TrainState(training["step"], params, model["stats"], training["opt_state"], ema)
        metadata: Any = self._orbax.checkpointables_metadata(self.latest).custom_metadata
        return restored, metadata["window"]

    def restore_model(self, step: int, params: Tree, stats: Tree) -> tuple[Tree, Tree]:
        """Parameters and statistics at a step, placed as those given.

        Raises:
            UserError: the checkpoint is of another model.
        """
        model = self._load(step, {"model": {"params": params, "stats": stats}})["model"]
        return model["params"], model["stats"]

    def _load(self, step: int, like: dict) -> dict:
        self._check_shapes(step, like["model"])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        return self._orbax.load_checkpointables(step, abstract)

    def _check_shapes(self, step: int, model: dict) -> None:
        """Orbax reports a wrong shape as a missing handler; say what is wrong instead."""
        saved = self._orbax.checkpointables_metadata(step).metadata["model"]
        saved, wanted = _shapes(saved), _shapes(model)
        differing = [
            f"{path}: {saved.get(path, 'absent')} in the checkpoint, {wanted.get(path, 'absent')} in the model"
            for path in sorted(saved.keys() | wanted.keys())
            if saved.get(path) != wanted.get(path)
        ]
        if differing:
            more = f"\n  and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise UserError(
                f"checkpoint {step} in {self._orbax.directory} is of another model:\n  "
                + "\n  ".join(differing[:5])
                + more
            )

    def close(self) -> None:
        """Waits until everything is written."""
        self._orbax.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _training_part(state: TrainState) -> dict:
    """What a resumed run needs besides the model; the raw parameters only where the model holds their average."""
    part = {"step": state.step, "opt_state": state.opt_state}
    return part if state.ema is None else part | {"params": state.params}


class _Always:
    """The training loop decides when to save."""

    def should_save(self, step, previous_steps, *, context) -> bool:
        del step, previous_steps, context
        return True


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    return {
        ".".join(str(getattr(key, "key", key)) for key in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def load_model(workdir: str | Path, checkpoint: Literal["best", "latest"] | int = "best") -> GaterNet:
    """Loads the model of a training run or of a conversion, in evaluation mode.

    Args:
        workdir: the --workdir of a run, or the --out of `tools.convert`.
        checkpoint: "best" (top-1 on the evaluation split; the latest if none was evaluated), "latest", or a step.

    Raises:
        UserError: no run there, no such checkpoint, or one of another model.
    """
    model = build_model(load_config(workdir).model)
    model.eval()
    graphdef, params, stats = split_model(model)
    if not (Path(workdir) / "checkpoints").is_dir():
        raise UserError(f"{workdir} has no checkpoint yet; train with --workdir={workdir}")
    with Checkpoints(workdir) as checkpoints:
        step: Any = checkpoint if isinstance(checkpoint, int) else getattr(checkpoints, checkpoint)
        if step not in checkpoints.steps:
            raise UserError(f"{workdir} has no checkpoint '{checkpoint}'; it has steps {checkpoints.steps}")
        return merge_model(graphdef, *checkpoints.restore_model(step, params, stats))
