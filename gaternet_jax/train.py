"""The training loop, and only the loop."""

import contextlib
import itertools
import time
from pathlib import Path

import jax
import numpy as np

from gaternet_jax.checkpoint import Checkpoints
from gaternet_jax.config import Config, validate
from gaternet_jax.data import memory
from gaternet_jax.data.datasets import class_names, find_dataset
from gaternet_jax.errors import UserError
from gaternet_jax.evaluate import describe, make_evaluation
from gaternet_jax.metrics import MetricWriter, NonFiniteError, Throughput, TrainMetrics
from gaternet_jax.models.registry import build_model
from gaternet_jax.optimizer import learning_rate_schedule, make_optimizer
from gaternet_jax.parallel import make_mesh, replicated, to_devices
from gaternet_jax.progress import progress_bar
from gaternet_jax.state import init_state, split_model
from gaternet_jax.step import make_train_step
from gaternet_jax.workdir import check_workdir, save_config


def train(config: Config, workdir: str | Path, *, stop_at: int | None = None) -> dict:
    """Trains in a workdir, from its latest checkpoint if it has one.

    Args:
        config: the resolved config.
        workdir: a new or empty folder, or that of the same run.
        stop_at: end with a checkpoint after this step, as if the run were interrupted there.

    Returns:
        The metrics at the end (see `make_evaluation`), and step.

    Raises:
        UserError: config, data or workdir cannot be used.
        NonFiniteError: loss or gradient became NaN or infinite; nothing of it was saved.
    """
    workdir = Path(workdir)
    mesh = make_mesh()
    validate(config, mesh.size)
    check_workdir(workdir, config)
    model = build_model(config.model, config.seed)
    builder = find_dataset(config.data.name, config.data.data_dir)
    labels = class_names(builder)
    if len(labels) != config.model.num_classes:
        raise UserError(
            f"dataset '{config.data.name}' has {len(labels)} classes, "
            f"but config.model.num_classes={config.model.num_classes}"
        )
    train_split = memory.load_split(builder, config.data.train_split, config)
    eval_split = memory.load_split(builder, config.data.eval_split, config)

    batch_size, log_every = config.train.batch_size, config.train.log_every_steps
    steps_per_epoch = memory.steps_per_epoch(len(train_split.labels), batch_size)
    num_steps = max(round(config.train.epochs * steps_per_epoch), 1)
    last_step = min(num_steps, stop_at or num_steps)
    eval_every = max(round(config.train.eval_every_epochs * steps_per_epoch), 1)
    save_every = config.checkpoint.every_steps or num_steps

    schedule = learning_rate_schedule(config.optimizer, steps_per_epoch, num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    graphdef, params, stats = split_model(model)
    train_step = make_train_step(graphdef, optimizer, config, mesh)
    evaluation = make_evaluation(model, eval_split, config, mesh)
    state, key = jax.device_put((init_state(params, stats, optimizer), jax.random.key(config.seed)), replicated(mesh))
    save_config(config, labels, workdir)
    with Checkpoints(workdir, config.checkpoint.keep_latest) as checkpoints:
        train_metrics, eval_metrics = TrainMetrics(), None
        if checkpoints.latest is not None:
            state, train_metrics.window = checkpoints.restore(state)
            print(f"Going on from step {checkpoints.latest} of {num_steps} in {workdir}", flush=True)
        done = int(state.step)
        batches = to_devices(memory.train_batches(train_split, batch_size, config.seed, done), mesh)
        if done < last_step:
            train_step, batches = _compile(train_step, state, batches, key)

        with (
            MetricWriter(workdir, resume_step=done) as writer,
            progress_bar("Training", num_steps, unit="step", initial=done) as bar,
            _explain_non_finite(checkpoints, workdir),
        ):
            throughput = Throughput()
            for step in range(done + 1, last_step + 1):
                state, metrics = train_step(state, next(batches), key)
                train_metrics.add(step, metrics)
                throughput.add(batch_size)
                bar.update()

                position = {"epoch": step / steps_per_epoch}
                if step % log_every == 0 or step == num_steps:
                    values = train_metrics.mean() | {"images_per_second": throughput.measure()}
                    values["learning_rate"] = float(np.asarray(schedule(step - 1)))
                    writer.write(step, "train", position | values)
                    speed = f"{values['images_per_second']:,.0f} images/s"
                    bar.set_postfix_str(f"loss {values['loss']:.3f}, {speed}", refresh=False)

                evaluate_now = step % eval_every == 0 or step == num_steps
                if evaluate_now or step % save_every == 0 or step == last_step:
                    with throughput.paused():
                        train_metrics.wait()  # raises before anything that came of a NaN is saved
                        eval_metrics = evaluation(state.params, state.stats) if evaluate_now else None
                        if eval_metrics:
                            writer.write(step, "eval", position | eval_metrics)
                            bar.write(f"epoch {position['epoch']:6.1f}  step {step:7d}  {describe(eval_metrics)}")
                        checkpoints.save(state, window=train_metrics.window, metrics=eval_metrics)
    return (eval_metrics or evaluation(state.params, state.stats)) | {"step": int(state.step)}


@contextlib.contextmanager
def _explain_non_finite(checkpoints: Checkpoints, workdir: Path):
    try:
        yield
    except NonFiniteError as error:
        kept = f"the last good checkpoint is step {checkpoints.latest}" if checkpoints.steps else "no checkpoint yet"
        raise NonFiniteError(
            f"training stopped: {error} ({kept}, in {workdir}). Start again in another --workdir with a lower "
            "--config.optimizer.learning_rate or a longer --config.optimizer.warmup_epochs"
        ) from None


def _compile(train_step, state, batches, key):
    """Compiles ahead of the loop, so that the first steps' speed is that of steps."""
    print("Compiling the training step ...", flush=True)
    start = time.perf_counter()
    first = next(batches)
    compiled = train_step.lower(state, first, key).compile()
    print(f"Compiled in {time.perf_counter() - start:.1f} s", flush=True)
    return compiled, itertools.chain([first], batches)
