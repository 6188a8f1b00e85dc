"""An orderly end: the first SIGINT or SIGTERM asks for it, a second SIGINT ends at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """In this context, gives a function that tells whether an end was asked for.

    Signals are left alone outside the main thread, where Python cannot handle them.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(signum, frame):
        del frame
        asked.set()
        signal.signal(signum, before[signum])  # a second one has its usual effect

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        for signum in before:
            signal.signal(signum, ask)
        yield asked.is_set
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
