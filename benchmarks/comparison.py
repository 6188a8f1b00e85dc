"""Compares gated, plain, wider, squeeze-and-excitation and locally gated networks: a study in one command.

    python -m benchmarks.comparison --config=configs/digits.py --models=resnet8 --seeds=3 --out=runs/comparison/digits
    python -m benchmarks.comparison --config=configs/cifar10.py --models=resnet20,resnet56 --out=runs/comparison/cifar10

Every run is an ordinary run in OUT/MODEL-VARIANT-SEED, on all devices; the same command again goes on where it was. A
finished run is entered in the ledger (benchmarks/ledger.py), and what is there is not trained again. It ends with a
table (OUT/table.md) and a figure (OUT/comparison.png). Fields of all runs are set by --set, e.g. --set train.epochs=100
--set data.train_split='train[:5000]'.
"""

import argparse
import dataclasses
import statistics
from pathlib import Path

import jax

from benchmarks.ledger import FOLDER, run_and_enter
from benchmarks.runs import Run, parse_settings
from gaternet_jax.cli.command_line import command_line, positive
from gaternet_jax.errors import UserError
from gaternet_jax.models.build import abstract_model
from gaternet_jax.validation import validate

VARIANTS = ("plain", "wider", "se", "local", "gated")
COLOURS = dict(zip(VARIANTS, ("#8da0cb", "#66a61e", "#e6ab02", "#7570b3", "#d95f02"), strict=True))


def run_study(arguments: argparse.Namespace, settings: dict[str, object]) -> list[dict]:
    """Trains, or goes on training, every run; one row a model and variant."""
    if "seed" in settings:
        raise UserError("the seeds of a study are 0, 1, ...; say how many with --seeds")
    runs = {}
    for model in arguments.models.split(","):
        for variant in arguments.variants.split(","):
            of = dict(settings)
            if variant != "gated":
                of.pop("model.gater.pretrained", None)  # there is no gater to start from it
            run = Run(arguments.config, model if variant == "gated" else f"{model}-{variant}", of)
            config = run.config()
            validate(config, len(jax.devices()))
            abstract_model(config.model)  # mistakes show before anything is trained
            runs[model, variant] = run

    rows = []
    for (model, variant), run in runs.items():
        entries = []
        for seed in range(arguments.seeds):
            workdir = arguments.out / f"{model}-{variant}-{seed}"
            print(f"== {model} {variant}, seed {seed} ({workdir})", flush=True)
            seeded = dataclasses.replace(run, settings=run.settings | {"seed": seed})
            entry = run_and_enter(seeded, workdir, arguments.ledger)
            if entry is None:
                raise KeyboardInterrupt
            entries.append(entry)
        finished = [entry for entry in entries if not entry["diverged"]]
        rows.append(
            {
                "model": model,
                "variant": variant,
                "top1": [1 - entry["test_error"] / 100 for entry in finished],
                "diverged": len(entries) - len(finished),
                "parameters": entries[0]["parameters"],
                "macs": statistics.mean(entry["macs"]["with_gates"] for entry in finished or entries),
                "gates_on": [entry["gate_statistics"]["open"] for entry in finished if entry["gate_statistics"]],
            }
        )
    return rows


def spread(values: list[float]) -> str:
    """Mean ± standard deviation, in percent; of no values, a dash."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2%}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2%}{deviation}"


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| model | variant | test top-1 | parameters | MACs per image | open gates |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        diverged = f" ({row['diverged']} diverged)" if row["diverged"] else ""
        lines.append(
            f"| {row['model']} | {row['variant']} | {spread(row['top1'])}{diverged} | {row['parameters']:,} "
            f"| {row['macs'] / 1e6:.2f} M | {spread(row['gates_on'])} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict], path: Path) -> None:
    """Accuracy against multiply-accumulates per image: a point a run, a bar their mean."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.6), constrained_layout=True)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for row in (row for row in rows if row["top1"]):
        macs, colour = row["macs"] / 1e6, COLOURS.get(row["variant"], "black")
        marker = "osD^v"[models.index(row["model"]) % 5]
        name = f"{row['model']} {row['variant']}"
        axis.scatter([macs] * len(row["top1"]), row["top1"], color=colour, marker=marker, s=22, alpha=0.7, label=name)
        axis.scatter([macs], [statistics.mean(row["top1"])], color=colour, marker="_", s=260)
    axis.set(xlabel="multiply-accumulates per image (millions, gater included)", ylabel="test top-1 accuracy")
    axis.margins(x=0.1, y=0.15)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=110)


@command_line(interrupted="Interrupted; the same command goes on.")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a run card, configs/X.py")
    parser.add_argument("--models", required=True, help="comma-separated, e.g. resnet20,resnet56")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated (default: all five)")
    parser.add_argument("--seeds", type=positive, default=1, help="runs of each (default: 1)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--ledger", type=Path, default=FOLDER, help="folder of the entries (default: results)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of all runs")
    arguments = parser.parse_args()
    rows = run_study(arguments, parse_settings(arguments.set))
    text = table(rows)
    (arguments.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nWrote {arguments.out}/table.md")
    if not any(row["top1"] for row in rows):
        return
    draw(rows, arguments.out / "comparison.png")
    print(f"Wrote {arguments.out}/comparison.png")


if __name__ == "__main__":
    main()
