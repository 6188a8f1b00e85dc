"""Progress bars."""

import sys
from typing import Any

from tqdm import tqdm

_silent = False


class _Lines:
    """Writes each state of a bar as a line of its own, for log files."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n "):
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


def silence() -> None:
    """Shows no bars from here on: another process shows them."""
    global _silent
    _silent = True


def progress_bar(title: str, total: int, *, unit: str, initial: int = 0) -> tqdm:
    """Shows a bar with speed and time left: live on a terminal and in a notebook, a line now and then in a log file."""
    common: Any = dict(desc=title, total=total, initial=initial, unit=unit, disable=_silent)
    if sys.stderr.isatty():
        return tqdm(**common, dynamic_ncols=True)
    if type(sys.stderr).__module__.startswith("ipykernel"):  # a notebook's: no terminal, but "\r" goes back in the line
        return tqdm(**common, ascii=True, ncols=100)
    lines: Any = _Lines()
    return tqdm(**common, file=lines, ascii=True, ncols=100, mininterval=15.0, maxinterval=15.0)
