"""The training loop, and only the loop."""

import contextlib
import itertools
import time
from pathlib import Path

import jax

from gaternet_jax.checkpoint import Checkpoints
from gaternet_jax.config import Config, validate
from gaternet_jax.data.batches import steps_per_epoch
from gaternet_jax.data.datasets import find_run_dataset
from gaternet_jax.data.record import check_same_dataset
from gaternet_jax.data.splits import open_split
from gaternet_jax.dispatch import StepLoop, choose_steps_per_call, stack_batches
from gaternet_jax.distributed import is_primary, primary_first, wait_for_all
from gaternet_jax.errors import NonFiniteError, UserError
from gaternet_jax.evaluate import describe, make_evaluation
from gaternet_jax.interrupt import interruptible
from gaternet_jax.losses import make_gate_loss
from gaternet_jax.metrics import LoopClock, MetricWriter, TrainMetrics
from gaternet_jax.models.build import build_model, count_parameters
from gaternet_jax.models.functional import split_model
from gaternet_jax.models.macs import MacCounter
from gaternet_jax.optimizer import describe_change, learning_rate_schedule, make_optimizer
from gaternet_jax.parallel import (
    debugs_nans,
    device_memory,
    make_mesh,
    replicate,
    replicated,
    require_jit,
    split_second_axis,
    stop_flags,
    this_process,
    to_devices,
)
from gaternet_jax.plan import make_plan
from gaternet_jax.pretrained import freeze_gater, initialize
from gaternet_jax.probe import Probe
from gaternet_jax.profiling import Profiler
from gaternet_jax.progress import progress_bar
from gaternet_jax.starts import StartRecord
from gaternet_jax.state import init_state
from gaternet_jax.step import make_train_step
from gaternet_jax.watchdog import Watchdog
from gaternet_jax.workdir import (
    check_place,
    check_workdir,
    has_checkpoint,
    in_use,
    load_config,
    load_dataset,
    mark_finished,
    mark_unfinished,
    save_config,
    save_dataset,
)


def train(
    config: Config, workdir: str | Path, *, stop_at: int | None = None, profile: tuple[int, int] | None = None
) -> dict:
    """Trains in a workdir, from its latest whole checkpoint if it has one.

    SIGINT, SIGTERM or SIGHUP, of any process, end it with a checkpoint: one process after its current dispatch (a step,
    unless train.steps_per_call says otherwise), several after the one at which all of them know.

    Args:
        config: the resolved config.
        workdir: a new or empty folder, or that of the same run; with several processes, one that all of them see.
        stop_at: end with a checkpoint after this step, as if the run were interrupted there.
        profile: steps to trace, see `Profiler`.

    Returns:
        step, the last one; whether the run is finished; and the metrics of an evaluation (see `make_evaluation`) if
        it ended with one, as a finished run does.

    Raises:
        UserError: config, data or workdir cannot be used, or a checkpoint not be written.
        NonFiniteError: loss, gradient or parameters became NaN or infinite; nothing of it was saved.
    """
    workdir = Path(workdir)
    require_jit("training")
    check_place(workdir, "--workdir")
    mesh = make_mesh()
    validate(config, mesh.size)
    known = load_dataset(workdir) if has_checkpoint(workdir) else None
    with primary_first("dataset"):
        config, builder, dataset = find_run_dataset(config, known)
    if known:
        check_same_dataset(known, dataset, training=True)
    check_workdir(workdir, config)
    model = build_model(config.model, config.seed)
    freeze_gater(model, config.optimizer.gater_rate)
    macs = MacCounter(model, config.data.image_size)
    gate_loss = make_gate_loss(config.loss, model.gate_sites, macs)
    wait_for_all("workdir checked")
    with contextlib.ExitStack() as stack:
        if is_primary():
            stack.enter_context(in_use(workdir, config))
        interrupted = stack.enter_context(interruptible())
        record = StartRecord(workdir, config.train.epochs)
        parameters, gates = count_parameters(model), sum(site.size for site in model.gate_sites)
        print(f"{parameters:,} parameters, {gates:,} gates", flush=True)
        if not has_checkpoint(workdir):
            print("".join(f"{line}\n" for line in initialize(model, config, dataset.classes)), end="", flush=True)
        memory = device_memory(mesh)
        train_split = open_split(builder, config.data.train_split, config, this_process(), memory)
        eval_split = open_split(builder, config.data.eval_split, config, this_process(), memory)

        batch_size = config.train.batch_size
        epoch_steps = steps_per_epoch(train_split.num_images, batch_size)
        steps_per_call, room = choose_steps_per_call(config, train_split, mesh)
        plan = make_plan(config, epoch_steps, steps_per_call, stop_at=stop_at, profile=profile)

        schedule = learning_rate_schedule(config.optimizer, epoch_steps, plan.num_steps)
        optimizer = make_optimizer(config.optimizer, schedule)
        graphdef, params, stats = split_model(model)
        train_step = make_train_step(graphdef, optimizer, schedule, gate_loss, config)
        probe = Probe(model.gate_sites)
        evaluation = make_evaluation(model, macs, eval_split, config, mesh, probe.look)
        state = init_state(params, stats, optimizer, ema=config.train.ema_decay > 0)
        state = replicate(state, mesh)
        key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=replicated(mesh))()

        checkpoints = stack.enter_context(Checkpoints(workdir, config.checkpoint.keep_latest))
        window, evaluated = None, True
        if checkpoints.steps:
            state, window, evaluated = checkpoints.restore(state)
        done = int(state.step)
        if window:
            print(f"Going on from step {done} of {plan.num_steps} in {workdir}", flush=True)
            if change := describe_change(load_config(workdir), config, epoch_steps, done):
                print(f"  {change}", flush=True)
        if done > plan.num_steps:
            raise UserError(
                f"{workdir} has done {done} steps already; train.epochs={config.train.epochs} asks for less"
            )
        if is_primary():
            save_dataset(dataset, workdir)
            save_config(config, list(dataset.classes), workdir)
            if done < plan.num_steps:
                mark_unfinished(workdir)
        go_on, stop = stop_flags(mesh)
        resident = None if train_split.resident is None else replicate(train_split.resident, mesh)
        run_steps = StepLoop(train_step, mesh, room, resident)
        batches = train_split.train_batches(batch_size, config.seed, done)
        batches = to_devices(stack_batches(batches, plan.calls(done), room), split_second_axis(mesh))
        if done < plan.last_step:
            batches = _compile(run_steps, state, batches, go_on, key)

        writer = stack.enter_context(MetricWriter(workdir, resume_step=done, enabled=is_primary()))
        bar = stack.enter_context(progress_bar("Training", plan.num_steps, unit="step", initial=done))
        clock = LoopClock(done)

        def log(step: int, means: dict[str, float]) -> None:
            measured = clock.measure(step)
            speed = measured.pop("steps_per_second") * batch_size
            values = {"epoch": step / epoch_steps} | means | {"images_per_second": speed} | measured
            loss = f"loss {means['loss']:.3f}, " if "loss" in means else ""
            with clock.spent("host"):  # not "step", where the means were waited for
                writer.write(step, "train", values)
                bar.set_postfix_str(f"{loss}{speed:,.0f} images/s", refresh=False)

        train_metrics = TrainMetrics(
            log, every=plan.log_every, last_step=plan.num_steps, max_skipped=config.train.max_skipped_steps
        )
        if window:
            train_metrics.window = window
        stack.enter_context(_explain_non_finite(checkpoints, workdir))
        watchdog = stack.enter_context(Watchdog(config.data.stall_seconds))
        profiler = stack.enter_context(Profiler(workdir, profile))

        def save(step: int, *, evaluate: bool, overwrite: bool = False) -> dict | None:
            """Evaluates, if asked to, and saves; None from an evaluation that was interrupted."""
            with clock.spent("step"):
                train_metrics.wait()  # raises before anything that came of a NaN is saved
            with clock.paused():
                metrics = evaluation(state.eval_params, state.stats, interrupted) if evaluate else None
            if metrics:
                epoch = step / epoch_steps
                writer.write(step, "eval", {"epoch": epoch} | metrics)
                bar.write(f"epoch {epoch:6.1f}  step {step:7d}  {describe(metrics)}")
            checkpoints.save(state, window=train_metrics.window, metrics=metrics, overwrite=overwrite)
            record.saved(step)
            if metrics:
                probe.write(writer, step)  # last: its thread would compete with the copying of the state
            return metrics

        step, eval_metrics, ended = done, None, False
        if done and not evaluated and plan.evaluates_after(done):  # interrupted in its evaluation
            eval_metrics = save(done, evaluate=True, overwrite=True)
            ended = eval_metrics is None
        for count in () if ended else plan.calls(done):
            profiler.after(step)
            watchdog.begin()
            with clock.spent("input"):
                batch = next(batches)
            watchdog.finish()
            with clock.spent("step"):
                state, metrics = run_steps(state, batch, stop if interrupted() else go_on, count, key)
                train_metrics.add(range(step + 1, step + count + 1), metrics)
                step += count
            bar.update(count)
            asked = train_metrics.stop or (jax.process_count() == 1 and interrupted())
            evaluate_now = not asked and plan.evaluates_after(step)
            if asked or plan.saves_after(step):
                eval_metrics = save(step, evaluate=evaluate_now)
                ended = asked or (evaluate_now and eval_metrics is None)
            if ended:
                break
        if eval_metrics is None and step == plan.num_steps and not ended:  # it was finished before
            eval_metrics = evaluation(state.eval_params, state.stats)
    finished = step == plan.num_steps and eval_metrics is not None
    if finished and is_primary():  # the last checkpoint is written by now
        mark_finished(workdir, step)
    return (eval_metrics or {}) | {"step": step, "finished": finished}


def _compile(run_steps: StepLoop, state, batches, stop, key):
    """Compiles ahead of the loop, so that the first steps' speed is that of steps."""
    if debugs_nans():
        return batches  # JAX finds the operation that made a NaN only in what it compiles itself
    print("Compiling the training step ...", flush=True)
    start = time.perf_counter()
    first = next(batches)
    run_steps.compile(state, first, stop, key)
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
