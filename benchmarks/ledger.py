"""The ledger: results/, one JSON file per finished run, from which `benchmarks.tables` makes docs/results.md.

    python -m benchmarks.ledger --workdir=runs/cifar10-resnet20-he --config=configs/cifar10.py:resnet20-he

    python -m benchmarks.ledger --entries=DIR/study.json

`benchmarks.study` and `benchmarks.comparison` enter their runs themselves; this command enters another one, or those
that `benchmarks.accelerator` brought back.

An entry holds the run's config as the fields that differ from results/defaults.json: `gaternet_jax.config.default()`
as it was when the ledger was begun, so that a default that changes later changes no entry's meaning.
"""

import argparse
import hashlib
import itertools
import json
from pathlib import Path

from benchmarks.runs import ROOT, Run, parse_settings
from gaternet_jax.cli.command_line import command_line
from gaternet_jax.config import MAY_CHANGE, RunConfig, default, identify
from gaternet_jax.errors import NonFiniteError, UserError
from gaternet_jax.files import write_file
from gaternet_jax.models.build import abstract_model, count_parameters
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.training.loop import train
from gaternet_jax.training.processes import is_primary
from gaternet_jax.training.starts import load_starts
from gaternet_jax.variants import recipe_of
from gaternet_jax.workdir import load_config

FOLDER = ROOT / "results"
DEFAULTS = "defaults.json"
NOT_RUNS = (DEFAULTS, "findings.json")
IGNORED = set(MAY_CHANGE) - {"train.epochs"}  # fields that do not decide what a run computes
OF_GATES = ("loss.gate", "model.gater.initial_bias", "model.gater.auxiliary_weight")  # nor these, of one without gates


def run_and_enter(run: Run, workdir: Path, folder: Path = FOLDER, data_dir: str = "") -> dict | None:
    """Trains a run, or goes on with it, and enters it in the ledger, unless it is there already.

    Args:
        run: which one.
        workdir: its folder.
        folder: the ledger.
        data_dir: folder of prepared datasets; "": the run's own.

    Returns:
        Its entry; None if the run was interrupted: the same call goes on.
    """
    config = run.config()
    config.data.data_dir = data_dir or config.data.data_dir
    if entry := find(config, folder):
        return entry
    diverged = ""
    try:
        if not train(config, workdir)["finished"]:
            return None
    except NonFiniteError as error:
        print(error, flush=True)
        diverged = str(error).partition(" (")[0]
    entry = make_entry(run, workdir, folder, diverged=diverged)
    if is_primary():
        write(entry, folder)
    return entry


def make_entry(run: Run, workdir: Path, folder: Path = FOLDER, *, diverged: str = "") -> dict:
    """Makes the entry of a run from its folder.

    Args:
        run: how it is started.
        workdir: its folder.
        folder: the ledger.
        diverged: why it ended before its last step.

    Raises:
        UserError: it is not finished, or of another config than `run`, or its number of epochs was changed on the way.
    """
    config = load_config(workdir)
    differing = [
        field
        for field, value in _deciding(config).items()
        if _deciding(run.config()).get(field) != value and field not in ("model.num_classes", "data.eval_split")
    ]  # those two may be left to the dataset
    if differing:
        raise UserError(f"{workdir} holds another run than {run.command}: they differ in {', '.join(differing)}")
    if not diverged and not (workdir / "finished").is_file():
        raise UserError(f"{workdir} is not finished; go on with it first: {run.command} --workdir={workdir}")
    starts = load_starts(workdir)
    if len({start["epochs"] for start in starts}) > 1:
        raise UserError(
            f"{workdir} was begun with another train.epochs, whose learning rates its first steps had: it is no run of "
            "this recipe. Train it anew in another --workdir"
        )
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained, evaluated = ([line for line in lines if line["split"] == split] for split in ("train", "eval"))
    last = evaluated[-1] if evaluated and not diverged else {}
    model = abstract_model(config.model)
    macs = MacCounter(model, config.data.image_size)
    return {
        "name": _entry_name(run, config, folder),
        "command": run.command,
        "config": difference(config, folder),
        "recipe": recipe_of(config),
        "seed": config.seed,
        "epochs": config.train.epochs,
        "steps": lines[-1]["step"] if lines else 0,
        "diverged": diverged,
        "test_images": last.get("images"),
        "test_error": _error(last) if last else None,
        "curve": [[round(line["epoch"], 2), _error(line)] for line in evaluated],
        "parameters": count_parameters(model),
        "gates": sum(site.size for site in model.gate_sites),
        "macs": {
            "dense": macs.dense,
            "gater": macs.gater,
            "with_gates": round(macs.gater + last.get("macs", 1.0) * macs.dense),
        },
        "gate_statistics": _gate_statistics(last) if "gates_on" in last else None,
        "wall_seconds": round(sum(start["seconds"] for start in starts), 1) if starts else None,
        "images_per_second": _images_per_second(trained),
        "starts": _merge(starts),
    }


def _error(line: dict) -> float:
    """Test error in percent."""
    return round(100 * (1 - line["top1"]), 3)


def _gate_statistics(line: dict) -> dict[str, float]:
    """Fractions of the gates: open on average; open for all, none and some of the test images."""
    on, some = line["gates_always_on"], line["gates_input_dependent"]
    fractions = {"open": line["gates_on"], "always_on": on, "always_off": 1 - on - some, "input_dependent": some}
    return {name: round(fraction, 4) for name, fraction in fractions.items()}


def _images_per_second(trained: list[dict]) -> float | None:
    """Over the whole run, evaluations and pauses left out."""
    steps = [line["step"] - before for line, before in zip(trained, [0, *(t["step"] for t in trained)], strict=False)]
    seconds = sum(of / line["images_per_second"] for of, line in zip(steps, trained, strict=True))
    return round(sum(steps) / seconds, 1) if seconds else None


def _merge(starts: list[dict]) -> list[dict]:
    """Starts one after another of the same code on the same machine as one, with their number."""
    merged = []
    for facts, alike in itertools.groupby(
        starts,
        lambda start: {name: value for name, value in start.items() if name not in ("step", "seconds", "epochs")},
    ):
        alike = list(alike)
        seconds = round(sum(start["seconds"] for start in alike), 1)
        merged.append({"starts": len(alike), "to_step": alike[-1]["step"], "seconds": seconds} | facts)
    return merged


def _plain(config: RunConfig) -> dict[str, object]:
    """Fields to values as JSON has them; where a run starts from another one, that it does."""
    return {field: list(value) if isinstance(value, tuple) else value for field, value in identify(config).items()}


def _deciding(config: RunConfig) -> dict[str, object]:
    without_effect = OF_GATES if config.model.gating == "none" else ()
    return {
        field: value
        for field, value in _plain(config).items()
        if field not in IGNORED and not field.startswith(without_effect)
    }


def defaults(folder: Path = FOLDER) -> dict[str, object]:
    """The fields that entries are differences from; of fields newer than the ledger, today's default."""
    path = folder / DEFAULTS
    return _plain(default()) | (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})


def difference(config: RunConfig, folder: Path = FOLDER) -> dict[str, object]:
    """The fields of a config that differ from the ledger's defaults, of those that decide what a run computes."""
    before = defaults(folder)
    return {field: value for field, value in sorted(_deciding(config).items()) if before.get(field, ()) != value}


def _entry_name(run: Run, config: RunConfig, folder: Path) -> str:
    digest = hashlib.sha256(json.dumps(difference(config, folder), sort_keys=True).encode()).hexdigest()
    return f"{run.name}-{digest[:6]}"


def find(config: RunConfig, folder: Path = FOLDER, entries: list[dict] | None = None) -> dict | None:
    """The entry of the run that a config describes, if the ledger has it; `entries` saves loading it."""
    wanted = difference(config, folder)
    entries = load(folder) if entries is None else entries
    return next((entry for entry in entries if entry["config"] == wanted), None)


def alike(run: Run, entries: list[dict], folder: Path = FOLDER) -> list[dict]:
    """The entries of a run with this or any other seed."""

    def without_seed(fields: dict) -> dict:
        return {field: value for field, value in fields.items() if field != "seed"}

    wanted = without_seed(difference(run.config(), folder))
    return [entry for entry in entries if without_seed(entry["config"]) == wanted]


def load(folder: Path = FOLDER) -> list[dict]:
    """All entries, by name.

    Raises:
        UserError: a file is no entry.
    """
    entries = []
    for path in sorted(folder.glob("*.json")):
        if path.name not in NOT_RUNS:
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{path} is no entry of the ledger: {error}") from None
            if not isinstance(entry, dict) or entry.get("name") != path.stem:
                raise UserError(f"{path} is no entry of the ledger: its name is not that of the file")
            entries.append(entry)
    return entries


def write(entry: dict, folder: Path = FOLDER) -> Path:
    """Writes an entry to folder/NAME.json, a line a field, and the defaults that it is relative to."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / DEFAULTS, _lines(defaults(folder)))
    path = folder / f"{entry['name']}.json"
    write_file(path, _lines(entry))
    print(f"Entered {path}", flush=True)
    return path


def _lines(content: dict) -> str:
    return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in content.items()) + "\n}\n"


@command_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="of a finished run")
    parser.add_argument("--config", help="the run card and variant that it was started with")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="and the fields changed")
    parser.add_argument("--entries", type=Path, help="study.json of benchmarks.accelerator: enter all of it")
    parser.add_argument("--ledger", type=Path, default=FOLDER, help="folder of the entries (default: results)")
    arguments = parser.parse_args()
    if arguments.entries:
        for entry in json.loads(arguments.entries.read_text(encoding="utf-8")):
            write(entry, arguments.ledger)
        return
    if not (arguments.workdir and arguments.config):
        raise UserError("say which run: --workdir and --config, or --entries")
    card, _, variant = arguments.config.partition(":")
    run = Run(card, variant, parse_settings(arguments.set))
    write(make_entry(run, arguments.workdir, arguments.ledger), arguments.ledger)


if __name__ == "__main__":
    main()
