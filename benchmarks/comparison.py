"""Compares gated, plain, wider, squeeze-and-excitation and locally gated networks: a study in one command.

    python -m benchmarks.comparison --config=configs/digits.py --models=resnet8 --seeds=3 --out=runs/comparison/digits
    python -m benchmarks.comparison --config=configs/cifar10.py --models=resnet20,resnet56 --out=runs/comparison/cifar10

Every run is an ordinary run in OUT/MODEL-VARIANT-SEED, on all devices; the same command again goes on where it was.
It ends with a table (OUT/table.md) and a figure (OUT/comparison.png; needs matplotlib). Fields of all runs are set by
--set, e.g. --set train.epochs=100 --set data.train_split='train[:5000]'.
"""

import argparse
import ast
import importlib.util
import statistics
import sys
from pathlib import Path

import jax

from gaternet_jax.config import Config, flatten, validate
from gaternet_jax.errors import UserError
from gaternet_jax.metrics import NonFiniteError
from gaternet_jax.models.build import abstract_model, count_parameters
from gaternet_jax.models.macs import MacCounter
from gaternet_jax.tools.predict import positive
from gaternet_jax.train import train

VARIANTS = ("plain", "wider", "se", "local", "gated")
COLOURS = dict(zip(VARIANTS, ("#8da0cb", "#66a61e", "#e6ab02", "#7570b3", "#d95f02"), strict=True))


def load_card(path: str, variant: str, settings: dict[str, object]) -> Config:
    """The config of a run card's variant, with settings applied."""
    spec = importlib.util.spec_from_file_location("card", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UserError(f"--config={path} is no run card; give one of configs/*.py")
    card = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(card)
    config = card.get_config(variant)
    if "seed" in settings:
        raise UserError("the seeds of a study are 0, 1, ...; say how many with --seeds")
    unknown = settings.keys() - {field for field, _ in flatten(config)}
    if unknown:
        raise UserError(f"--set names unknown fields: {', '.join(sorted(unknown))} (see gaternet_jax/config.py)")
    try:
        config.update_from_flattened_dict(settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"--set has a value of the wrong type: {error}") from None
    return config


def parse_settings(settings: list[str]) -> dict[str, object]:
    """["train.epochs=100"] -> {"train.epochs": 100}; what is no Python literal is text."""
    parsed = {}
    for setting in settings:
        field, _, value = setting.partition("=")
        try:
            parsed[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[field] = value
    return parsed


def run_study(arguments: argparse.Namespace, settings: dict[str, object]) -> list[dict]:
    """Trains, or goes on training, every run; one row a model and variant."""
    configs = {}
    for model in arguments.models.split(","):
        for variant in arguments.variants.split(","):
            config = load_card(arguments.config, model if variant == "gated" else f"{model}-{variant}", settings)
            if variant != "gated":
                config.model.gater.pretrained = ""  # there is no gater to start from it
            validate(config, jax.device_count())
            configs[model, variant] = config, abstract_model(config.model)  # mistakes show before anything is trained

    rows = []
    for (model, variant), (config, network) in configs.items():
        results = []
        for seed in range(arguments.seeds):
            config.seed = seed
            workdir = arguments.out / f"{model}-{variant}-{seed}"
            print(f"== {model} {variant}, seed {seed} ({workdir})", flush=True)
            try:
                result = train(config, workdir)
            except NonFiniteError as error:
                print(error, flush=True)
                continue
            if not result["finished"]:
                sys.exit("Interrupted; the same command goes on.")
            results.append(result)
        macs = MacCounter(network, config.data.image_size)
        used = statistics.mean([result.get("macs", 1.0) for result in results] or [1.0])
        rows.append(
            {
                "model": model,
                "variant": variant,
                "top1": [result["top1"] for result in results],
                "diverged": arguments.seeds - len(results),
                "parameters": count_parameters(network),
                "macs": macs.gater + used * macs.dense,
                "gates_on": [result["gates_on"] for result in results if "gates_on" in result],
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a run card, configs/X.py")
    parser.add_argument("--models", required=True, help="comma-separated, e.g. resnet20,resnet56")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated (default: all five)")
    parser.add_argument("--seeds", type=positive, default=1, help="runs of each (default: 1)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of all runs")
    arguments = parser.parse_args()
    try:
        rows = run_study(arguments, parse_settings(arguments.set))
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nEnded at once; the same command goes on.")
    text = table(rows)
    (arguments.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nWrote {arguments.out}/table.md")
    if not any(row["top1"] for row in rows):
        return
    draw(rows, arguments.out / "comparison.png")
    print(f"Wrote {arguments.out}/comparison.png")


if __name__ == "__main__":
    main()
