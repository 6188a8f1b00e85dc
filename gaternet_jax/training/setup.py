"""Sets up what is trained: a config to a ready training step, and a run's folder to a session."""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import optax
from jax.sharding import Mesh

from gaternet_jax.config import RunConfig
from gaternet_jax.data.batches import steps_per_epoch
from gaternet_jax.data.datasets import find_run_dataset
from gaternet_jax.data.record import check_same_dataset
from gaternet_jax.data.splits import open_split
from gaternet_jax.errors import NonFiniteError, UserError
from gaternet_jax.models.build import build_model, count_parameters
from gaternet_jax.models.functional import split_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.progress import progress_bar
from gaternet_jax.signals import interruptible
from gaternet_jax.training.checkpoint import Checkpoints
from gaternet_jax.training.dispatch import StepLoop, choose_steps_per_call, stack_batches
from gaternet_jax.training.evaluate import Evaluator
from gaternet_jax.training.gate_summary import GateSummary
from gaternet_jax.training.mesh import (
    debugs_nans,
    device_memory,
    replicate,
    replicated,
    split_second_axis,
    stop_flags,
    this_process,
    to_devices,
)
from gaternet_jax.training.metrics import LoopClock, MetricWriter, TrainMetrics
from gaternet_jax.training.objective import make_gate_loss
from gaternet_jax.training.optimizer import describe_change, learning_rate_schedule, make_optimizer
from gaternet_jax.training.pretrained import freeze_gater, initialize
from gaternet_jax.training.processes import is_primary, primary_first, wait_for_all
from gaternet_jax.training.profiling import Profiler
from gaternet_jax.training.run_plan import make_plan
from gaternet_jax.training.session import Session, log_training
from gaternet_jax.training.starts import StartRecord
from gaternet_jax.training.state import TrainState, init_state
from gaternet_jax.training.step import Batch, Step, make_train_step
from gaternet_jax.training.watchdog import Watchdog
from gaternet_jax.workdir import (
    check_workdir,
    has_checkpoint,
    in_use,
    load_config,
    load_dataset,
    mark_unfinished,
    save_config,
    save_dataset,
)


@dataclasses.dataclass(frozen=True)
class Training:
    """Holds a network ready to be trained.

    Attributes:
        model: gives the structure; its arrays are those of `state`, which a step may overwrite.
        macs: of the model, at the size of its images.
        step: the training step, a pure function.
        state: before the first step.
    """

    model: GaterNet
    macs: MacCounter
    step: Step
    state: TrainState


def make_training(
    config: RunConfig, schedule: optax.Schedule, model: GaterNet | None = None, macs: MacCounter | None = None
) -> Training:
    """Makes all that training a network needs from the config of a run.

    Args:
        config: the whole config.
        schedule: the learning rate by step.
        model: of config.model, in training mode; None: a new one.
        macs: of the model; None: they are counted here.

    Raises:
        UserError: a model that cannot be, or a gate loss that it cannot have.
    """
    model = build_model(config.model, config.seed) if model is None else model
    macs = MacCounter(model, config.data.image_size) if macs is None else macs
    gate_loss = make_gate_loss(config.loss, model.gate_sites, macs)
    optimizer = make_optimizer(config.optimizer, schedule)
    graphdef, params, stats = split_model(model)
    step = make_train_step(graphdef, optimizer, schedule, gate_loss, config)
    return Training(model, macs, step, init_state(params, stats, optimizer, ema=config.train.ema_decay > 0))


def open_session(
    stack: contextlib.ExitStack,
    config: RunConfig,
    workdir: Path,
    mesh: Mesh,
    *,
    stop_at: int | None = None,
    profile: tuple[int, int] | None = None,
) -> Session:
    """Sets up one start of a run: data, model, folder, and the state of the latest checkpoint, if there is one.

    Args:
        stack: closes what is opened here.
        config: a valid config.
        workdir: of the run, see `train`.
        mesh: the devices.
        stop_at: see `train`.
        profile: see `train`.

    Raises:
        UserError: data or workdir cannot be used, or the model cannot be trained so.
    """
    known = load_dataset(workdir) if has_checkpoint(workdir) else None
    with primary_first("dataset"):
        config, builder, dataset = find_run_dataset(config, known)
    if known:
        check_same_dataset(known, dataset, training=True)
    check_workdir(workdir, config)
    model = build_model(config.model, config.seed)
    freeze_gater(model, config.optimizer.gater_rate)
    macs = MacCounter(model, config.data.image_size)
    make_gate_loss(config.loss, model.gate_sites, macs)  # refuses before data
    wait_for_all("workdir checked")
    if is_primary():
        stack.enter_context(in_use(workdir, config))
    interrupted = stack.enter_context(interruptible())
    record = StartRecord(workdir, config.train.epochs)
    gates = sum(site.size for site in model.gate_sites)
    print(f"{count_parameters(model):,} parameters, {gates:,} gates", flush=True)
    if not has_checkpoint(workdir):
        print("".join(f"{line}\n" for line in initialize(model, config, dataset.classes)), end="", flush=True)

    memory, batch_size = device_memory(mesh), config.train.batch_size
    train_split = open_split(builder, config.data.train_split, config, this_process(), memory)
    eval_split = open_split(builder, config.data.eval_split, config, this_process(), memory)
    epoch_steps = steps_per_epoch(train_split.num_images, batch_size)
    steps_per_call, room = choose_steps_per_call(config, train_split, mesh)
    plan = make_plan(config, epoch_steps, steps_per_call, stop_at=stop_at, profile=profile)

    schedule = learning_rate_schedule(config.optimizer, epoch_steps, plan.num_steps)
    training = make_training(config, schedule, model, macs)
    gate_summary = GateSummary(model.gate_sites)
    evaluator = Evaluator(model, training.macs, eval_split, config, mesh, gate_summary.look)
    checkpoints = stack.enter_context(Checkpoints(workdir, config.checkpoint.keep_latest))
    state, window, evaluated = replicate(training.state, mesh), None, True
    if checkpoints.steps:
        state, window, evaluated = checkpoints.restore(state)
    done = int(state.step)
    if window:
        print(f"Going on from step {done} of {plan.num_steps} in {workdir}", flush=True)
        if change := describe_change(load_config(workdir), config, epoch_steps, done):
            print(f"  {change}", flush=True)
    if done > plan.num_steps:
        raise UserError(f"{workdir} has done {done} steps already; train.epochs={config.train.epochs} asks for less")
    if is_primary():
        save_dataset(dataset, workdir)
        save_config(config, list(dataset.classes), workdir)
        if done < plan.num_steps:
            mark_unfinished(workdir)

    key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=replicated(mesh))()
    flags = stop_flags(mesh)
    resident = None if train_split.resident is None else replicate(train_split.resident, mesh)
    run_steps = StepLoop(training.step, mesh, room, resident)
    stacked = stack_batches(train_split.train_batches(batch_size, config.seed, done), plan.calls(done), room)
    batches = to_devices(stacked, split_second_axis(mesh))
    if done < plan.last_step:
        batches = compile_ahead(run_steps, state, batches, flags[0], key)
    writer = stack.enter_context(MetricWriter(workdir, resume_step=done, enabled=is_primary()))
    bar = stack.enter_context(progress_bar("Training", plan.num_steps, unit="step", initial=done))
    clock = LoopClock(done)
    metrics = TrainMetrics(
        functools.partial(log_training, writer, bar, clock, epoch_steps, batch_size),
        every=plan.log_every,
        last_step=plan.num_steps,
        max_skipped=config.train.max_skipped_steps,
    )
    if window:
        metrics.window = window
    stack.enter_context(_explain_non_finite(checkpoints, workdir))
    watchdog = stack.enter_context(Watchdog(config.data.stall_seconds))
    profiler = stack.enter_context(Profiler(workdir, profile))
    return Session(
        plan=plan,
        step=done,
        state=state,
        run_steps=run_steps,
        batches=batches,
        key=key,
        flags=flags,
        interrupted=interrupted,
        evaluator=evaluator,
        evaluation_is_due=done > 0 and not evaluated and plan.evaluates_after(done),
        checkpoints=checkpoints,
        epoch_steps=epoch_steps,
        metrics=metrics,
        writer=writer,
        bar=bar,
        clock=clock,
        record=record,
        gate_summary=gate_summary,
        watchdog=watchdog,
        profiler=profiler,
    )


def compile_ahead(
    run_steps: StepLoop, state: TrainState, batches: Iterator[Batch], flag: jax.Array, key: jax.Array
) -> Iterator[Batch]:
    """Compiles before the loop, so that the first steps' speed is that of steps; returns the batches, all of them."""
    if debugs_nans():
        return batches  # JAX finds the operation that made a NaN only in what it compiles itself
    print("Compiling the training step ...", flush=True)
    start = time.perf_counter()
    first = next(batches)
    run_steps.compile(state, first, flag, key)
    print(f"Compiled in {time.perf_counter() - start:.1f} s", flush=True)
    return itertools.chain([first], batches)


@contextlib.contextmanager
def _explain_non_finite(checkpoints: Checkpoints, workdir: Path):
    try:
        yield
    except NonFiniteError as error:
        checkpoints.close()  # the last one may still be being written
        kept = f"the last good checkpoint is step {checkpoints.latest}" if checkpoints.steps else "no checkpoint yet"
        raise NonFiniteError(
            f"training stopped: {error} ({kept}, in {workdir}). Start again in another --workdir with a lower "
            "--config.optimizer.learning_rate or a longer --config.optimizer.warmup_epochs"
            + (", or a smaller --config.loss.gate_weight" if "gate_loss" in str(error) else "")
        ) from None
