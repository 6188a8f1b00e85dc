"""Progress bars."""

import sys

from tqdm import tqdm


def progress_bar(title: str, total: int, *, unit: str, initial: int = 0) -> tqdm:
    """A bar with speed and time left: live on a terminal, a line now and then in a log file."""
    live = sys.stderr.isatty()
    return tqdm(
        desc=title,
        total=total,
        initial=initial,
        unit=unit,
        dynamic_ncols=live,
        ascii=not live,
        mininterval=0.1 if live else 20.0,
        maxinterval=10.0 if live else 60.0,
    )
