"""Errors meant for the person at the keyboard."""

from collections.abc import Collection


class UserError(ValueError):
    """Says that something the user gave cannot be used.

    The message says what was given, what was expected and what to do. The command lines print it without a
    traceback and end with exit code 2 (cli/command_line.py).
    """


class NonFiniteError(RuntimeError):
    """Says that loss, gradient or parameters became NaN or infinite."""


def check_choice(what: str, value: object, choices: Collection[object]) -> None:
    """Raises UserError, which lists the choices, for a value that is none of them."""
    if value not in tuple(choices):
        known = ", ".join(str(choice) or "''" for choice in choices)
        raise UserError(f"unknown {what} '{value}'; known: {known}")


def not_installed(what: str, package: str, extra: str) -> UserError:
    """Makes the error of something that needs a package of an extra which is not installed."""
    return UserError(f"{what} needs {package}: pip install 'gaternet-jax[{extra}]'")
