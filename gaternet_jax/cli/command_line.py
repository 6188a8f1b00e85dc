"""What all command lines have in common: how they end, and that they can print any name.

Exit code: 0 done; 1 a crash, which a restart may mend; 2 an error that it cannot: every mistake in flags, configs and
files, told in a sentence; 130 after Ctrl-C. Nothing else in this project chooses one.
"""

import argparse
import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import NoReturn

from gaternet_jax.errors import NonFiniteError, UserError

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # by the system, until someone mends it


@contextlib.contextmanager
def command_line(interrupted: str = "Interrupted.") -> Iterator[None]:
    """Ends the program with an exit code and a sentence where what is done in this context raises an error.

    What the terminal cannot print of a name is printed as an escape.

    Args:
        interrupted: what to say after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        end_if_nobody_reads()
        raise
    except (UserError, NonFiniteError, FloatingPointError) as error:
        end(2, f"error: {error}")
    except KeyboardInterrupt:
        end(130, f"\n{interrupted}")
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        where = f"{error.filename}: " if error.filename else ""
        end(2, f"error: {where}{error.strerror}; mend that, and the same command works, or choose another place")
    except (RuntimeError, AssertionError) as error:
        if explained := explain_missing_backend():
            end(2, f"error: {explained}")
        if explained := explain_lost_processes(error):
            end(1, f"error: {explained}")
        raise


def end_if_nobody_reads() -> None:
    """Ends the program without a word where standard output leads nowhere any more, as in `gaternet models | head`."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it ends
        sys.exit(1)


def end(code: int, message: str) -> NoReturn:
    """Ends the program with an exit code and a message."""
    print(message, file=sys.stderr, flush=True)
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        os._exit(code)  # an orderly end would wait for the other processes
    ending = SystemExit(message)  # the message is for callers: with a code that is a number, Python prints nothing
    ending.code = code
    raise ending from None


def positive(text: str) -> int:
    """Parses an argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def explain_missing_backend() -> str:
    """Says what to do where JAX finds no device of the kind that was asked for; "" where it finds one.

    To be asked after an error: JAX's own is an assertion, or names a backend, or comes from a plugin.
    """
    import jax

    try:
        jax.devices()
    except Exception as error:
        settings: object = jax.config  # its fields are made at run time
        platforms, reason = getattr(settings, "jax_platforms", None), str(error).partition("\n")[0]
        asked = f"JAX_PLATFORMS={platforms}, but JAX finds no such device" if platforms else "JAX finds no device"
        found = f" ({reason})" if reason else ""
        return f"{asked}{found}; look at the driver and at the installed JAX (jax[cuda13], jax[tpu]), or unset it"
    return ""


def explain_lost_processes(error: Exception) -> str:
    """Says what to do where an error is that of a process which cannot reach the others; "" of any other."""
    import jax

    if not isinstance(error, jax.errors.JaxRuntimeError) or jax.process_count() == 1:
        return ""
    return f"process {jax.process_index()} lost the others: {error}\nStart all of them again to go on."
