"""Progress bars."""

import sys
from typing import Any

from tqdm import tqdm


class _Lines:
    """Writes each state of a bar as a line of its own, for log files."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n "):
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(title: str, total: int, *, unit: str, initial: int = 0) -> tqdm:
    """A bar with speed and time left: live on a terminal, a line now and then in a log file."""
    common: Any = dict(desc=title, total=total, initial=initial, unit=unit)
    if sys.stderr.isatty():
        return tqdm(**common, dynamic_ncols=True)
    lines: Any = _Lines()
    return tqdm(**common, file=lines, ascii=True, ncols=100, mininterval=15.0, maxinterval=15.0)
