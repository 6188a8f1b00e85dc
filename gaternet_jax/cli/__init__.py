"""The console script: `gaternet COMMAND ...`. Each command is a module, imported when it is asked for."""

import importlib
import sys
from collections.abc import Sequence

from gaternet_jax import __version__
from gaternet_jax.cli.command_line import command_line
from gaternet_jax.errors import UserError

COMMANDS = {
    "train": "trains a model, or goes on with it",
    "evaluate": "evaluates a trained model",
    "predict": "classifies image files",
    "prepare": "prepares datasets",
    "convert": "converts a released checkpoint",
    "compact": "removes filters that a trained model never opens",
    "export": "writes a trained model into one file",
    "analyze": "looks inside a trained model",
    "models": "lists the models",
}


@command_line()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; arguments are those of the process if they are not given."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("--help", "-h"):
        print(usage())
    elif command == "--version":
        print(f"gaternet-jax {__version__}")
    elif command not in COMMANDS:
        raise UserError(f"'{command}' is no command; there are {', '.join(COMMANDS)}. See gaternet --help")
    else:
        sys.argv = [f"gaternet {command}", *arguments]  # where argparse, absl and ml_collections look
        if command in ("train", "evaluate"):
            importlib.import_module("gaternet_jax.main").run(command)
        else:
            importlib.import_module(f"gaternet_jax.tools.{command}").main()


def usage() -> str:
    """Says which commands there are."""
    lines = [f"    gaternet {command:10}{what}" for command, what in COMMANDS.items()]
    return "\n".join(["GaterNet in JAX.", "", *lines, "", "gaternet COMMAND --help tells more of each."])
