"""Trains the runs that answer "does gating win?", in the order of their worth, as many as fit in the time there is.

    python -m benchmarks.study --out=runs/study --data_dir=DIR                    CIFAR-10, CIFAR-100
    python -m benchmarks.study --out=runs/study --minutes=12                      what fits in 12 minutes
    python -m benchmarks.study --study=cifar10-16px --out=runs/study              CIFAR-10 at 16 x 16 pixels, for CPUs
    python -m benchmarks.study --list --only='*resnet20*-200ep-*'                 says what is done and what is to do

Every run is an ordinary run in OUT/NAME. A finished one is entered in the ledger (results/), and what is there is not
repeated; one that time cuts short ends with a checkpoint, and the same command goes on with it.
`python -m benchmarks.tables` then brings docs/results.md up to date.
"""

import argparse
import contextlib
import fnmatch
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.ledger import FOLDER, difference, find, load, run_and_enter
from benchmarks.runs import Run
from gaternet_jax.cli.command_line import command_line
from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.errors import UserError
from gaternet_jax.training.starts import describe_machine, load_starts

SAVING = 5.0  # seconds that a run gets for its last checkpoint
START = 60.0  # seconds: with less, no run is begun, because it would do little but compile
SEEDS = (0, 1, 2)
MODELS = ("plain", "gated", "aux", "wider", "se", "local")
SMALL_IMAGES: dict[str, Any] = {"data.image_size": 16, "data.crop_padding": 2}
HALF_OPEN = {"model.gater.initial_bias": 0.0}  # gates at the start: what is to close them gets gradients
FIELDS: dict[str, dict[str, Any]] = {  # of models that are no variant
    "macs50": {"loss.gate": "macs", "loss.gate_target": 0.5, "loss.gate_weight": 10.0, **HALF_OPEN},
    "lambda0.1": {"loss.gate_weight": 0.1, **HALF_OPEN},  # the defaults of the first runs
}


def one(card: str, backbone: str, model: str, recipe: str, epochs: float, seed: int = 0, **settings: Any) -> Run:
    """A run of a model: one of MODELS, "all", or one of FIELDS."""
    word = "" if model == "gated" or model in FIELDS else model
    variant = "-".join(part for part in (backbone, word, recipe) if part)
    fields = {"train.epochs": epochs, "seed": seed} | FIELDS.get(model, {})
    pixels = f"{settings['data.image_size']}px" if "data.image_size" in settings else ""
    label = "-".join(part for part in (pixels, backbone, model, recipe) if part)
    return Run(f"configs/{card}.py", variant, fields | settings, label)


def cifar() -> list[Run]:
    """ResNet-20 on CIFAR-10, its seeds, ResNet-56, CIFAR-100, ResNet-164; first a screen of 30 epochs, then all 200."""
    runs = []
    for epochs in (30.0, 200.0):
        wanted = [("cifar10", "resnet20", model, 0) for model in (*MODELS, "all", "macs50")]
        wanted += [("cifar10", "resnet20", model, seed) for seed in SEEDS[1:] for model in ("plain", "gated")]
        for card, backbones in (
            ("cifar10", ("resnet56",)), ("cifar100", ("resnet20", "resnet56")),
            ("cifar10", ("resnet164_paper",)), ("cifar100", ("resnet164_paper",)),
        ):  # fmt: skip
            wanted += [(card, backbone, model, 0) for backbone in backbones for model in MODELS]
            wanted += [(card, b, m, seed) for b in backbones for seed in SEEDS[1:] for m in ("plain", "gated")]
        for card, backbone, model, seed in wanted:
            runs += [one(card, backbone, model, recipe, epochs, seed) for recipe in ("he", "strong")]
    return runs


def small_cifar() -> list[Run]:
    """CIFAR-10 at 16 x 16 pixels: a quarter of the work."""
    models = ("plain", "aux", "gated", "wider")
    return [
        one("cifar10", "resnet20", model, "strong", 24.0, seed, **SMALL_IMAGES) for seed in (0, 1) for model in models
    ]


def digits(**settings: Any) -> list[Run]:
    """Handwritten digits: a minute a run."""
    return [one("digits", "resnet8", model, "", 40.0, **settings) for model in ("plain", "gated")]


def tiny() -> list[Run]:
    """For tests: seconds."""
    small = {"model.width": 4, "model.gater.width": 4, "optimizer.warmup_epochs": 0.0}
    return digits(**small, **{"data.eval_split": "test[:64]", "train.epochs": 0.2})


STUDIES = {"cifar10": cifar, "cifar10-16px": small_cifar, "digits": digits, "tiny": tiny}


def choose(study: str, only: str = "") -> list[Run]:
    """The runs of a study whose names fit one of the comma-separated patterns.

    Raises:
        UserError: no such study, or none fits.
    """
    if study not in STUDIES:
        raise UserError(f"--study={study} is not known; choose one of {', '.join(STUDIES)}")
    runs, patterns = STUDIES[study](), only.split(",") if only else ["*"]
    chosen = [run for run in runs if any(fnmatch.fnmatch(run.name, pattern) for pattern in patterns)]
    if not chosen:
        names = ", ".join(run.name for run in runs[:3])
        raise UserError(f"--only={only} fits no run of --study={study}; names are {names}, ... (--list prints all)")
    return chosen


def estimate(run: Run, entries: list[dict], ledger: Path = FOLDER) -> float | None:
    """Seconds that a run takes, from runs of the same model and data on this machine; None if there is none."""

    def speed_depends_on(fields: dict) -> dict:
        return {f: value for f, value in fields.items() if f.startswith(("model.", "data.", "train.batch_size"))}

    machine, sought = describe_machine(), speed_depends_on(difference(run.config(), ledger))
    for entry in reversed(entries):
        start = entry["starts"][-1] if entry["starts"] else {}
        same_machine = machine.items() <= start.items()
        if same_machine and not entry["diverged"] and speed_depends_on(entry["config"]) == sought:
            return entry["wall_seconds"] / entry["epochs"] * run.config().train.epochs
    return None


def study(runs: list[Run], out: Path, minutes: float | None = None, ledger: Path = FOLDER, data_dir: str = "") -> bool:
    """Trains runs in their order, until all are in the ledger or the time is over.

    Args:
        runs: see `choose`.
        out: their folders are in here.
        minutes: the time there is; None: as long as it takes.
        ledger: folder of the entries.
        data_dir: folder of prepared datasets; "": the default.

    Returns:
        Whether all are done.

    Raises:
        UserError: data are not prepared, or a run cannot be trained.
    """
    end = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    entries = load(ledger)
    to_do = [run for run in runs if not find(run.config(), ledger, entries)]
    find_data(to_do, data_dir)
    for number, run in enumerate(to_do, 1):
        left = end - time.monotonic() - SAVING
        if left < START:
            print(f"{max(left, 0):.0f} s are left, too few for a start: {run.name} is for another time.")
            return False
        seconds = estimate(run, load(ledger), ledger)
        expected = f", about {seconds / 60:.1f} minutes" if seconds else ""
        print(f"== {number} of {len(to_do)}: {run.name}{expected}", flush=True)
        with ended_at(end - SAVING):
            entry = run_and_enter(run, out / run.name, ledger, data_dir)
        if entry is None:
            print("Interrupted; the same command goes on.")
            return False
    return True


def find_data(runs: list[Run], data_dir: str) -> None:
    """Looks for all data before the first run, not hours later.

    Raises:
        UserError: data are not prepared.
    """
    for card in dict.fromkeys(run.card for run in runs):
        name = next(run for run in runs if run.card == card).config().data.name
        try:
            find_dataset(name, data_dir)
        except UserError as error:
            others = [run.name for run in runs if run.card != card]
            hint = f". Or do without it: --only='{others[0].partition('-')[0]}-*'" if others else ""
            raise UserError(f"{error}{hint}") from None


@contextlib.contextmanager
def ended_at(end: float) -> Iterator[None]:
    """Sends this process SIGTERM from a time of `time.monotonic` on, until the context is left: training ends on it.

    One signal would not do: it may come before training listens, and is then without effect. The same holds for one
    that somebody else sends.
    """
    asked, left = threading.Event(), threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())

    def send() -> None:
        asked.wait(max(end - time.monotonic(), 0) if end < float("inf") else None)
        while not left.wait(0.5):
            os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        yield
    finally:
        left.set()
        asked.set()
        sender.join()
        signal.signal(signal.SIGTERM, before)


def print_list(runs: list[Run], out: Path, ledger: Path) -> None:
    """Prints the state of every run, and how long it takes if the like was measured on this machine."""
    entries = load(ledger)
    for run in runs:
        entry, starts = find(run.config(), ledger, entries), load_starts(out / run.name)
        if entry:
            state = "diverged" if entry["diverged"] else f"{entry['test_error']:.2f}% test error"
        else:
            state = f"at step {starts[-1]['step']}" if starts else "to do"
        seconds = None if entry else estimate(run, entries, ledger)
        print(f"{run.name:50} {state}" + (f", about {seconds / 60:.0f} minutes in all" if seconds else ""))


def minutes(text: str) -> float:
    """Reads the value of --minutes."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number greater than 0")
    return value


@command_line(interrupted="Ended at once; the same command goes on.")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="cifar10", help=f"one of {', '.join(STUDIES)} (default: cifar10)")
    parser.add_argument("--only", default="", help="comma-separated patterns of names, e.g. '*resnet20-plain*'")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the runs (default: runs/study)")
    parser.add_argument(
        "--minutes", type=minutes, default=None, help="the time there is (default: as long as it takes)"
    )
    parser.add_argument("--data_dir", default="", help="folder of prepared datasets")
    parser.add_argument("--ledger", type=Path, default=FOLDER, help="folder of the entries (default: results)")
    parser.add_argument("--list", action="store_true", help="print what is done and what is to do, and end")
    arguments = parser.parse_args()
    runs = choose(arguments.study, arguments.only)
    if arguments.list:
        print_list(runs, arguments.out, arguments.ledger)
    elif study(runs, arguments.out, arguments.minutes, arguments.ledger, arguments.data_dir):
        print(f"All {len(runs)} runs are in {arguments.ledger}.")


if __name__ == "__main__":
    main()
