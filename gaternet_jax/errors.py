"""Errors meant for the person at the keyboard."""


class UserError(ValueError):
    """Says that something the user gave cannot be used.

    The message says what was given, what was expected and what to do. The command lines print it without a
    traceback and end with exit code 2 (command_line.py).
    """


class NonFiniteError(RuntimeError):
    """Loss, gradient or parameters became NaN or infinite."""


def not_installed(what: str, package: str, extra: str) -> UserError:
    """The error of something that needs a package of an extra which is not installed."""
    return UserError(f"{what} needs {package}: pip install 'gaternet-jax[{extra}]'")
