"""How batches are cut on this machine: by a short measurement, remembered in the user's cache folder.

Small networks want one thread for each of several microbatches, large ones all threads for one image.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from gaternet_jax.files import write_file
from gaternet_jax.inference.engines import Batching, cores

MICROBATCH_PIXELS = 8 * 32 * 32  # of all images of a microbatch, where nothing is measured
LARGE_PIXELS = 64 * 64  # images from this size on keep all cores busy one by one, where nothing is measured
ENOUGH_SECONDS, REPEATS = 0.1, 5  # of one candidate, at most


def usual_batching(engine: str, batch_size: int, image_size: int) -> Batching:
    """Chooses how batches are cut by a rule of thumb."""
    if jax.default_backend() != "cpu":
        return Batching(batch_size)
    number = cores()
    size = min(-(-batch_size // number), max(MICROBATCH_PIXELS // image_size**2, 1))
    if engine == "xla":  # while one microbatch waits, another goes on
        return Batching(size, min(-(-batch_size // size), 2 * number))
    if batch_size == 1 or image_size**2 >= LARGE_PIXELS:
        return Batching(1 if batch_size == 1 else size, 1, number if image_size**2 >= LARGE_PIXELS else 1)
    return Batching(size, min(-(-batch_size // size), number))


def candidates(engine: str, batch_size: int, image_size: int) -> list[Batching]:
    """Lists the ways to cut batches that may be fastest."""
    usual, number = usual_batching(engine, batch_size, image_size), cores()
    if jax.default_backend() != "cpu" or number == 1:
        return [usual]
    if engine == "xla":
        return list(dict.fromkeys([usual, Batching(batch_size)]))
    share = -(-batch_size // number)
    sizes = sorted({min(size, share) for size in (2, 4, 8, 16)}) if batch_size > 1 else []
    several = [Batching(size, min(-(-batch_size // size), number), 1) for size in sizes]
    alone = [Batching(min(batch_size, 16), 1, number)]
    return list(dict.fromkeys([usual, *several, *alone, *([Batching(1)] if batch_size == 1 else [])]))


def choose_batching(
    engine: str, images: Any, program: str, make: Callable[[Batching], Callable[[Any, int], Any]]
) -> Batching:
    """Chooses the fastest of the candidates for an engine.

    Args:
        images: a batch to measure with, [batch, size, size, channels].
        program: tells this program from others, in the file.
        make: gives what runs so many of the images.
    """
    found, path = candidates(engine, *images.shape[:2]), memory_path()
    if len(found) == 1:
        return found[0]
    version = importlib.metadata.version("onnxruntime" if engine == "onnxruntime" else "jax")
    digest = hashlib.sha256(program.encode()).hexdigest()[:16]
    key = " ".join(map(str, (platform.node(), cores(), engine, version, *images.shape, digest)))
    remembered = _read(path).get(key)
    for batching in found:
        if remembered == list(batching):
            return batching
    chosen = min(found, key=lambda batching: _seconds_per_image(batching, images, make(batching)))
    with contextlib.suppress(OSError):  # a folder that cannot be written only costs the measurement again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(_read(path) | {key: list(chosen)}, indent=1) + "\n", f".{os.getpid()}")
    return chosen


def _seconds_per_image(batching: Batching, images: Any, run: Callable[[Any, int], Any]) -> float:
    count = min(len(images), batching.microbatch * batching.at_once)
    run(images, count)  # compiles
    taken: list[float] = []
    while len(taken) < REPEATS and sum(taken) < ENOUGH_SECONDS:
        start = time.perf_counter()
        run(images, count)
        taken.append(time.perf_counter() - start)
    return min(taken) / count


def memory_path() -> Path:
    """Names the file in which choices are remembered."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "gaternet-jax" / "batching.json"


def _read(path: Path) -> dict[str, Any]:
    """Reads what is remembered; nothing where that cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
