"""What a run remembers of its dataset, and the check that another one is the same."""

import dataclasses
import unicodedata
from collections.abc import Sequence

from gaternet_jax.errors import UserError

LISTED = 5  # classes that a message names


@dataclasses.dataclass(frozen=True)
class DatasetRecord:
    """Holds what identifies a dataset, wherever it lies.

    Attributes:
        name: NAME or NAME/CONFIG, as data.name.
        version: of TFDS's three numbers; "" where it is not known.
        classes: their names, by label; "class 0" and so on where they are not known.
        images: the number in each split; empty where it is not known.
        digest: of the classes, and of the number and size of each split's images; "" where it is not known.
    """

    name: str
    version: str
    classes: tuple[str, ...]
    images: dict[str, int]
    digest: str

    @property
    def names_classes(self) -> bool:
        """Tells whether the names of the classes are known."""
        return self.classes != number_classes(len(self.classes))


def number_classes(count: int) -> tuple[str, ...]:
    """Stands in for names of classes that are not known."""
    return tuple(f"class {label}" for label in range(count))


def check_same_dataset(run: DatasetRecord, found: DatasetRecord, *, training: bool = False) -> list[int]:
    """Checks that the dataset that was found is that of a run, or for all but training has some of its classes.

    Args:
        run: what the run remembers.
        found: what is there.
        training: the run is to go on with it.

    Returns:
        The run's label for each class of the dataset that was found.

    Raises:
        UserError: it has a class that the run does not know; or, for training, other classes, images or splits.
    """
    known = tuple(unicodedata.normalize("NFC", name) for name in run.classes)
    if not run.names_classes and len(known) == len(found.classes):
        return list(range(len(known)))
    if (training and known != found.classes) or not set(found.classes) <= set(known):
        raise UserError(_other_classes(run.name, known, found, training))
    if training and not run.digest and run.name != found.name:
        raise UserError(
            f"the run was trained on '{run.name}', and has no dataset.json to tell whether '{found.name}' is the same; "
            f"give --config.data.name={run.name}, or another --workdir"
        )
    if training and run.digest not in ("", found.digest):
        raise UserError(
            f"the run was trained on {_describe(run)}; this is {_describe(found)}, with images of another number or "
            "size. Give those of the run, or another --workdir; if they are the same images, encoded anew, delete "
            "dataset.json in the workdir"
        )
    return [known.index(name) for name in found.classes]


def _other_classes(name: str, known: Sequence[str], found: DatasetRecord, training: bool) -> str:
    if training:
        pairs = zip([*known, "(none)"], [*found.classes, "(none)"], strict=False)
        label, (ours, theirs) = next((label, pair) for label, pair in enumerate(pairs) if pair[0] != pair[1])
        first = f"class {label} is '{ours}' in the run, but '{theirs}' here"
    else:
        label = next(label for label, name in enumerate(found.classes) if name not in known)
        first = f"class {label} of the dataset, '{found.classes[label]}', is none of the run's"
    return (
        f"dataset '{found.name}' has other classes than the run ('{name}'): the run knows {_abbreviate(known)}; the "
        f"dataset has {_abbreviate(found.classes)}; first difference: {first}. Give the run's own dataset"
        + (", or another --workdir" if training else ", or one of some of its classes, e.g. by --data_dir")
    )


def _abbreviate(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > LISTED else ""
    return f"{len(names)} ({', '.join(names[:LISTED])}{more})"


def _describe(record: DatasetRecord) -> str:
    images = ", ".join(f"{number:,} {split}" for split, number in record.images.items())
    return f"'{record.name}' {record.version} ({images} images)"
