"""Files that are there whole or not at all, and folders that one process has to itself."""

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from gaternet_jax.errors import UserError


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


def write_file(path: Path, text: str, suffix: str = ".part") -> None:
    """Writes a text by `whole_file`; names of files in it need not be UTF-8."""
    with whole_file(path, suffix) as part:
        part.write_text(text, encoding="utf-8", errors="surrogateescape")


@contextlib.contextmanager
def locked(folder: Path, flag: str, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made; the system lets go of it, whatever ends this process.

    Args:
        folder: gets a file "lock" that says who holds it.
        flag: what chooses another folder, for messages.
        wait: until the other process lets go of it.

    Raises:
        UserError: another process holds it, unless that is waited for.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise UserError(f"{folder} is in use by {holder}; wait for its end, or choose another {flag}") from None
        except OSError as error:  # storage without locks
            print(
                f"{folder} cannot be locked ({error.strerror}): see to it that no other process works there",
                file=sys.stderr,
                flush=True,
            )
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield
