"""Prints the models as a table: parameters, gates and multiply-accumulates (MACs).

    python -m gaternet_jax.tools.models
    python -m gaternet_jax.tools.models --models=resnet20,resnet56 --variants=last,wider,se

Only shapes are computed. CIFAR models: 32 x 32 images, 10 classes, ResNet-20 gater; ImageNet models: 224 x 224 images
(Inception-v4: 299 x 299), 1,000 classes, ResNet-18 gater. MACs per image are those of backbone and gater together,
with all gates open and with half of each layer's gates open.
"""

import argparse
import contextlib
import gc
import os
import sys
from collections.abc import Iterator

from gaternet_jax.cli.command_line import command_line
from gaternet_jax.paths import expand_arguments


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="comma-separated (default: all)")
    parser.add_argument("--variants", default="", help="comma-separated (default: all)")
    arguments = parser.parse_args(expand_arguments(argv))
    # Modules that are no pytrees are built several times as fast; without effect where Flax is imported already.
    os.environ.setdefault("FLAX_PYTREE_MODULE", "0")
    from tqdm import tqdm

    from gaternet_jax.model_table import HEADER, describe
    from gaternet_jax.models.registry import known_backbones
    from gaternet_jax.variants import BASELINES, PLACEMENTS

    every = ("plain", *PLACEMENTS, *(name for name in BASELINES if name != "plain"))
    variants = arguments.variants.split(",") if arguments.variants else every
    names = arguments.models.split(",") if arguments.models else known_backbones()
    names = tqdm(names, "Counting", disable=not sys.stderr.isatty())
    with without_collector():
        rows = [row for name in names for row in describe(name, variants)]
    widths = [max(len(row[i]) for row in [HEADER, *rows]) for i in range(len(HEADER))]
    for row in (HEADER, tuple("-" * width for width in widths), *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("| " + " | ".join(cells) + " |")


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Runs something short without the garbage collector, which looks through millions of live objects in vain.

    A quarter of the time of this command.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


if __name__ == "__main__":
    main()
