"""Several processes as one program, by JAX's distributed runtime."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from gaternet_jax.errors import UserError

PATIENCE_SECONDS = 5  # so long a wait for other processes goes without a word
ALONE = "--coordinator=localhost:12345 --num_processes=1 --process_id=0"
HEARTBEAT_SECONDS = 60  # a process that is not heard of for so long is given up, and with it the run


def initialize(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the processes of a run; call it before anything touches a device.

    Without arguments, JAX detects Cloud TPU, SLURM, Open MPI and Kubernetes; a process in none of these is alone.

    Args:
        coordinator: HOST:PORT of process 0.
        num_processes: how many there are.
        process_id: which of them this is, from 0.

    Raises:
        UserError: only some of the arguments are given, or values that cannot be, or the others do not come.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if None in given:
            raise UserError("--coordinator, --num_processes and --process_id belong together: give all three or none")
        assert num_processes is not None and process_id is not None
        if not 0 <= process_id < num_processes:
            raise UserError(
                f"--process_id={process_id} must be at least 0 and less than --num_processes={num_processes}"
            )
    # Signals are this program's: train.py ends all processes at the same step, whichever of them got one.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _said_when_late(_whom_it_waits_for(num_processes, process_id)):
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                cluster_detection_method="deactivate" if num_processes == 1 else None,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
    except RuntimeError as error:
        raise UserError(f"the processes of this run cannot be joined: {error}") from None
    except Exception as error:  # of JAX, of Kubernetes' client, and of what reads a cluster's variables
        if isinstance(error, ValueError) and any(value is not None for value in given):
            raise UserError(f"the processes cannot be joined at --coordinator={coordinator}: {error}") from None
        if isinstance(error, ValueError) and str(error).startswith("coordinator_address"):
            return  # no cluster was detected: one process
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"JAX takes this machine for a part of a cluster, of which it cannot read more ({reason}). Mend that, or "
            f"run this one process alone: {ALONE}"
        ) from None


def _whom_it_waits_for(num_processes: int | None, process_id: int | None) -> str:
    """Says which other processes there have to be, as far as flags and SLURM's variables tell; "" for none."""
    if num_processes is not None:
        count, mine, whose = num_processes, process_id, "--num_processes"
    elif "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_NTASKS", "").isdigit():
        count, mine = int(os.environ["SLURM_NTASKS"]), os.environ.get("SLURM_PROCID")
        whose = f"SLURM_NTASKS of job {os.environ['SLURM_JOB_ID']}"
    else:
        return "the other processes of this run"
    if count < 2:
        return ""
    others = "process 0" if str(mine) != "0" else f"the other {count - 1}"
    return f"{others} of {count} processes ({whose}; this is process {mine})"


@contextlib.contextmanager
def _said_when_late(whom: str) -> Iterator[None]:
    """Says whom a wait is for, where it lasts."""
    text = f"Waiting for {whom}. Start them too, or run this one process alone: {ALONE}"
    timer = threading.Timer(PATIENCE_SECONDS, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    if whom:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_primary() -> bool:
    """Tells whether this process writes what is written once: logs, config, progress."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def primary_first(name: str) -> Iterator[None]:
    """Lets the first process enter before the others do, e.g. to prepare what they find then."""
    if not is_primary():
        wait_for_all(name)
    yield
    if is_primary():
        wait_for_all(name)
