"""Converts a released GaterNet checkpoint (PyTorch) into a folder that `load_model` takes.

    python -m gaternet_jax.tools.convert --checkpoint=FILE.pth --out=DIR

FILE.pth needs PyTorch to be read: pip install 'gaternet-jax[torch]'; FILE.safetensors does not. The authors' two state
dicts are taken, and one of a module with `backbone` and `gater`. Depth and class count are inferred.
"""

import argparse
import re
from pathlib import Path

from gaternet_jax.cli.command_line import command_line
from gaternet_jax.config import RunConfig, default
from gaternet_jax.data.record import number_classes
from gaternet_jax.errors import UserError, not_installed
from gaternet_jax.paths import expand_arguments, quote

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def read_pickle(path: Path) -> object:
    """Reads the contents of a PyTorch file; code in it is not run, hence only tensors are read.

    Raises:
        UserError: no PyTorch, no such file, or one that PyTorch cannot read safely.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist, or is a folder")
    try:
        import torch
    except ImportError:
        raise not_installed("reading a .pth file", "PyTorch", "torch") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises whatever its unpickler meets in a file of another kind
        if foreign := re.search(r"GLOBAL (\S+)|[Uu]nsupported class (\S+)", str(error)):
            raise UserError(
                f"{path} holds other Python objects than tensors ({foreign[1] or foreign[2]}); reading them could run "
                "code of the file. Save the state dict alone: torch.save(model.state_dict(), FILE)"
            ) from None
        raise UserError(f"{path} is not a PyTorch checkpoint of tensors: {error}") from None


def convert(checkpoint: Path, out: Path) -> RunConfig:
    """Writes `out`/config.json, labels.txt and checkpoints/0, or nothing if anything is wrong.

    Raises:
        UserError: `out` is not empty, or the checkpoint cannot be converted.
    """
    from gaternet_jax.models.released import convert_released, flatten_released, infer_model
    from gaternet_jax.models.safetensors import read_safetensors
    from gaternet_jax.training.checkpoint import Checkpoints
    from gaternet_jax.workdir import check_new_folder, save_config

    check_new_folder(out)
    read = read_safetensors if checkpoint.suffix == ".safetensors" else read_pickle
    tensors = flatten_released(read(checkpoint))
    config = default()
    config.model = infer_model(tensors, config.model)
    config.data.name = {10: "cifar10", 100: "cifar100"}.get(config.model.num_classes, "")
    params, stats = convert_released(tensors, config.model)
    classes = config.model.num_classes
    labels = CIFAR10_CLASSES if classes == 10 else list(number_classes(classes))
    save_config(config, labels, out)
    with Checkpoints(out) as checkpoints:
        checkpoints.save_model(params, stats)
    return config


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the released .pth file, or a .safetensors file")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    arguments = parser.parse_args(expand_arguments(argv))
    config = convert(arguments.checkpoint, arguments.out)
    print(f"Converted {config.model.backbone}-Gated ({config.model.num_classes} classes) into {arguments.out}")
    if config.data.name:
        print(f"Next: python -m gaternet_jax.main --workdir={quote(arguments.out)} --mode=evaluate")
    else:
        print("Its dataset is not known: write data.name in config.json, and the classes in labels.txt")
        print(f"Next: python -m gaternet_jax.tools.predict --workdir={quote(arguments.out)} IMAGE")


if __name__ == "__main__":
    main()
