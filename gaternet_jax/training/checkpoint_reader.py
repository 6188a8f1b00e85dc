"""Reading one checkpoint (Orbax), and telling a damaged one from one of another model."""

import contextlib
import json
import logging
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from gaternet_jax.errors import UserError

SETTLE_SECONDS = 1.0  # a process that deletes or replaces a checkpoint changes a file of it within this time


class DamagedError(Exception):
    """Tells that a checkpoint's files are not as they were written; the message says how it shows."""


class ReplacedError(Exception):
    """Tells that a checkpoint was deleted or replaced, by the run that trains there, while it was read."""


def read_metadata(path: Path) -> dict:
    """Reads what a checkpoint says of itself: `window`, `metrics`, `shapes` of the model and `checksums` of its parts.

    Raises:
        DamagedError: it cannot be read, or is not what was written.
    """
    try:
        # Orbax's checkpointables_metadata would open every array besides.
        metadata = json.loads((path / "_CHECKPOINT_METADATA").read_bytes())["custom_metadata"]
        written = metadata["checksums"].pop("metadata", None)  # None: of a version that did not write it
        right = written in (None, checksum_of_metadata(metadata))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"its metadata cannot be read ({type(error).__name__}: {error})") from None
    if not right:
        raise DamagedError("its metadata does not match its checksum")
    return metadata


def read_checkpoint(path: Path, like: dict) -> dict:
    """Reads parts of a checkpoint.

    Args:
        path: its folder.
        like: trees of arrays by the parts' names; what is read has their structure and is placed as they are.

    Raises:
        DamagedError: some of it cannot be read, or is not what was written.
        UserError: it is whole, and of another model.
    """
    metadata = read_metadata(path)
    _check_parts(path, metadata, like)
    parts = _quietly(lambda: ocp.load_checkpointables(str(path), jax.tree.map(_abstract, like)))
    changed = [name for name, part in parts.items() if checksum(part) != metadata["checksums"][name]]
    if changed:
        raise DamagedError(f"the contents of {' and '.join(changed)} do not match their checksums")
    return parts


def _abstract(leaf: Any) -> Any:
    return (
        leaf if isinstance(leaf, np.ndarray) else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    )


def _check_parts(path: Path, metadata: dict, like: dict) -> None:
    """Refuses missing parts and wrong shapes. Orbax takes these for damage; those noted at the save tell them apart."""
    checkpoint = f"checkpoint {path.name} in {path.parent}"
    if missing := sorted(like.keys() - metadata["checksums"].keys()):
        raise UserError(f"{checkpoint} has no {' and '.join(missing)}: it holds a model, not a run that can go on")
    wanted = shapes(like["model"])
    saved = metadata.get("shapes", wanted)  # a version that did not write them: Orbax will say that they differ
    differing = [
        f"{name}: {saved.get(name, 'absent')} in the checkpoint, {wanted.get(name, 'absent')} in the model"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differing:
        more = f"\n  and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(f"{checkpoint} is of another model:\n  " + "\n  ".join(differing[:5]) + more)


def checksum(tree: Any) -> int:
    """Computes the CRC-32 of all arrays of a tree, in order, which shows that what was read is what was written."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(jax.device_get(leaf)).tobytes(), total)
    return total


def checksum_of_metadata(metadata: dict) -> int:
    """Computes the CRC-32 of what a checkpoint says about itself, without this very number."""
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def shapes(tree: Any) -> dict[str, list[int]]:
    """Gives the shapes of all arrays of a tree by their paths."""
    return {
        ".".join(str(getattr(key, "key", key)) for key in path): list(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def unless_replaced(path: Path, read: Callable[[], Any]) -> Any:
    """Reads a checkpoint that another process may delete or replace meanwhile.

    Raises:
        DamagedError: from `read`, if the files stay as they are.
        ReplacedError: `read` failed, and they do not.
    """
    before = _files(path)
    try:
        return read()
    except DamagedError:
        deadline = time.monotonic() + SETTLE_SECONDS
        while (unchanged := _files(path) == before) and time.monotonic() < deadline:
            time.sleep(SETTLE_SECONDS / 20)
        if unchanged and before:
            raise
        raise ReplacedError from None


def _files(path: Path) -> list[tuple]:
    """Lists all files and folders of a checkpoint, none if it is not there; another one's are others."""
    found = []
    for file in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):  # deleted just now
            stat = file.stat()
            found.append((str(file), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return sorted(found)


def _quietly(read: Callable[[], Any]) -> Any:
    """Reads by Orbax; whatever it and TensorStore meet in broken files becomes a DamagedError."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda args: None if _is_late_callback(args.exc_value) else hook(args)
    try:
        found = read()
    except Exception as error:
        # What Orbax leaves behind would go on complaining, in hundreds of lines, from threads of TensorStore.
        warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        while error.__cause__ is not None:
            error = error.__cause__
        raise DamagedError(str(error).strip().partition("\n")[0][:200] or type(error).__name__) from None
    sys.unraisablehook = hook
    return found


def _is_late_callback(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
