"""Looks inside a gated model: which filters open, for which images and classes.

    python -m gaternet_jax.tools.analyze --workdir=runs/cifar10
    python -m gaternet_jax.tools.analyze --workdir=runs/cifar10 --images=holiday      (image files instead of a split)

Writes statistics, figures and a page (report.html) to WORKDIR/analysis; docs/analysis.md says what each file holds.
"""

import argparse
from pathlib import Path

from gaternet_jax.cli.command_line import command_line, positive
from gaternet_jax.errors import not_installed
from gaternet_jax.paths import expand_arguments


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run or a conversion")
    parser.add_argument("--split", help="of the run's dataset, or a part: test, train[:5000] (default: its eval_split)")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="image files instead; sub-folders name classes")
    parser.add_argument("--out", type=Path, help="folder to write to (default: WORKDIR/analysis)")
    parser.add_argument("--compare", type=Path, metavar="WORKDIR2", help="a second run; figures get two columns")
    parser.add_argument("--data_dir", default="", help="folder of the prepared datasets (default: the run's)")
    parser.add_argument("--filters", type=positive, default=16, help="filters forced shut and open (default: 16)")
    parser.add_argument("--sample", type=positive, default=500, help="images they are forced for (default: 500)")
    arguments = parser.parse_args(expand_arguments(argv))
    try:
        from gaternet_jax.analysis.pipeline import Options, analyze
    except ModuleNotFoundError as error:
        raise not_installed("tools.analyze", str(error.name), "analysis") from None
    options = Options(
        split=arguments.split,
        images=arguments.images,
        data_dir=arguments.data_dir,
        filters=arguments.filters,
        sample=arguments.sample,
    )
    out = arguments.out or arguments.workdir / "analysis"
    facts = analyze(arguments.workdir, out, options, arguments.compare)
    print("\n".join(facts))
    print(f"Open {out / 'report.html'} in a browser")


if __name__ == "__main__":
    main()
