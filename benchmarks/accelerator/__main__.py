"""Measures what an accelerator can tell, in the order of its worth, within the time there is.

    python -m benchmarks.accelerator --minutes=14 --out=DIR [--data_dir=DIR] [--only=parity,train,infer,study] [--tiny]
    python -m benchmarks.accelerator --minutes=4 --out=DIR --only=train --tasks 'resnet20*128*' 'PyTorch*20*128*'

parity: outputs and a training step against the CPU. train: images a second of training, beside PyTorch. infer: every
mode of inference, beside PyTorch. study: runs of `benchmarks.study`, entered in DIR/study.json.

Large files of DATA_DIR may come in parts, `split -b 60m FILE FILE.part-`; they are joined first.

Every result is printed and written to DIR as soon as it is known; what is there is not measured again, and what cannot
end in time is not begun. With other XLA_FLAGS the same command adds rows to DIR, which has at most six files. --tiny is
a form for CPUs, to see that all of it works.
"""

import argparse
import fnmatch
import itertools
import shutil
from pathlib import Path

from benchmarks.accelerator import infer, parity, study, train
from benchmarks.accelerator.results import Results
from gaternet_jax.cli.command_line import command_line
from gaternet_jax.errors import UserError

# Each section may take so much of the time that is left when it begins.
SECTIONS = {"parity": (parity.tasks, 0.2), "train": (train.tasks, 0.5), "infer": (infer.tasks, 0.5)}
NAMES = (*SECTIONS, "study")


@command_line(interrupted="Interrupted; the same command goes on.")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="the time there is")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--scratch", type=Path, default=Path("runs/accelerator"), help="folder of the study's runs")
    parser.add_argument("--data_dir", default="", help="folder of prepared datasets")
    parser.add_argument("--only", default=",".join(NAMES), help="comma-separated sections (default: all)")
    parser.add_argument("--tasks", nargs="+", default=["*"], help="patterns of the measurements' names (default: all)")
    parser.add_argument("--tiny", action="store_true", help="small networks and few rounds: sees that all works")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(NAMES):
        raise UserError(f"--only has unknown sections {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    if not arguments.minutes > 0:
        raise UserError(f"--minutes={arguments.minutes:g} must be greater than 0")
    results = Results(arguments.out, arguments.minutes)
    print(results.describe_machine(), flush=True)
    join_parts(arguments.data_dir)
    for name, (tasks, share) in SECTIONS.items():
        if name in chosen:
            made = tasks(arguments.tiny, arguments.data_dir)
            wanted = (task for task in made if any(fnmatch.fnmatch(task.name, some) for some in arguments.tasks))
            results.measure(name, wanted, 1.0 if chosen == [name] else share)
    if "study" in chosen:
        study.run(results, arguments.scratch, arguments.data_dir, arguments.tiny)
    print(f"Results are in {arguments.out}; {results.seconds_left():.0f} s were left.")


def join_parts(data_dir: str) -> None:
    """Joins what came in parts, FILE.part-aa and so on, and removes the parts.

    Raises:
        UserError: the folder is not there.
    """
    if data_dir and not Path(data_dir).is_dir():
        raise UserError(f"--data_dir={data_dir} is no folder")
    parts = sorted(Path(data_dir).rglob("*.part-*")) if data_dir else []
    for whole, of_it in itertools.groupby(parts, lambda path: path.with_name(path.name.partition(".part-")[0])):
        of_it = list(of_it)
        joined = whole.with_name(whole.name + ".joining")
        with joined.open("wb") as out:
            for part in of_it:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out)
        joined.replace(whole)
        for part in of_it:
            part.unlink()


if __name__ == "__main__":
    main()
