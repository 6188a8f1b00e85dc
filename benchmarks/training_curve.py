"""Draws a run's metrics: loss, accuracy and open gates by step.

python -m benchmarks.training_curve --workdir=runs/cifar10 --out=docs/cifar10_resnet20.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt


def read_metrics(workdir: Path) -> dict[str, list[dict]]:
    """The lines of metrics.jsonl, by split."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {split: [line for line in lines if line["split"] == split] for split in ("train", "eval")}


def draw(workdir: Path, out: Path) -> None:
    metrics = read_metrics(workdir)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), constrained_layout=True)
    panels = (("loss", "loss"), ("top1", "top-1 accuracy"), ("gates_on", "open gates (fraction)"))
    for axis, (name, title) in zip(axes, panels, strict=True):
        for split, colour, marker in (("train", "#8da0cb", ""), ("eval", "#d95f02", "o")):
            lines = [line for line in metrics[split] if name in line]
            label = "test" if split == "eval" else "train (gates sampled)"
            steps, values = [line["step"] for line in lines], [line[name] for line in lines]
            axis.plot(steps, values, color=colour, marker=marker, markersize=4, label=label)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    gates = [line for line in metrics["eval"] if "gates_input_dependent" in line]
    if gates:
        steps, values = [line["step"] for line in gates], [line["gates_input_dependent"] for line in gates]
        axes[2].plot(steps, values, color="#1b9e77", marker="s", markersize=4, label="test: depend on the image")
        axes[2].set_ylim(0, 1)
        axes[2].set_title("gates (fraction)")
    axes[0].legend(frameon=False)
    axes[2].legend(frameon=False)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    draw(arguments.workdir, arguments.out)
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
