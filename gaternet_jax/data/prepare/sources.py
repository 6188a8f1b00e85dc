"""Lists the images of a folder of class folders, and those of ImageNet's tar archives."""

import contextlib
import hashlib
import itertools
import os
import re
import tarfile
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gaternet_jax.data.prepare.image_files import ImageFile
from gaternet_jax.data.walk import IMAGES, find_images, is_passed_over
from gaternet_jax.errors import UserError
from gaternet_jax.progress import progress_bar

SPLITS = {  # and how folders spell them, in either case
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
LAYOUT = (
    "expected train/CLASS/IMAGE and test/CLASS/IMAGE in it, or validation/CLASS/IMAGE (or valid, val, dev, eval), or "
    f"both; images are {IMAGES}"
)


class Listing(NamedTuple):
    """Lists the images of a source.

    Attributes:
        classes: names, by label.
        splits: the images of each split.
        digest: of all paths, sizes and modification times.
        ignored: paths of files that are no images, by their names.
        notes: a sentence for each kind of images that are left out.
    """

    classes: list[str]
    splits: dict[str, list[ImageFile]]
    digest: str
    ignored: list[str]
    notes: list[str]


def list_folder(root: Path) -> Listing:
    """Lists root/SPLIT/CLASS/**/IMAGE; folders that are hidden or a system's are passed over, links followed.

    Names of classes are compared and kept in Unicode's composed form (NFC): systems spell them in either.

    Raises:
        UserError: another layout, a class without training images, or a folder that cannot be read.
    """
    try:
        return _list_folder(root)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


def _list_folder(root: Path) -> Listing:
    folders = _split_folders(root)
    notes = _beside_splits(root, folders)
    loose = {split: find_images(folder, deep=False) for split, folder in folders.items()}
    class_folders = {split: _class_folders(folder) for split, folder in folders.items()}
    classes = sorted(class_folders["train"])
    if not classes:
        what = f", though {_count(loose['train'].images)} in itself" if loose["train"].images else ""
        raise UserError(f"{folders['train']} has no folders of classes{what}; {LAYOUT}")
    for split in [split for split in folders if not class_folders[split] and loose[split].images]:
        what = f"{folders[split]} has {_count(loose[split].images)}, but in no folder of a class"
        if len(folders) == 2:
            raise UserError(f"{what}; {LAYOUT}")
        notes.append(f"Left out: {what}, so that nothing tells what they show")
        del folders[split]
    splits: dict[str, list[ImageFile]] = {split: [] for split in folders}
    ignored = [path for split in folders for path in loose[split].others]
    passed_over = [path for split in folders for path in loose[split].passed_over]
    digest = hashlib.sha256()
    pairs = [(split, name) for split in folders for name in sorted(class_folders[split])]
    with progress_bar(f"Listing {root}", len(pairs), unit="class") as bar:
        for split, name in pairs:
            if name not in classes:
                raise UserError(
                    f"{class_folders[split][name][0]} is of a class that {folders['train']} does not have, so that no "
                    "model can learn it; add training images of it, or remove that folder"
                )
            images: list[ImageFile] = []
            for folder in class_folders[split][name]:
                found = find_images(folder)
                images += _image_files(folders[split], found.images, classes.index(name), f"{split}/", digest)
                ignored += found.others
                passed_over += found.passed_over
            if not images and split == "train":
                raise UserError(
                    f"{class_folders[split][name][0]} has no images, so that this class cannot be learnt; add some "
                    f"({IMAGES}), or remove that folder from every split"
                )
            splits[split] += images
            bar.update()
    for split, images in splits.items():
        if not images:
            raise UserError(f"{folders[split]} has no images; {LAYOUT}")
    if stray := [entry.path for split in folders for entry in loose[split].images]:
        notes.append(f"Left out: {_count(stray)} in no folder of a class, e.g. {stray[0]!a}")
    notes += _in_passed_over(passed_over)
    return Listing(classes, splits, digest.hexdigest(), ignored, notes)


def _split_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; {LAYOUT}")
    there = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_passed_over(path.name))
    folders = {}
    for split, names in SPLITS.items():
        found = sorted((name for name in there if name.lower() in names), key=lambda name: names.index(name.lower()))
        if len(found) > 1:
            raise UserError(f"{root} has both {' and '.join(found)}, names of the same split; rename or remove one")
        if found:
            folders[split] = root / found[0]
    if "train" not in folders or len(folders) == 1:
        raise UserError(f"{root} has the folders {', '.join(there) or '(none)'}; {LAYOUT}")
    return folders


def _beside_splits(root: Path, folders: dict[str, Path]) -> list[str]:
    """Gives notes of the images below `root` that are in no split."""
    notes, here = [], find_images(root, deep=False)
    if here.images:
        notes.append(f"Left out: {_count(here.images)} in no split, e.g. {here.images[0].path!a}")
    known = ", ".join(itertools.chain.from_iterable(SPLITS.values()))
    others = [path for path in sorted(root.iterdir()) if path.is_dir() and path not in folders.values()]
    for path in others:
        if not is_passed_over(path.name) and (images := _left_in(path)):
            notes.append(f"Left out: {str(path)!a} with {_count(images)}; it is no split (those are called {known})")
    return notes + _in_passed_over(here.passed_over)


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    """Finds the folders of each class; two names can be one class, spelt in two forms of Unicode."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not is_passed_over(path.name):
            _check_class_name(path.name, folder)
            found.setdefault(unicodedata.normalize("NFC", path.name), []).append(path)
    return found


def _check_class_name(name: str, folder: Path) -> None:
    # Names are kept in UTF-8 text files, one a line, from which TFDS strips blanks.
    not_utf8 = any("\ud800" <= letter <= "\udfff" for letter in name)
    if name.splitlines() != [name] or name.strip() != name or not_utf8:
        raise UserError(
            f"the class folder {name!r} in {folder} cannot name a class: line breaks, blanks at either end and bytes "
            "that are not UTF-8 cannot be kept; rename it in every split"
        )


def _image_files(base: Path, entries: list[os.DirEntry], label: int, prefix: str, digest) -> list[ImageFile]:
    images = []
    for entry in entries:
        try:
            size, modified = entry.stat().st_size, entry.stat().st_mtime_ns
        except OSError:  # a link that leads nowhere; it will be among the corrupt ones
            size, modified = 0, 0
        name = os.path.relpath(entry.path, base)
        images.append(ImageFile(str(base), name, label, size))
        digest.update(os.fsencode(f"{prefix}{name}\0{size}\0{modified}\n"))
    return images


def _in_passed_over(folders: list[str]) -> list[str]:
    held = [image for folder in folders for image in _left_in(folder)]
    names = ", ".join(sorted({Path(folder).name for folder in folders}))
    return (
        [f"Left out: {_count(held)} in folders that are hidden or a system's ({names}), e.g. {held[0]!a}"]
        if held
        else []
    )


def _left_in(folder: str | Path) -> list[str]:
    """Finds paths of the images in a folder that is not used; none if it cannot be read (lost+found)."""
    try:
        return [entry.path for entry in find_images(folder).images]
    except OSError:
        return []


def _count(images: Sequence[object]) -> str:
    return "1 image" if len(images) == 1 else f"{len(images):,} images"


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
    """Tells whether a member is a file that was meant to be there, not what macOS puts beside it."""
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
