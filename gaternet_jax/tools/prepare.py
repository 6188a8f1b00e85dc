"""Prepares datasets that the models can be trained on, as TFDS datasets of ArrayRecord files.

    python -m gaternet_jax.tools.prepare folder --root=IMAGES --data_dir=DIR --name=NAME
    python -m gaternet_jax.tools.prepare imagenet --train_tar=ILSVRC2012_img_train.tar \\
        --validation_tar=ILSVRC2012_img_val.tar --data_dir=DIR
    python -m gaternet_jax.tools.prepare convert --source=OTHER_DIR/NAME/VERSION --data_dir=DIR
    python -m gaternet_jax.tools.prepare stock --name=cifar10 --data_dir=DIR

folder: images in IMAGES/train/CLASS/ and IMAGES/test/CLASS/ (or validation, or both).
imagenet: ImageNet-1k of its two archives, which are read in place.
convert: a prepared dataset of TFRecord files.
stock: any dataset that TFDS knows; TFDS fetches and prepares it, and needs TensorFlow for that. Nothing else does.

Only a whole dataset is moved into place; after an interruption the same command goes on.
"""

import argparse
import importlib.util
from pathlib import Path

from gaternet_jax.cli.command_line import command_line, positive
from gaternet_jax.configs import card_names
from gaternet_jax.errors import UserError, not_installed
from gaternet_jax.paths import expand_arguments, quote


def prepare_stock(name: str, data_dir: Path) -> Path:
    """Lets TFDS fetch and prepare one of its own datasets.

    Raises:
        UserError: it is there in another format, no TensorFlow, no such dataset, or TFDS cannot prepare it.
    """
    import tensorflow_datasets as tfds

    from gaternet_jax.data.datasets import open_dataset, prepared_versions

    base, _, version = name.partition(":")
    for folder in prepared_versions(data_dir / base):
        if version in ("", folder.name):
            open_dataset(folder)
    if importlib.util.find_spec("tensorflow") is None:
        raise not_installed(f"preparing '{name}' by TFDS", "TensorFlow", "prepare")
    try:
        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"TFDS knows no dataset '{name}'; its catalog: https://www.tensorflow.org/datasets") from None
    except Exception as error:  # of the network, of archives, of instructions for fetching by hand
        raise UserError(f"TFDS cannot prepare '{name}' in {data_dir}: {error}") from None
    return Path(builder.data_dir)


def describe(folder: Path, data_dir: Path) -> str:
    """Describes what was prepared, in a line, and in another how to train on it."""
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(str(folder)).info
    splits = ", ".join(f"{split.num_examples:,} {name}" for name, split in info.splits.items())
    card = info.name.removesuffix("2012")
    if card not in card_names():
        card = f"folder --config.data.name={info.full_name.rpartition('/')[0]}"
    return f"{folder}: {splits} images\nNext: gaternet train --config={card} --data_dir={quote(data_dir)}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    folder = commands.add_parser("folder", help="a folder of class folders")
    folder.add_argument("--root", type=Path, required=True, help="folder with train/, and test/ or validation/ (val/)")
    folder.add_argument("--name", default="", help="of the dataset (default: made of the folder's name)")
    imagenet = commands.add_parser("imagenet", help="ImageNet-1k, of its two archives")
    imagenet.add_argument("--train_tar", type=Path, required=True, help="ILSVRC2012_img_train.tar")
    imagenet.add_argument("--validation_tar", type=Path, required=True, help="ILSVRC2012_img_val.tar")
    stock = commands.add_parser("stock", help="a dataset that TFDS knows")
    stock.add_argument("--name", required=True, help="its name there, e.g. cifar10")
    convert = commands.add_parser("convert", help="a prepared dataset of TFRecord files")
    convert.add_argument("--source", type=Path, required=True, help="its folder, NAME/VERSION")
    for command in (folder, imagenet):
        command.add_argument("--skip_corrupt", action="store_true", help="leave out images that cannot be read")
    for command in (folder, imagenet, convert):
        command.add_argument("--workers", type=positive, help="processes (default: one per core)")
    for command in (folder, imagenet, stock, convert):
        command.add_argument(
            "--data_dir",
            default="",
            help="folder of prepared datasets (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
        )
    return parser.parse_args(expand_arguments(argv))


def run(arguments: argparse.Namespace, data_dir: Path) -> Path:
    """Carries out a command; gives the folder of the dataset."""
    from gaternet_jax.data.prepare.folders import prepare_folder, prepare_imagenet
    from gaternet_jax.data.prepare.tfrecord import convert_tfrecords

    if arguments.command == "stock":
        return prepare_stock(arguments.name, data_dir)
    if arguments.command == "convert":
        return convert_tfrecords(arguments.source, data_dir, workers=arguments.workers)
    options = dict(skip_corrupt=arguments.skip_corrupt, workers=arguments.workers)
    if arguments.command == "folder":
        return prepare_folder(arguments.root, data_dir, arguments.name, **options)
    return prepare_imagenet(arguments.train_tar, arguments.validation_tar, data_dir, **options)


@command_line(interrupted="Interrupted. Nothing is lost: the same command goes on with the shards that are missing.")
def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    from gaternet_jax.data.datasets import resolve_data_dir

    data_dir = resolve_data_dir(arguments.data_dir)
    print(describe(run(arguments, data_dir), data_dir))


if __name__ == "__main__":
    main()
