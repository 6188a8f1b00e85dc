"""Classifies image files with a trained model.

    python -m gaternet_jax.tools.predict --workdir=runs/cifar10 cat.png holiday/*.jpg

Any format that Pillow reads, any size: the shorter side is brought to the model's size and the centre is taken;
colour becomes gray or gray colour as the model needs it; transparency is dropped.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

from gaternet_jax.checkpoint import load_model
from gaternet_jax.errors import UserError
from gaternet_jax.inference.calibration import read_split
from gaternet_jax.inference.predictor import MODES, Predictor
from gaternet_jax.paths import begin_command
from gaternet_jax.workdir import load_config, load_labels

BATCH_SIZE = 64
CALIBRATION_IMAGES = 1000  # of the run's training split


def predict(workdir: Path, paths: list[Path], top: int, mode: str = "dense") -> str:
    """A table: per image its `top` most probable classes, and the fraction of open gates."""
    config, labels = load_config(workdir), load_labels(workdir)
    model = load_model(workdir)
    calibration = None
    if mode in ("compact", "specialists"):
        calibration, _ = read_split(workdir, config, config.data.train_split, CALIBRATION_IMAGES)
    predictor = Predictor(
        model,
        mode,
        calibration,
        batch_sizes=(min(len(paths), BATCH_SIZE),),
        data=config.data,
        tune=mode != "dense",  # a handful of images is not worth the measurements
    )
    outputs = predictor(paths)
    lines = []
    for path, logits, gates in zip(paths, outputs.logits, outputs.gates, strict=True):
        classes = np.asarray(jax.nn.softmax(logits))
        lines.append(f"{path}  (open gates {gates.mean():.1%})" if len(gates) else f"{path}")
        lines += [f"  {classes[label]:7.2%}  {labels[label]}" for label in np.argsort(-classes)[:top]]
    return "\n".join(lines)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run or a conversion")
    parser.add_argument("--top", type=positive, default=5, help="classes shown per image (default: 5)")
    parser.add_argument("--mode", choices=MODES, default="dense", help="see inference/predictor.py (default: dense)")
    arguments = parser.parse_args(begin_command(argv))
    try:
        print(predict(arguments.workdir, arguments.images, arguments.top, arguments.mode))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
