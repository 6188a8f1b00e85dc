"""What all command lines have in common: how they end, and that they can print any name.

Exit code: 0 done; 1 a crash, which a restart may mend; 2 an error that it cannot: every mistake in flags, configs and
files, told in a sentence.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import NoReturn

from gaternet_jax.errors import UserError


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """Ends the program with exit code 2 and a sentence where what is done in this context raises a `UserError`.

    What the terminal cannot print of a name is printed as an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        refuse(str(error))
    except (RuntimeError, AssertionError):
        if explained := explain_missing_backend():
            refuse(explained)
        raise


def refuse(message: str) -> NoReturn:
    """Ends the program with exit code 2 and a message."""
    message = f"error: {message}"
    print(message, file=sys.stderr, flush=True)
    ending = SystemExit(message)  # the message is for callers: with a code that is a number, Python prints nothing
    ending.code = 2
    raise ending from None


def explain_missing_backend() -> str:
    """What to do where JAX finds no device of the kind that was asked for; "" where it finds one.

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
