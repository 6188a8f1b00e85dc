"""Builds the folder of a dataset aside, shard by shard, and moves it into place when it is whole."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gaternet_jax.data.prepare.shards import Corrupt, Examples, Shard, Written, unwritable, write_shards
from gaternet_jax.errors import UserError
from gaternet_jax.files import locked, write_file

FORMAT = 2  # of the shards; raise it when their division or content changes: what is unfinished then starts anew
LISTED = 20  # corrupt images that a message names


@dataclass(frozen=True)
class Plan:
    """Says what a dataset is made of.

    Attributes:
        source: where its records come from, for messages.
        digest: changes when the source does.
        shards: gives, per split, the examples of each shard by the name of its file; called only if work is to do.
        finish: called with the folder of the shards and, per split, what they hold; writes the metadata.
        choices: the flags that give the dataset another place, for messages.
        unit: what an example is, for the progress bar.
    """

    source: str
    digest: str
    shards: Callable[[], Mapping[str, Mapping[str, Examples]]]
    finish: Callable[[Path, dict[str, list[Written]]], None]
    choices: str = "--data_dir"
    unit: str = "image"


def build(final: Path, plan: Plan, *, skip_corrupt: bool = False, workers: int | None = None) -> Path:
    """Builds the dataset `final`, or goes on with it after an interruption.

    Everything is written in a folder beside it, .preparing-VERSION, which has another depth than a dataset:

        plan.json     what is being built
        data/         the finished shards; becomes `final`
        notes/        what each of them holds
        corrupt.txt   images that cannot be read, with the reasons

    Args:
        final: .../NAME/VERSION.
        plan: what to build.
        skip_corrupt: leave out images that cannot be read.
        workers: processes; None for one per core, 1 for none but this.

    Returns:
        `final`.

    Raises:
        UserError: it is there, but made of something else; its images cannot be read, or the folder not be written.
        KeyboardInterrupt: see `write_shards`.
    """
    if final.exists():
        _check_same(final, plan)
        print(f"{final} is already prepared")
        return final
    work = final.with_name(f".preparing-{final.name}")
    try:
        with locked(work, plan.choices):
            _build_in(work, final, plan, skip_corrupt, workers or len(os.sched_getaffinity(0)))
            shutil.rmtree(work)
    except OSError as error:
        raise unwritable(final.parent, error) from None
    return final


def _check_same(final: Path, plan: Plan) -> None:
    try:
        before = json.loads((final / "plan.json").read_text())
    except (OSError, ValueError):
        raise UserError(
            f"{final} is there, but was not prepared by this command; remove it, or choose another {plan.choices}"
        ) from None
    if before["digest"] != plan.digest:
        now = "which has changed since" if before["source"] == plan.source else f"not from {plan.source}"
        raise UserError(
            f"{final} was prepared from {before['source']}, {now}; remove {final} to prepare it anew, or choose "
            f"another {plan.choices}"
        )


def _build_in(work: Path, final: Path, plan: Plan, skip_corrupt: bool, workers: int) -> None:
    _begin(work, plan)
    splits = {
        split: [Shard(work / "data" / name, work / "notes" / f"{name}.json", item) for name, item in examples.items()]
        for split, examples in plan.shards().items()
    }
    shards = [shard for split in splits.values() for shard in split]
    # Whether an image is corrupt is looked at again unless that is settled: a disk or a network can have its moments.
    done = {s.path for s in shards if (there := s.written()) and (skip_corrupt or not there.corrupt)}
    if done:
        print(f"Going on in {work}: {len(done)} of {len(shards)} shards are there already")
    write_shards(
        [shard for shard in shards if shard.path not in done],
        done=sum(len(shard.examples) for shard in shards if shard.path in done),
        workers=workers,
        title=f"Preparing {final.parent.name}",
        unit=plan.unit,
    )
    written = {split: [there for shard in shards if (there := shard.written())] for split, shards in splits.items()}
    corrupt = [entry for split in written.values() for there in split for entry in there.corrupt]
    _report(corrupt, work, skip_corrupt)
    plan.finish(work / "data", written)
    for name in ("plan.json", "corrupt.txt") if corrupt else ("plan.json",):
        shutil.copyfile(work / name, work / "data" / name)
    (work / "data").rename(final)


def _begin(work: Path, plan: Plan) -> None:
    content = json.dumps({"format": FORMAT, "source": plan.source, "digest": plan.digest}, indent=2) + "\n"
    file = work / "plan.json"
    if not file.exists() or file.read_text() != content:
        if file.exists():
            print(f"{plan.source} has changed since its preparation began; starting anew")
        for folder in (work / "data", work / "notes"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        write_file(file, content)
    for part in work.glob("data/*.part-*"):  # of a process that was killed
        part.unlink()


def _report(corrupt: list[Corrupt], work: Path, skip_corrupt: bool) -> None:
    if not corrupt:
        return
    file = work / "corrupt.txt"
    write_file(file, "".join(f"{path}\t{reason}\n" for path, reason in corrupt))
    lines = [_readable(f"  {path}: {reason}") for path, reason in corrupt[:LISTED]]
    if len(corrupt) > LISTED:
        lines.append(f"  and {len(corrupt) - LISTED:,} more")
    listed = "\n".join(lines)
    number = "1 image" if len(corrupt) == 1 else f"{len(corrupt):,} images"
    if not skip_corrupt:
        raise UserError(
            f"{number} cannot be read (all are listed in {file}):\n{listed}\n"
            "Repair or remove them, or leave them out with --skip_corrupt of python -m gaternet_jax.tools.prepare"
        )
    print(f"Left out {number} that cannot be read (all are listed in corrupt.txt beside the shards):\n{listed}")


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()  # names of files need not be UTF-8
