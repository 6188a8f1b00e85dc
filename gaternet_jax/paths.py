"""Folders as people write them."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from gaternet_jax.errors import UserError


def expand_home(path: str | Path) -> Path:
    """Replaces ~ or ~USER at the beginning of a path by that home folder.

    Raises:
        UserError: no home folder is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"no home folder is known, which '{path}' lies in; give the whole path, or set $HOME") from None


def quote(path: str | Path) -> str:
    """Writes a path as a shell takes it, for commands that people copy."""
    return shlex.quote(str(path))


def expand_arguments(argv: Sequence[str] | None = None) -> list[str]:
    """Gives a command's arguments with home folders in place of ~.

    Shells replace ~ where an argument begins with it, but not after the = of a flag.

    Args:
        argv: the arguments; None for those of the process.

    Raises:
        UserError: no home folder is known.
    """
    return [_expand_value(argument) for argument in (sys.argv[1:] if argv is None else argv)]


def _expand_value(argument: str) -> str:
    flag, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    if value.split("/")[0] == "~":
        value = str(expand_home(value))
    elif value.startswith("~"):
        value = os.path.expanduser(value)  # noqa: PTH111  leaves ~NAME alone where no user has that name
    return f"{flag}{equals}{value}"
