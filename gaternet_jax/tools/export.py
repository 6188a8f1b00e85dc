"""Writes a trained model into one file that runs without this package.

    python -m gaternet_jax.tools.export --workdir=runs/cifar10 --out=cifar10.zip     for JAX (StableHLO)
    python -m gaternet_jax.tools.export --workdir=runs/cifar10 --out=cifar10.onnx    for ONNX Runtime

Takes uint8 images and returns probabilities, labels and gates; see docs/export.md.
"""

import argparse
from pathlib import Path
from typing import Literal

from gaternet_jax.cli.command_line import command_line
from gaternet_jax.errors import UserError, check_choice
from gaternet_jax.paths import expand_arguments

FORMATS = ("stablehlo", "onnx")


def export(
    workdir: Path,
    out: Path,
    format: str,
    checkpoint: Literal["best", "latest"] | int = "best",
) -> None:
    """Exports the model of a run, of a conversion or of a compaction.

    Args:
        workdir: of the run.
        out: the file to write.
        format: one of FORMATS.
        checkpoint: which one of the run's.

    Raises:
        UserError: no run there, `out` is there already or cannot be written, or the model cannot be exported.
    """
    from gaternet_jax.inference.artifact import export_onnx, export_stablehlo
    from gaternet_jax.training.checkpoint import load_model
    from gaternet_jax.workdir import load_config, load_labels

    check_choice("format", format, FORMATS)
    if out.exists():
        raise UserError(f"{out} is there already; choose another --out, or delete it")
    config, labels = load_config(workdir), load_labels(workdir)
    model = load_model(workdir, checkpoint, tell=True)
    if format == "onnx":
        export_onnx(model, config, labels, out)
    else:
        export_stablehlo(model, config, labels, out)


def checkpoint(text: str) -> str | int:
    if text in ("best", "latest"):
        return text
    if text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is neither best, nor latest, nor a step")


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run, a conversion or a compaction")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--format", choices=FORMATS, help="default: onnx if --out ends in .onnx, else stablehlo")
    parser.add_argument(
        "--checkpoint", type=checkpoint, default="best", help="best (default) | latest | the number of a step"
    )
    arguments = parser.parse_args(expand_arguments(argv))
    out = arguments.out
    format = arguments.format or ("onnx" if out.suffix == ".onnx" else "stablehlo")
    export(arguments.workdir, out, format, arguments.checkpoint)
    print(f"Wrote {out} ({format}, {out.stat().st_size / 1e6:.1f} MB)")
    if format == "stablehlo":
        print(f"How to load it: unzip -p {out} README.txt")


if __name__ == "__main__":
    main()
