"""Reports where the input pipeline hangs."""

import faulthandler
import sys
import threading
import time


class Watchdog:
    """Watches waits for batches; `begin` and `finish` mark one.

    Args:
        seconds: a wait of so long is reported to stderr, once, with what every thread is doing.
    """

    def __init__(self, seconds: float):
        self._seconds, self._since, self._end = seconds, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def begin(self) -> None:
        """Marks the beginning of a wait."""
        self._since = time.monotonic()

    def finish(self) -> None:
        """Marks the end of a wait."""
        self._since = 0.0

    def _watch(self) -> None:
        reported = 0.0
        while not self._end.wait(min(self._seconds / 4, 5.0)):
            since = self._since
            if since and since != reported and time.monotonic() - since >= self._seconds:
                reported = since
                print(
                    f"No batch for {self._seconds:g} s (data.stall_seconds): the input pipeline hangs, or is far too "
                    "slow. What each thread is doing, innermost call first:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
