"""Exact evaluation over a split: every image once, whatever the batch size and the number of devices."""

import itertools
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gaternet_jax.config import INITIAL_ONLY, MAY_OVERRIDE, RunConfig, flatten
from gaternet_jax.data.batches import Split
from gaternet_jax.data.splits import open_run_split
from gaternet_jax.errors import UserError
from gaternet_jax.models.functional import Tree, split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.signals import Interrupted
from gaternet_jax.training import checkpoint
from gaternet_jax.training.mesh import (
    device_memory,
    make_mesh,
    replicate,
    split_by_batch,
    stop_flags,
    this_process,
    to_devices,
)
from gaternet_jax.training.step import make_eval_step, with_images
from gaternet_jax.validation import for_evaluation
from gaternet_jax.workdir import load_config, load_dataset

HARDLY_ANY = 0.01  # of the gates; assumed
LAG = 2  # steps that are started before the sums of one are fetched
DECIDING = ("data.name", "data.image_size", "data.resize", "data.eval_crop", "data.mean", "data.std")  # and model.*
FROM_DATASET = ("data.name", "model.num_classes")


class Evaluator:
    """Evaluates parameters of a model on a split.

    Args:
        model: gives the structure; it is left in evaluation mode.
        macs: of the model.
        split: the images.
        config: the whole config of the run.
        mesh: the devices.
        look: is shown the first batch of every evaluation, and its gates, bool [B, G].
    """

    def __init__(
        self,
        model: GaterNet,
        macs: MacCounter,
        split: Split,
        config: RunConfig,
        mesh: Mesh,
        look: Callable[[dict[str, jax.Array], jax.Array], None] = lambda batch, gates: None,
    ):
        model.eval()
        graphdef, _, _ = split_model(model)
        self._split, self._mesh, self._look = split, mesh, look
        self._batch_size = config.train.eval_batch_size
        self._step = make_eval_step(graphdef, macs, config, mesh)
        self._resident = None if split.resident is None else replicate(split.resident, mesh)
        self._images_of = jax.jit(with_images)

    def run(self, params: Tree, stats: Tree, asked: Callable[[], bool] = lambda: False) -> dict:
        """Evaluates every image of the split, once.

        Args:
            params: parameters, on the devices.
            stats: BatchNorm statistics, likewise.
            asked: whether an end is asked for, in this process.

        Returns:
            images (their number); left_out, those that cannot be read or have no label, if any; loss (cross-entropy,
            nats); top1 and top5, fractions; and for a model with gates gates_on, the mean fraction of open gates,
            gates_input_dependent, the fraction of gates that are open for some images and closed for others,
            gates_always_on, of those open for all images, and macs, the mean multiply-accumulates of the backbone with
            the open filters relative to the dense backbone.

        Raises:
            Interrupted: an end was asked for, in any process; all of them give up together.
            UserError: no image can be used.
            RuntimeError: the images counted are not those of the split: a defect, not the user's doing.
        """
        total, pending = None, deque()
        go_on, stop = stop_flags(self._mesh)
        batches = to_devices(self._split.eval_batches(self._batch_size), split_by_batch(self._mesh))
        for number, batch in enumerate(itertools.chain(batches, [None] * LAG)):
            if batch is None:
                pending.append(None)
            else:
                flag = {"stop": stop if asked() else go_on}
                sums, gates = self._step(params, stats, batch | flag, self._resident)
                pending.append(sums)  # fetched late, so that devices never wait
                if number == 0:
                    self._look(self._images_of(batch, self._resident), gates)
            if len(pending) > LAG and (sums := jax.device_get(pending.popleft())):
                if sums.pop("stop"):
                    raise Interrupted
                total = jax.tree.map(
                    lambda part, so_far=0: np.float64(part) + so_far, sums, *([total] if total else [])
                )
        assert total is not None
        return _means(total, self._split)


def _means(total: dict, split: Split) -> dict:
    """Computes the metrics of a split from sums over its images."""
    images, left_out = int(total["images"]), int(total["left_out"])
    if images + left_out != split.num_images:
        raise RuntimeError(f"evaluation counted {images} + {left_out} images of {split.num_images}")
    if not images:
        raise UserError(f"no image of {split.name} can be used: none can be read and has a label")
    metrics = {"images": images} | ({"left_out": left_out} if left_out else {})
    metrics |= {name: float(total[name] / images) for name in ("loss", "top1", "top5")}
    open_rate = total["open_per_gate"] / images
    if open_rate.size:
        metrics["gates_on"] = float(open_rate.mean())
        metrics["gates_input_dependent"] = float(((open_rate > 0) & (open_rate < 1)).mean())
        metrics["gates_always_on"] = float((open_rate == 1).mean())
        metrics["macs"] = float(total["macs"] / images)
    return metrics


def evaluate(workdir: str | Path, overrides: dict[str, Any] | None = None) -> dict:
    """Evaluates the best checkpoint of a workdir on its evaluation split.

    Args:
        workdir: of a training run or a conversion.
        overrides: values for fields of its config, e.g. {"data.eval_split": "train"}; others than the run's only for
            those in MAY_OVERRIDE.

    Returns:
        Metrics as of `Evaluator.run`; the same on any number of devices.

    Raises:
        UserError: no checkpoint there, its dataset is not prepared, or a field that evaluation cannot change.
    """
    overrides = overrides or {}
    config = load_config(workdir)
    saved = dict(flatten(config))
    config.update_from_flattened_dict(overrides)
    changed = {field for field, value in flatten(config) if value != saved[field]}
    refused = sorted(changed - set(MAY_OVERRIDE))
    if refused:
        raise UserError(f"evaluation cannot change {', '.join(refused)}; it can change {', '.join(MAY_OVERRIDE)}")
    mesh = make_mesh()
    config = for_evaluation(config, mesh.size)
    model = checkpoint.load_model(workdir, tell=True)
    split = open_run_split(load_dataset(workdir), config, config.data.eval_split, this_process(), device_memory(mesh))
    _, params, stats = split_model(model)
    params, stats = replicate((params, stats), mesh)
    macs = MacCounter(model, config.data.image_size)
    return Evaluator(model, macs, split, config, mesh).run(params, stats)


def note_on_gates(gates_on: float, input_dependent: float) -> str:
    """Says what is wrong with gates that hardly depend on the image, and what to change; "" where they do.

    Args:
        gates_on: mean fraction of open gates.
        input_dependent: fraction of gates that are open for some images and closed for others.
    """
    if input_dependent >= HARDLY_ANY:
        return ""
    share = "no gate depends" if not input_dependent else f"only {input_dependent:.2%} of the gates depend"
    if gates_on > 1 - HARDLY_ANY:
        return f"{share} on the image: all are open, as in a plain network; a larger loss.gate_weight closes some"
    if gates_on < HARDLY_ANY:
        return (
            f"{share} on the image: all are closed; a smaller loss.gate_weight or a larger loss.gate_target opens some"
        )
    return f"{share} on the image: every image runs through the same filters; change loss.gate_weight or the gater"


def check_fits(workdir: str | Path, given: RunConfig, overrides: Collection[str] = ()) -> None:
    """Checks that a config describes the model and the images of a run, in all that evaluation depends on.

    Args:
        workdir: of the run.
        given: a whole config; what it leaves to the dataset ("" and 0) fits any run.
        overrides: fields that are not looked at, because `evaluate` gets them.

    Raises:
        UserError: naming the fields that differ.
    """
    saved = dict(flatten(load_config(workdir)))
    differing = [
        f"{field}: {saved.get(field, '(absent)')} in the run, {value} given"
        for field, value in flatten(given)
        if (field.startswith("model.") or field in DECIDING)
        and not (field in overrides or (field in FROM_DATASET and not value) or field in INITIAL_ONLY)
        and saved.get(field) != value
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run with another config:\n  " + "\n  ".join(differing) + "\nGive the --config of the "
            "run, with the same variant and fields; or none: --workdir alone says what to evaluate"
        )


def describe(metrics: dict) -> str:
    """Describes metrics in one line, for people."""
    parts = [f"loss {metrics['loss']:.3f}", f"top-1 {metrics['top1']:.2%}", f"top-5 {metrics['top5']:.2%}"]
    if "gates_on" in metrics:
        parts.append(f"open gates {metrics['gates_on']:.1%}")
        parts.append(f"input-dependent gates {metrics['gates_input_dependent']:.1%}")
        parts.append(f"MACs {metrics['macs']:.1%} of dense")
    return ", ".join(parts)
