"""Trains or evaluates a GaterNet.

    gaternet train --config=digits
    gaternet train --config=cifar10:resnet56 --data_dir=DIR --config.train.epochs=100
    gaternet evaluate --workdir=runs/digits

`python -m gaternet_jax.main` does the same, with --mode=evaluate to evaluate.

The same command again goes on from the latest checkpoint. On several hosts, start it on each: JAX detects Cloud TPU,
SLURM, Kubernetes and Open MPI (launch/ has scripts); elsewhere give --coordinator, --num_processes and --process_id.

Exit code: 0 done, or ended with a checkpoint after SIGINT, SIGTERM or SIGHUP; 1 a crash, which a restart may mend; 2 an
error that it cannot.
"""

import json
import os
import sys
import threading
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from gaternet_jax.cli.command_line import command_line
from gaternet_jax.config import FIELDS
from gaternet_jax.configs import card_names, find_card
from gaternet_jax.errors import UserError
from gaternet_jax.fields import describe
from gaternet_jax.paths import expand_arguments, quote

# All that computes is imported where it is used: --help and mistakes in flags are answered without JAX.

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A run card, NAME or DIR/NAME.py, and after a colon its variant; override fields by --config.FIELD=VALUE.",
)


class _CardParser(flags.ArgumentParser):
    """Parses the name or the file of a run card."""

    def __init__(self, files: flags.ArgumentParser):
        super().__init__()
        self._files = files

    def parse(self, argument: str):
        return self._files.parse(find_card(argument))


flags.FLAGS["config"].parser = _CardParser(flags.FLAGS["config"].parser)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, metrics. Default: runs/X or runs/X-VARIANT."
)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "Train, or evaluate the best checkpoint.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for several processes outside of a cluster that JAX detects."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are; with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; with --coordinator.")
_PROFILE = flags.DEFINE_string("profile", None, "START:STOP: trace these steps into WORKDIR/profile.")
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", None, "Folder that keeps compiled programs. Default: $JAX_COMPILATION_CACHE_DIR, else none."
)
_DEBUG_NANS = flags.DEFINE_bool("debug_nans", False, "Stop at the operation that first makes a NaN (slow).")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of prepared TFDS datasets. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."
)


def main(_) -> None:
    set_up()
    if _MODE.value == "evaluate":
        run_evaluation()
    else:
        run_training()


def set_up() -> None:
    """Does what must be done before anything touches a device."""
    import jax

    from gaternet_jax.progress import silence
    from gaternet_jax.training import processes as distributed

    distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _COMPILATION_CACHE.value:
        jax.config.update("jax_compilation_cache_dir", _COMPILATION_CACHE.value)
    jax.config.update("jax_debug_nans", _DEBUG_NANS.value)
    threading.excepthook = _report_thread_error
    if not distributed.is_primary():
        silence()
        sys.stdout = open(os.devnull, "w", errors="replace")  # noqa: PTH123, SIM115  process 0 tells what all do


def _report_thread_error(args: threading.ExceptHookArgs) -> None:
    # Orbax raises the error of a background save again where training notices it; there it is explained.
    if not type(args.thread).__module__.startswith("orbax."):
        threading.__excepthook__(args)


def run_training() -> None:
    from gaternet_jax.training.loop import train
    from gaternet_jax.training.profiling import parse_steps

    config = _CONFIG.value
    if _DATA_DIR.value:
        config.data.data_dir = _DATA_DIR.value
    workdir = get_workdir()
    images = config.data.name or config.data.root
    print(f"Training {config.model.backbone} (gating: {config.model.gating}) on {images} in {workdir}")
    profile = parse_steps(_PROFILE.value) if _PROFILE.value else None
    metrics = train(config, workdir, profile=profile)
    print(summary(workdir, metrics))


def run_evaluation() -> None:
    from gaternet_jax.training.evaluate import check_fits, describe, evaluate, note_on_gates

    overrides = config_flags.get_override_values(flags.FLAGS["config"]) if _CONFIG.value else {}
    if _CONFIG.value:
        check_fits(get_workdir(), _CONFIG.value, overrides)
    if _DATA_DIR.value:
        overrides["data.data_dir"] = _DATA_DIR.value
    metrics = evaluate(get_workdir(), overrides)
    print(f"{metrics['images']} images: {describe(metrics)}")
    if "gates_on" in metrics and (note := note_on_gates(metrics["gates_on"], metrics["gates_input_dependent"])):
        print(f"Note: {note}")
    print(json.dumps(metrics))


def get_workdir() -> Path:
    return Path(_WORKDIR.value or workdir_of(config_flags.get_config_filename(flags.FLAGS["config"])))


def workdir_of(config_name: str) -> str:
    """Names the folder of a run: configs/cifar10.py:resnet56 or cifar10:resnet56 -> runs/cifar10-resnet56."""
    card, _, variant = config_name.partition(":")
    return f"runs/{Path(card).stem}" + (f"-{variant}" if variant else "")


def summary(workdir: Path, metrics: dict) -> str:
    """Tells what a person wants to know when the run has ended."""
    from gaternet_jax.training.checkpoint import Checkpoints
    from gaternet_jax.training.evaluate import note_on_gates

    if not metrics["finished"]:
        return f"\nInterrupted after step {metrics['step']}; saved in {workdir}. The same command goes on from there."
    # The interpreter of this run, by the shortest name: after `make demo` no virtual environment is active.
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else "python"
    lines = [
        "",
        f"Done after step {metrics['step']}.",
        f"  top-1        {metrics['top1']:.2%} of {metrics['images']} test images",
    ]
    if "gates_on" in metrics:
        depend = f"{metrics['gates_input_dependent']:.1%} of the gates depend on the image"
        lines.append(f"  open gates   {metrics['gates_on']:.1%} on average; {depend}")
        if note := note_on_gates(metrics["gates_on"], metrics["gates_input_dependent"]):
            lines.append(f"  note         {note}")
    with Checkpoints(workdir) as checkpoints:
        lines.append(
            f"  checkpoints  {workdir}/checkpoints (the best, which load_model takes: step {checkpoints.best})"
        )
    lines += [
        f"  metrics      {workdir}/metrics.jsonl",
        f"  TensorBoard  {workdir}/tensorboard",
        "Next:",
        f"  {quote(python)} -m gaternet_jax.main --workdir={quote(workdir)} --mode=evaluate",
        f"  {quote(python)} -m gaternet_jax.tools.predict --workdir={quote(workdir)} IMAGE",
        "",
    ]
    return "\n".join(lines)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; --help prints it and ends.

    Raises:
        UserError: a mistake in it, or a run card that cannot be used.
    """
    argv = expand_arguments(argv)
    if {"--help", "-help", "-h", "--helpshort"} & set(argv[1:]):
        print(f"{__doc__}\n{flags.FLAGS.module_help(sys.modules[__name__])}")
        print(f"\nFields of the config, with the values of those that no run card changes:\n{describe(FIELDS)}")
        sys.exit()
    try:
        remaining = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.lock()  # a config that could not be loaded says so only when it is used
    except Exception as error:  # a card is a program: it may raise anything
        raise _user_error(error) or UserError(_explain(error)) from None
    if len(remaining) > 1:
        raise UserError(f"'{remaining[1]}' is no flag; flags are --FLAG=VALUE, see --help")
    if _MODE.value == "train" and _CONFIG.value is None:
        raise UserError(f"say what to train: --config=NAME, one of {', '.join(card_names())}, or --config=DIR/NAME.py")
    if _WORKDIR.value is None and _CONFIG.value is None:
        raise UserError("say what to evaluate: --workdir=DIR of a training run or a conversion")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # --verbosity=0 shows what the libraries report
    return remaining


def _user_error(error: BaseException | None) -> UserError | None:
    """Finds what the run card itself said: absl and ml_collections raise others in the place of a ValueError."""
    found = None
    while error is not None:
        found = error if isinstance(error, UserError) else found
        error = error.__context__
    return found


def _explain(error: Exception) -> str:
    """Says what is wrong with the flags or with the run card, in a sentence."""
    reason = str(error.__cause__ or error).strip().splitlines()[-1].strip() if str(error) else ""
    if isinstance(error, flags.UnrecognizedFlagError) and error.flagname.startswith("config."):
        return f"--{error.flagname} is a field of a run card: give --config=NAME, too; to evaluate, that of the run"
    if isinstance(error, flags.Error):
        return f"{reason}; --help lists the flags and the fields"
    if isinstance(error, (OSError, SyntaxError)):
        return (
            f"the file that --config names cannot be read ({reason}); run cards that need no file: "
            f"{', '.join(card_names())}"
        )
    if isinstance(error.__context__, KeyError):  # ml_collections says it twice, and quotes it
        error = error.__context__
    if isinstance(error, (AttributeError, KeyError)):
        words = str(error.args[0]).replace("\n", ". ")
        return f"the config cannot be used: {words}. --help lists the fields"
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = ": ".join(part for part in (type(error).__name__, reason) if part)
    return f"the run card fails: {what} ({place.filename}, line {place.lineno})"


@command_line(interrupted="Ended at once. The same command goes on from the latest checkpoint.")
def run(mode: str = "train") -> None:
    """Runs the command line; `mode` is what it does unless --mode says otherwise."""
    flags.set_default(_MODE, mode)
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
