"""An orderly end: the first SIGINT, SIGTERM or SIGHUP (a closed terminal) asks for it, a second SIGINT ends at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker


class Interrupted(Exception):
    """Leaves what is under way because an end was asked for."""


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells, in this context, whether an end was asked for.

    Signals are left alone outside the main thread, where Python cannot handle them, and SIGHUP where it is ignored, as
    by nohup.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(signum, frame):
        del frame
        if signum == signal.SIGHUP:
            _leave_terminal()
        if not asked.is_set():
            os.write(2, b"\nEnding in good order. Ctrl-C once more ends at once.\n")
        asked.set()
        if signum == signal.SIGINT:
            signal.signal(signum, before[signum])  # launchers send SIGTERM more than once; a second Ctrl-C is meant

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    try:
        for signum in before:
            signal.signal(signum, ask)
        yield asked.is_set
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def spared_children() -> Iterator[None]:
    """Starts processes in this context that get neither SIGINT nor SIGHUP, which a terminal sends to all of its own."""
    kept = (signal.SIGINT, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, kept)  # which children inherit from birth
    try:
        resource_tracker.ensure_running()  # itself a child, whose start lets SIGINT through again
        signal.pthread_sigmask(signal.SIG_BLOCK, kept)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_terminal() -> None:
    """Discards what would be written to a terminal that is gone, instead of raising an error before the save."""
    for stream in (1, 2):
        try:
            os.write(stream, b"\n")
        except OSError:
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  in a signal handler
                os.dup2(nowhere.fileno(), stream)
