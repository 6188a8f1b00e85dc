"""Errors meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user gave cannot be used.

    The message says what was given, what was expected and what to do. The command lines print it without a
    traceback and end with exit code 2 (command_line.py).
    """
