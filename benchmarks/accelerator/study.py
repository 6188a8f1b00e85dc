"""Runs of the ledger in the time that is left; an unfinished one goes along, to be gone on with elsewhere."""

import json
import shutil
import tarfile
from pathlib import Path

from benchmarks.accelerator.results import Results, write_json
from benchmarks.ledger import DEFAULTS, FOLDER, load
from benchmarks.study import choose, study

SPARE = 20.0  # seconds that are left for writing
LIMIT = 16 * 2**20  # bytes; a larger unfinished run stays where it is


def run(results: Results, scratch: Path, data_dir: str, tiny: bool) -> None:
    """Trains runs of the study, in their order.

    Args:
        results: study.json gets the entries of finished runs, unfinished.tar the folder of one that time cut short.
        scratch: folder of the runs' own folders.
        data_dir: folder of prepared datasets.
        tiny: a study of seconds.
    """
    entries, unfinished, ledger = results.folder / "study.json", results.folder / "unfinished.tar", scratch / "ledger"
    ledger.mkdir(parents=True, exist_ok=True)
    if (FOLDER / DEFAULTS).exists():
        shutil.copy(FOLDER / DEFAULTS, ledger)
    if entries.exists():
        for entry in json.loads(entries.read_text(encoding="utf-8")):
            write_json(ledger / f"{entry['name']}.json", entry)
    if unfinished.exists():
        with tarfile.open(unfinished) as archive:
            archive.extractall(scratch, filter="data")
    minutes = (results.seconds_left() - SPARE) / 60
    try:
        study(choose("tiny", "*gated*") if tiny else choose("cifar10"), scratch, minutes, ledger, data_dir)
    finally:
        write_json(entries, load(ledger))
        _pack(scratch, unfinished)


def _pack(scratch: Path, target: Path) -> None:
    """Keeps the folder of the run that was begun last and is not finished."""
    target.unlink(missing_ok=True)
    begun = [path for path in scratch.iterdir() if (path / "checkpoints").is_dir() and not (path / "finished").exists()]
    if not begun:
        return
    last = max(begun, key=lambda path: (path / "metrics.jsonl").stat().st_mtime)
    part = target.with_suffix(".part")
    with tarfile.open(part, "w") as archive:
        archive.add(last, last.name)
    if part.stat().st_size <= LIMIT:
        part.replace(target)
    else:
        part.unlink()
        print(f"{last} is too large to be taken along; it stays there")
