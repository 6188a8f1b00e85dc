"""Files that are there whole or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path, suffix: str = ".part") -> Iterator[Path]:
    """Gives a path to write to, whose file gets its name when the context is left without an error.

    A crash leaves the old file or the new one, never a part.

    Args:
        path: of the file.
        suffix: added to its name meanwhile; one of its own for each of several processes that may write it at once.
    """
    part = path.with_name(path.name + suffix)
    try:
        yield part
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_file(path: Path, text: str) -> None:
    """Writes a text so that a crash leaves the old file or the new one; names of files in it need not be UTF-8."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="surrogateescape")
