"""Several processes as one program, by JAX's distributed runtime."""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from gaternet_jax.errors import UserError

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
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except ValueError as error:
        if any(value is not None for value in given):
            raise UserError(f"the processes cannot be joined at --coordinator={coordinator}: {error}") from None
        # No cluster was detected: one process.
    except RuntimeError as error:
        raise UserError(f"the processes of this run cannot be joined: {error}") from None


def is_primary() -> bool:
    """Whether this process writes what is written once: logs, config, progress."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def primary_first(name: str) -> Iterator[None]:
    """The first process enters before the others do, e.g. to prepare what they find then."""
    if not is_primary():
        wait_for_all(name)
    yield
    if is_primary():
        wait_for_all(name)
