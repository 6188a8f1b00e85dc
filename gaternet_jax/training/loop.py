"""The training loop, and only the loop."""

import contextlib
from pathlib import Path

from gaternet_jax.config import RunConfig
from gaternet_jax.signals import Interrupted
from gaternet_jax.training.mesh import make_mesh, require_jit
from gaternet_jax.training.processes import is_primary
from gaternet_jax.training.session import Session
from gaternet_jax.training.setup import open_session
from gaternet_jax.validation import validate
from gaternet_jax.workdir import check_place, mark_finished


def train(
    config: RunConfig, workdir: str | Path, *, stop_at: int | None = None, profile: tuple[int, int] | None = None
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
        step, the last one; whether the run is finished; and the metrics of an evaluation (see `Evaluator.run`) if
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
    with contextlib.ExitStack() as stack:
        session = open_session(stack, config, workdir, mesh, stop_at=stop_at, profile=profile)
        try:
            metrics = run_steps(session)
        except Interrupted:
            return {"step": session.step, "finished": False}
    finished = session.step == session.plan.num_steps  # and the last checkpoint is written by now
    if finished and is_primary():
        mark_finished(workdir, session.step)
    return metrics | {"step": session.step, "finished": finished}


def run_steps(session: Session) -> dict:
    """Trains from the session's step to its last one, evaluates and saves.

    Returns:
        The metrics of the evaluation after the last step; none if there is none.

    Raises:
        Interrupted: an end was asked for; all that was done is saved.
    """
    plan, metrics = session.plan, {}
    if session.evaluation_is_due:
        metrics = session.evaluate(overwrite=True)
    for count in plan.calls(session.step):
        metrics = {}
        session.advance(count)
        if session.end_was_asked:
            session.save()
            raise Interrupted
        if plan.evaluates_after(session.step):
            metrics = session.evaluate()
        elif plan.saves_after(session.step):
            session.save()
    if not metrics and session.step == plan.num_steps:  # it was finished before
        metrics = session.evaluator.run(session.state.eval_params, session.state.stats)
    return metrics
