"""Accuracy of trained models against measured time, in every mode of inference: a table and a figure.

    python -m benchmarks.accuracy_time --workdirs runs/digits runs/digits-half --out=accuracy_time.png

Calibrates on each run's training split and predicts its whole evaluation split. Time is that of one batch, all models
and modes in every round, medians; the masked model as XLA compiles it is the baseline, and the gater is always
included. Beside top-1 stand the multiply-accumulates, and how far the logits are from the masked model's.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks.inference import masked, medians
from gaternet_jax.cli.command_line import command_line
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.inference.calibration import read_split
from gaternet_jax.inference.predictor import Predictor
from gaternet_jax.models.gaternet import GaterNet, Outputs
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.training.checkpoint import load_model
from gaternet_jax.workdir import load_config

MODES = ("dense", "compact", "specialists", "dynamic", "auto")
LIMIT = 10000  # images of a split
MARKERS = dict(zip(("masked", *MODES), "osD^vP", strict=True))


def predictors(model: GaterNet, data: Any, seen: np.ndarray, batch_size: int) -> dict[str, Predictor]:
    """Of every mode that suits the model and the batch size."""
    modes = MODES if model.gate_sites else ("dense",)
    skipped = {"specialists"} if batch_size == 1 or model.gater is None else set()
    return {
        mode: Predictor(model, mode, seen, batch_sizes=(batch_size,), data=data)
        for mode in modes
        if mode not in skipped
    }


def mean_macs(model: GaterNet, gates: Any, image_size: int) -> float:
    """Of one image, gater included."""
    counter = MacCounter(model, image_size)
    return counter.gater + float(np.mean(counter.count(gates))) if model.gate_sites else counter.dense


@command_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdirs", type=Path, nargs="+", required=True, help="of finished runs")
    parser.add_argument("--data_dir", default="", help="folder of prepared datasets (default: the runs')")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("accuracy_time.png"), help="the figure")
    arguments = parser.parse_args()
    runs, rows, images = {}, [], np.empty(0)
    for workdir in arguments.workdirs:
        config = load_config(workdir)
        config.data.data_dir = arguments.data_dir or config.data.data_dir
        model, data = load_model(workdir, tell=True), config.data
        seen, _ = read_split(workdir, config, data.train_split, LIMIT)
        unseen, labels = read_split(workdir, config, data.eval_split, LIMIT)
        images = np.resize(unseen, (arguments.batch_size, *unseen.shape[1:]))
        baseline = masked(model)
        parts = np.array_split(unseen, range(arguments.batch_size, len(unseen), arguments.batch_size))
        outputs = [jax.device_get(baseline(normalize(jnp.asarray(part), data))) for part in parts]
        joined: list[Any] = [np.concatenate(arrays) for arrays in zip(*outputs, strict=True)]
        expected = Outputs(*joined)
        macs = mean_macs(model, expected.gates, data.image_size)
        runs[workdir.name, "masked"] = lambda x, run=baseline, data=data: run(normalize(x, data))
        rows.append((workdir.name, "masked", expected.logits, expected, labels, macs, "masked"))
        for mode, predictor in predictors(model, data, seen, arguments.batch_size).items():
            print(f"{workdir.name}: {mode} ...", file=sys.stderr, flush=True)
            found = predictor(unseen)
            runs[workdir.name, mode] = functools.partial(Predictor.__call__, predictor)
            chosen = predictor.chosen[arguments.batch_size]
            rows.append((workdir.name, mode, found.logits, expected, labels, macs, chosen))
    seconds = medians(runs, images, arguments.rounds)
    print(f"| run | mode | ms per batch of {arguments.batch_size} | speed-up | top-1 | MACs, M | largest difference |")
    print("|--|--|--:|--:|--:|--:|--:|")
    axes: Any = (figure := Figure((6.4, 4.4), layout="constrained")).subplots()
    for name, mode, logits, expected, labels, macs, chosen in rows:
        taken, top1 = seconds[name, mode], float((logits.argmax(1) == labels).mean())
        difference = np.abs(logits - expected.logits).max()
        label = mode if mode == chosen else f"{mode} ({chosen})"
        print(
            f"| {name} | {label} | {taken * 1e3:.2f} | {seconds[name, 'masked'] / taken:.2f} | {top1:.2%} | "
            f"{macs / 1e6:.2f} | {difference:.1e} |"
        )
        if mode != "auto":
            number = list(dict.fromkeys(row[0] for row in rows)).index(name)
            axes.plot(taken * 1e3, 100 * top1, MARKERS[mode], color=f"C{number}", markersize=8, alpha=0.8)
    for mode, marker in MARKERS.items():
        if any(row[1] == mode != "auto" for row in rows):
            axes.plot([], [], marker, color="0.4", label=mode)
    for number, name in enumerate(dict.fromkeys(row[0] for row in rows)):
        axes.plot([], [], "-", color=f"C{number}", linewidth=4, label=name)
    axes.set(xlabel=f"milliseconds per batch of {arguments.batch_size}, measured", ylabel="top-1, %")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(arguments.out, dpi=150)
    print(f"\nWrote {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
