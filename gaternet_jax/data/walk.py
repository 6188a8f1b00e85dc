"""Finds the image files below a folder."""

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from gaternet_jax.data.decode import EXTENSIONS

IMAGES = "what Pillow reads, by the ends of names: .jpg, .png, .webp, .gif, .bmp, .tif, .avif and others"
SYSTEM_FOLDERS = (  # thumbnails, waste and the like, which systems and network storage put anywhere
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", ".hidden", "Thumbs", "__MACOSX"),
    *("$RECYCLE.BIN", "$Recycle.Bin", "RECYCLER", "System Volume Information", "lost+found", "__pycache__"),
)


class Found(NamedTuple):
    """Lists what lies below a folder, in the order of paths.

    Attributes:
        images: files that are images by their names.
        others: paths of all other files.
        passed_over: folders that are hidden or a system's, and were not looked into.
    """

    images: list[os.DirEntry]
    others: list[str]
    passed_over: list[str]


def find_images(folder: str | os.PathLike[str], *, deep: bool = True) -> Found:
    """Finds the images in a folder and, if `deep`, in the folders below it; links are followed.

    Raises:
        OSError: a folder cannot be read.
    """
    found = Found([], [], [])
    for entry in sorted(_walk(os.fspath(folder), found.passed_over, deep), key=lambda entry: entry.path):
        if is_image_name(entry.name) and not _is_special(entry):
            found.images.append(entry)
        else:
            found.others.append(entry.path)
    found.passed_over.sort()
    return found


def is_image_name(name: str) -> bool:
    """Tells whether a file is an image by its name: it is not hidden, and Pillow reads its kind."""
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def is_passed_over(name: str) -> bool:
    """Tells whether a folder of this name is hidden, or a system's own."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _walk(
    folder: str, passed_over: list[str], deep: bool, above: frozenset[str] = frozenset()
) -> Iterator[os.DirEntry]:
    here = os.path.realpath(folder)
    if here in above:  # a link to a folder around it
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _is_folder(entry):
                yield entry
            elif is_passed_over(entry.name):
                passed_over.append(entry.path)
            elif deep:
                yield from _walk(entry.path, passed_over, deep, above | {here})


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_special(entry: os.DirEntry) -> bool:
    """Tells whether reading a file could wait for ever (a pipe, a device)."""
    try:
        return not stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a link that leads nowhere: an image that cannot be read
        return False
