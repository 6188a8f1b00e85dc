"""Classifies image files with a trained model.

    python -m gaternet_jax.tools.predict --workdir=runs/cifar10 cat.png holiday/*.jpg

Any format that Pillow reads, any size: the shorter side is brought to the model's size and the centre is taken;
colour becomes gray or gray colour as the model needs it; transparency is dropped. A file that cannot be read is named,
the others are classified, and the exit code is 2.
"""

import argparse
import sys
from pathlib import Path

from gaternet_jax.command_line import command_line, positive
from gaternet_jax.errors import UserError
from gaternet_jax.paths import expand_arguments

BATCH_SIZE = 64
CALIBRATION_IMAGES = 1000  # of the run's training split


def predict(workdir: Path, paths: list[Path], top: int, mode: str = "dense") -> int:
    """Prints, of each image, its `top` most probable classes and the fraction of open gates.

    Returns:
        How many files could not be read; each is named on standard error.
    """
    import jax
    import numpy as np

    from gaternet_jax.checkpoint import load_model
    from gaternet_jax.data.images import read_files
    from gaternet_jax.inference.calibration import read_split
    from gaternet_jax.inference.predictor import Predictor
    from gaternet_jax.workdir import load_config, load_labels

    config, labels = load_config(workdir), load_labels(workdir)
    model = load_model(workdir, tell=True)
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
    unreadable = 0
    for start in range(0, len(paths), BATCH_SIZE):
        read = []
        for path in paths[start : start + BATCH_SIZE]:
            try:
                read.append((path, read_files([path], config.data, config.model.channels)))
            except UserError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                unreadable += 1
        if not read:
            continue
        outputs = predictor(np.concatenate([image for _, image in read]))
        for (path, _), logits, gates in zip(read, outputs.logits, outputs.gates, strict=True):
            classes = np.asarray(jax.nn.softmax(logits))
            print(f"{path}  (open gates {gates.mean():.1%})" if len(gates) else f"{path}")
            for label in np.argsort(-classes)[:top]:
                print(f"  {classes[label]:7.2%}  {labels[label]}")
    return unreadable


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run or a conversion")
    parser.add_argument("--top", type=positive, default=5, help="classes shown per image (default: 5)")
    parser.add_argument("--mode", default="dense", help="of the Predictor, see docs/inference.md (default: dense)")
    arguments = parser.parse_args(expand_arguments(argv))
    unreadable, images = predict(arguments.workdir, arguments.images, arguments.top, arguments.mode), arguments.images
    if unreadable:
        raise UserError(f"{unreadable} of {len(images)} images cannot be read; they are named above")


if __name__ == "__main__":
    main()
