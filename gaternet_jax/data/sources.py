"""Lists the images of a folder of class folders, and those of ImageNet's tar archives."""

import contextlib
import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gaternet_jax.data.image_files import ImageFile
from gaternet_jax.errors import UserError
from gaternet_jax.progress import progress_bar

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
SPLITS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}  # and how folders spell them
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
LAYOUT = (
    "expected train/CLASS/IMAGE and test/CLASS/IMAGE in it (or validation/CLASS/IMAGE, or both), with images named "
    + ", ".join(EXTENSIONS)
)


class Listing(NamedTuple):
    """The images of a source.

    Attributes:
        classes: names, by label.
        splits: the images of each split.
        digest: of all paths, sizes and modification times.
        ignored: paths of files that are no images, by their names.
    """

    classes: list[str]
    splits: dict[str, list[ImageFile]]
    digest: str
    ignored: list[str]


def list_folder(root: Path) -> Listing:
    """Lists root/SPLIT/CLASS/**/IMAGE; hidden folders are passed over, links followed.

    Raises:
        UserError: another layout, a class without training images, or a folder that cannot be read.
    """
    try:
        return _list_folder(root)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


def _list_folder(root: Path) -> Listing:
    folders = _split_folders(root)
    classes = sorted(_folders_in(folders["train"]))
    if not classes:
        raise UserError(f"{folders['train']} has no folders of classes; {LAYOUT}")
    for name in classes:
        _check_class_name(name, folders["train"])
    class_folders = [(split, name) for split in folders for name in sorted(_folders_in(folders[split]))]
    splits: dict[str, list[ImageFile]] = {split: [] for split in folders}
    ignored = [str(path) for folder in folders.values() for path in folder.iterdir() if not path.is_dir()]
    digest = hashlib.sha256()
    with progress_bar(f"Listing {root}", len(class_folders), unit="class") as bar:
        for split, name in class_folders:
            folder = folders[split] / name
            if name not in classes:
                raise UserError(
                    f"{folder} is of a class that {folders['train']} does not have, so that no model can learn it; "
                    "add training images of it, or remove that folder"
                )
            images, others = _list_class(folders[split], folder, classes.index(name), f"{split}/", digest)
            if not images and split == "train":
                raise UserError(
                    f"{folder} has no images, so that this class cannot be learnt; add some "
                    f"({', '.join(EXTENSIONS)}), or remove that folder from every split"
                )
            splits[split] += images
            ignored += others
            bar.update()
    for split, images in splits.items():
        if not images:
            raise UserError(f"{folders[split]} has no images; {LAYOUT}")
    return Listing(classes, splits, digest.hexdigest(), ignored)


def _split_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; {LAYOUT}")
    there = _folders_in(root)
    found = {split: [name for name in names if name in there] for split, names in SPLITS.items()}
    if len(found["validation"]) > 1:
        raise UserError(f"{root} has both validation and val, two names of the same split; rename or remove one")
    folders = {split: root / names[0] for split, names in found.items() if names}
    if "train" not in folders or len(folders) == 1:
        raise UserError(f"{root} has the folders {', '.join(sorted(there)) or '(none)'}; {LAYOUT}")
    return folders


def _folders_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _check_class_name(name: str, folder: Path) -> None:
    # Names are kept in UTF-8 text files, one a line, from which TFDS strips blanks.
    not_utf8 = any("\ud800" <= letter <= "\udfff" for letter in name)
    if name.splitlines() != [name] or name.strip() != name or not_utf8:
        raise UserError(
            f"the class folder {name!r} in {folder} cannot name a class: line breaks, blanks at either end and bytes "
            "that are not UTF-8 cannot be kept; rename it in every split"
        )


def _list_class(base: Path, folder: Path, label: int, prefix: str, digest) -> tuple[list[ImageFile], list[str]]:
    images, others = [], []
    for entry in sorted(_walk(str(folder)), key=lambda entry: entry.path):
        if entry.name.startswith(".") or not entry.name.lower().endswith(EXTENSIONS):
            others.append(entry.path)
            continue
        try:
            size, modified = entry.stat().st_size, entry.stat().st_mtime_ns
        except FileNotFoundError:  # a link that leads nowhere; it will be among the corrupt ones
            size, modified = 0, 0
        name = os.path.relpath(entry.path, base)
        images.append(ImageFile(str(base), name, label, size))
        digest.update(os.fsencode(f"{prefix}{name}\0{size}\0{modified}\n"))
    return images, others


def _walk(folder: str, above: frozenset[str] = frozenset()) -> Iterator[os.DirEntry]:
    here = os.path.realpath(folder)
    if here in above:  # a link to a folder around it
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                yield entry
            elif not entry.name.startswith("."):
                yield from _walk(entry.path, above | {here})


def list_train_tar(path: Path, synsets: list[str]) -> list[ImageFile]:
    """Lists ILSVRC2012_img_train.tar, a tar of one tar per synset, by reading headers only.

    Args:
        path: the archive.
        synsets: names, by label.

    Raises:
        UserError: no such archive, another one, or one that ends early.
    """
    labels = {f"{synset}.tar": label for label, synset in enumerate(synsets)}
    images = []
    with progress_bar(f"Listing {path.name}", len(labels), unit="synset") as bar:
        for outer, member in _members(path):
            name = _base_name(member)
            if name not in labels:
                raise UserError(
                    f"{path} holds {member.name}; expected {synsets[0]}.tar and so on, one archive per ImageNet-1k "
                    "synset: give ILSVRC2012_img_train.tar with --train_tar"
                )
            inner: Any = outer.extractfile(member)
            with _open_tar(inner, f"{name} in {path}") as archive:
                for image in filter(_is_image, archive):
                    offset = member.offset_data + image.offset_data
                    images.append(ImageFile(str(path), _base_name(image), labels[name], image.size, offset))
            bar.update()
    return images


def list_validation_tar(path: Path, labels: list[int]) -> list[ImageFile]:
    """Lists ILSVRC2012_img_val.tar.

    Args:
        path: the archive.
        labels: of ILSVRC2012_val_00000001.JPEG and so on.

    Raises:
        UserError: as `list_train_tar`.
    """
    images = []
    for _, member in _members(path):
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", _base_name(member))
        if match is None or not 1 <= int(match[1]) <= len(labels):
            raise UserError(
                f"{path} holds {member.name}; expected ILSVRC2012_val_00000001.JPEG to _{len(labels):08}: give "
                "ILSVRC2012_img_val.tar with --validation_tar"
            )
        images.append(ImageFile(str(path), match[0], labels[int(match[1]) - 1], member.size, member.offset_data))
    return images


def _members(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    with file, _open_tar(file, str(path)) as archive:
        for member in filter(_is_image, archive):
            yield archive, member


def _is_image(member: tarfile.TarInfo) -> bool:
    """Whether it is a file that was meant to be there, not what macOS puts beside it."""
    return member.isfile() and not _base_name(member).startswith(".")


def _base_name(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2]  # people pack archives anew: ./NAME, train/NAME


@contextlib.contextmanager
def _open_tar(file: BinaryIO, archive: str) -> Iterator[tarfile.TarFile]:
    try:
        start = file.read(max(map(len, COMPRESSED)))
        file.seek(0)
        for magic, program in COMPRESSED.items():
            if start.startswith(magic):
                raise UserError(f"{archive} is compressed; its images are read in place: unpack it first by {program}")
        with tarfile.open(fileobj=file, mode="r:") as opened:
            yield opened
    except tarfile.TarError as error:
        raise UserError(f"{archive} is not a whole tar archive: {error}; fetch it again") from None
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror or error}") from None
