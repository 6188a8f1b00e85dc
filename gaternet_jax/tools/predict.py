"""Classifies image files with a trained model.

    gaternet predict --workdir=runs/cifar10 cat.png holiday
    gaternet predict --workdir=runs/cifar10 --format=csv holiday > holiday.csv

Files, and folders with all images below them. Any format that Pillow reads, any size: the shorter side is brought to
the model's size and the centre is taken; colour becomes gray or gray colour as the model needs it; transparency is put
on the run's data.background. A file that cannot be read is named, the others are classified, and the exit code is 2.

text: for people. json: an array with an object per image: file, open_gates (a fraction; null without gates), classes
(label and probability, the most probable first). csv: the same, with a line per image and class, and its rank from 1.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gaternet_jax.cli.command_line import command_line, positive
from gaternet_jax.errors import UserError
from gaternet_jax.paths import expand_arguments

BATCH_SIZE = 64


class Prediction(NamedTuple):
    """Holds what a model says of an image.

    Attributes:
        file: the image.
        open_gates: fraction of the gates that are open; None of a model without gates.
        classes: labels and probabilities, the most probable first.
    """

    file: Path
    open_gates: float | None
    classes: list[tuple[str, float]]


def list_files(paths: Iterable[Path]) -> list[Path]:
    """Lists the image files among paths: files as they are, of folders all images below.

    Raises:
        UserError: a folder that cannot be read, or has no images.
    """
    from gaternet_jax.data.walk import IMAGES, find_images

    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        try:
            found = [Path(entry.path) for entry in find_images(path).images]
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
        if not found:
            raise UserError(f"{path} has no image files; looked for {IMAGES}")
        files += found
    return files


def predict(workdir: Path, files: list[Path], top: int, mode: str = "dense") -> Iterator[Prediction | UserError]:
    """Predicts files, batch by batch; a file that cannot be read gives the error that says why.

    Args:
        workdir: of a training run, a conversion or a compaction.
        files: image files.
        top: how many classes are told.
        mode: of the `Predictor`.
    """
    import jax
    import numpy as np

    from gaternet_jax.data.images import read_files
    from gaternet_jax.inference.predictor import Predictor
    from gaternet_jax.run import load_run

    run = load_run(workdir, tell=True)
    measured = mode != "dense"  # a handful of images is not worth the measurements
    predictor = Predictor.from_run(run, mode, batch_sizes=(min(len(files), BATCH_SIZE),), tune=measured)
    for start in range(0, len(files), BATCH_SIZE):
        read: list = []
        for file in files[start : start + BATCH_SIZE]:
            try:
                read.append((file, read_files([file], run.config.data, run.config.model.channels)))
            except UserError as error:
                yield error
        if not read:
            continue
        outputs = predictor(np.concatenate([image for _, image in read]))
        for (file, _), logits, gates in zip(read, outputs.logits, outputs.gates, strict=True):
            probabilities = np.asarray(jax.nn.softmax(logits))
            best = np.argsort(-probabilities)[:top]
            classes = [(run.labels[label], float(probabilities[label])) for label in best]
            yield Prediction(file, float(gates.mean()) if len(gates) else None, classes)


def readable(found: Iterable[Prediction | UserError], unreadable: list[UserError]) -> Iterator[Prediction]:
    """Passes predictions on; names the files that cannot be read, and collects why."""
    for prediction in found:
        if isinstance(prediction, UserError):
            print(f"error: {prediction}", file=sys.stderr, flush=True)
            unreadable.append(prediction)
        else:
            yield prediction


def print_text(predictions: Iterable[Prediction]) -> None:
    for file, open_gates, classes in predictions:
        print(f"{file}" if open_gates is None else f"{file}  (open gates {open_gates:.1%})")
        for label, probability in classes:
            print(f"  {probability:7.2%}  {label}")


def print_json(predictions: Iterable[Prediction]) -> None:
    print("[", end="")
    for number, (file, open_gates, classes) in enumerate(predictions):
        ranked = [{"label": label, "probability": round(probability, 6)} for label, probability in classes]
        content = {"file": str(file), "open_gates": open_gates, "classes": ranked}
        print(",\n" if number else "\n", json.dumps(content), sep="", end="")
    print("\n]")


def print_csv(predictions: Iterable[Prediction]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "rank", "label", "probability", "open_gates"])
    for file, open_gates, classes in predictions:
        for rank, (label, probability) in enumerate(classes, 1):
            writer.writerow([file, rank, label, f"{probability:.6f}", open_gates])


FORMATS = {"text": print_text, "json": print_json, "csv": print_csv}


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files, and folders of them")
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run or a conversion")
    parser.add_argument("--top", type=positive, default=5, help="classes told of each image (default: 5)")
    parser.add_argument("--mode", default="dense", help="of the Predictor, see docs/inference.md (default: dense)")
    parser.add_argument("--format", choices=FORMATS, default="text", help="text (default), json or csv")
    arguments = parser.parse_args(expand_arguments(argv))
    files, unreadable = list_files(arguments.images), []
    FORMATS[arguments.format](readable(predict(arguments.workdir, files, arguments.top, arguments.mode), unreadable))
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(files)} images cannot be read; they are named above")


if __name__ == "__main__":
    main()
