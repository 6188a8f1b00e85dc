"""Classifies image files with a trained model.

    python -m gaternet_jax.tools.predict --workdir=runs/cifar10 cat.png holiday/*.jpg

Any format that Pillow reads, any size: the shorter side is brought to the model's size and the centre is taken;
colour becomes gray or gray colour as the model needs it; transparency is dropped.
"""

import argparse
import functools
import sys
from pathlib import Path

import jax
import numpy as np

from gaternet_jax.checkpoint import load_model
from gaternet_jax.config import Config
from gaternet_jax.data.augment import normalize
from gaternet_jax.data.images import center_box, read_box
from gaternet_jax.errors import UserError
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.workdir import load_config, load_labels

BATCH_SIZE = 64


def read_images(paths: list[Path], config: Config) -> np.ndarray:
    """Reads files as the model's training data was read.

    Returns:
        uint8 [N, H, W, C].

    Raises:
        UserError: a file that is missing or is not a whole image.
    """
    data, channels = config.data, config.model.channels
    choose = functools.partial(center_box, fraction=data.eval_crop)
    images = []
    for path in paths:
        try:
            encoded = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        images.append(
            read_box(encoded, choose, data.image_size, channels=channels, resize=data.resize, source=str(path))
        )
    return np.stack(images)


def predict(workdir: Path, paths: list[Path], top: int) -> str:
    """A table: per image its `top` most probable classes, and the fraction of open gates."""
    config, labels = load_config(workdir), load_labels(workdir)
    model = load_model(workdir)
    images = read_images(paths, config)
    graphdef, params, stats = split_model(model)

    @jax.jit
    def forward(images):
        outputs = merge_model(graphdef, params, stats)(normalize(images, config.data))
        return jax.nn.softmax(outputs.logits), outputs.gates.mean(-1)

    lines = []
    for start in range(0, len(paths), BATCH_SIZE):
        batch = images[start : start + BATCH_SIZE]
        missing = min(BATCH_SIZE, len(paths)) - len(batch)  # one size, one compilation
        probabilities, open_gates = jax.device_get(forward(np.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))))
        for path, classes, opened in zip(paths[start:], probabilities, open_gates, strict=False):
            gates = f"  (open gates {opened:.1%})" if model.gate_sites else ""
            lines.append(f"{path}{gates}")
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
    arguments = parser.parse_args(argv)
    try:
        print(predict(arguments.workdir, arguments.images, arguments.top))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
