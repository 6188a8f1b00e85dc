"""Cost that distribution itself adds to a training step: processes and fake CPU devices on this one machine.

    python -m benchmarks.scaling [--backbone=resnet20] [--batch=32] [--rounds=9]

ResNet-20-Gated, CIFAR shapes, float32. A layout PxD is P processes, joined over localhost, of D devices each. The batch
is the same for all layouts, and so are the cores, hence also the work: what a step takes longer than that of 1x1 is
what distribution adds. All layouts are started and compiled first; in each round every layout runs a few steps, in
turn, while the others wait.

This shows how much devices exchange and what the host does for it. It does not show a speed-up: all devices share the
cores of this machine.

step: until its result is there, the host doing nothing else meanwhile, of the slowest process. feed: time in which the
host hands a batch over; call: time in which it starts the step, without waiting for the result (CPU devices work on the
same cores meanwhile, and make it longer than it is beside an accelerator). Collectives are those of the compiled
program of one device.
"""

import argparse
import collections
import contextlib
import itertools
import json
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.hlo import find_collectives
from benchmarks.train_step import images
from gaternet_jax.cli.command_line import command_line, positive
from gaternet_jax.config import default
from gaternet_jax.progress import progress_bar
from gaternet_jax.training import processes as distributed
from gaternet_jax.training.mesh import make_mesh, replicate, replicated, split_by_batch, stop_flags, to_devices
from gaternet_jax.training.setup import make_training
from gaternet_jax.training.step import jit_step
from gaternet_jax.validation import validate

ROOT = Path(__file__).parents[1]
LAYOUTS = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2))  # processes, devices of each
STEPS = 3  # of a turn that count; one goes before, in which caches and threads wake up
PARTS = ("feed", "call", "wait")

Times = dict[str, list[float]]  # of one process in one turn: milliseconds of each step, by PARTS
Exchanged = dict[str, Any]  # kinds: number of instructions by opcode; bytes: of their arrays


def count_collectives(text: str) -> Exchanged:
    """Number by kind, and bytes, of what the devices exchange in a compiled program's text."""
    found = find_collectives(text)
    kinds = collections.Counter(collective.opcode for collective in found)
    return {"kinds": dict(kinds), "bytes": sum(array.bytes for one in found for array, _ in one.arrays)}


def work(backbone: str, batch: int, layout: tuple[int, int], index: int, port: int) -> None:
    """One process: compiles and prints `Exchanged`; then, for each line that it reads, runs a turn and prints `Times`.

    Args:
        backbone: its name.
        batch: images of all processes together.
        layout: processes and devices of each.
        index: of this process.
        port: of the first process, on localhost.
    """
    processes, devices = layout
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        distributed.initialize(f"localhost:{port}", processes, index)
    mesh = make_mesh()
    config = default()
    config.model.backbone, config.train.batch_size = backbone, batch
    training = make_training(config, lambda _: 0.1)
    state = replicate(training.state, mesh)
    key = jax.jit(lambda: jax.random.key(0), out_shardings=replicated(mesh))()
    step = jit_step(training.step, mesh)
    flag = {"stop": stop_flags(mesh)[0]}
    batches = to_devices(itertools.repeat(images(batch // processes)), split_by_batch(mesh), ahead=0)
    step = step.lower(state, next(batches) | flag, key).compile()
    text = step.as_text()
    assert text is not None
    print(json.dumps(count_collectives(text)), flush=True)
    for _ in sys.stdin:
        times: Times = {part: [] for part in PARTS}
        for number in range(STEPS + 1):
            began = time.perf_counter()
            data = next(batches)
            fed = time.perf_counter()
            state, metrics = step(state, data | flag, key)
            called = time.perf_counter()
            jax.block_until_ready((state, metrics))
            ended = time.perf_counter()
            if number:
                for part, seconds in zip(PARTS, (fed - began, called - fed, ended - called), strict=True):
                    times[part].append(1e3 * seconds)
        print(json.dumps(times), flush=True)


@contextlib.contextmanager
def started(layout: tuple[int, int], backbone: str, batch: int) -> Iterator[list[subprocess.Popen]]:
    """The processes of a layout; they end with the context."""
    processes, devices = layout
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.scaling", f"--backbone={backbone}", f"--batch={batch}", "--worker"]
    pipes: Any = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    workers = [
        subprocess.Popen([*command, str(processes), str(devices), str(index), str(port)], **pipes)
        for index in range(processes)
    ]
    try:
        yield workers
        for worker in workers:  # all learn of the end before one is waited for: they leave together
            assert worker.stdin
            worker.stdin.close()
        for worker in workers:
            worker.wait(timeout=60)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def read(workers: Sequence[subprocess.Popen]) -> list[dict]:
    """What each process says next.

    Raises:
        RuntimeError: one has ended; it said why on stderr.
    """
    said = []
    for worker in workers:
        assert worker.stdout
        line = next((line for line in worker.stdout if line.startswith("{")), None)  # Gloo prints there too
        if line is None:
            raise RuntimeError("a process of the benchmark has ended; its error is above")
        said.append(json.loads(line))
    return said


def take_turn(workers: Sequence[subprocess.Popen]) -> list[Times]:
    """Lets the processes of a layout run their steps together."""
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return read(workers)


def summarize(turns: Sequence[Sequence[Times]]) -> dict[str, float]:
    """Median milliseconds of a step, of feeding it and of calling it, each of the slowest process at that step."""
    steps: dict[str, list[float]] = {"step": [], "feed": [], "call": []}
    for turn in turns:
        whole = [[sum(parts) for parts in zip(*(times[part] for part in PARTS), strict=True)] for times in turn]
        steps["step"] += map(max, zip(*whole, strict=True))
        for part in ("feed", "call"):
            steps[part] += map(max, zip(*(times[part] for times in turn), strict=True))
    return {name: statistics.median(values) for name, values in steps.items()}


def table(medians: dict[tuple[int, int], dict[str, float]], exchanged: dict[tuple[int, int], Exchanged]) -> str:
    """A row for each layout, compared with the first."""
    columns = ("processes x devices", "step ms", "more ms", "ratio", "feed ms", "call ms", "collectives", "MB")
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    alone = next(iter(medians.values()))["step"]
    for (processes, devices), times in medians.items():
        found = exchanged[processes, devices]
        kinds = ", ".join(f"{number} {kind}" for kind, number in found["kinds"].items()) or "0"
        more = [f"{times['step'] - alone:.1f}", f"{times['step'] / alone:.2f}"]
        row = [f"{times['step']:.1f}", *more, f"{times['feed']:.2f}", f"{times['call']:.2f}"]
        row += [kinds, f"{found['bytes'] / 1e6:.3f}"]
        lines.append("| " + " | ".join([f"{processes}x{devices}", *row]) + " |")
    return "\n".join(lines)


@command_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--batch", type=positive, default=32, help="images of all devices together, a multiple of 4")
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--worker", type=int, nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        processes, devices, index, port = arguments.worker
        work(arguments.backbone, arguments.batch, (processes, devices), index, port)
        return
    config = default()
    config.model.backbone, config.train.batch_size = arguments.backbone, arguments.batch
    for processes, devices in LAYOUTS:
        validate(config, processes * devices)

    exchanged, turns = {}, {layout: [] for layout in LAYOUTS}
    with contextlib.ExitStack() as stack:
        workers = {}
        with progress_bar("Compiling", len(LAYOUTS), unit="layout") as bar:
            for layout in LAYOUTS:
                workers[layout] = stack.enter_context(started(layout, arguments.backbone, arguments.batch))
                exchanged[layout] = read(workers[layout])[0]
                bar.update()
        with progress_bar("Measuring", arguments.rounds + 1, unit="round") as bar:
            for number in range(arguments.rounds + 1):
                for layout in LAYOUTS:
                    turn = take_turn(workers[layout])
                    if number:  # the first round is a warm-up
                        turns[layout].append(turn)
                bar.update()
    rounds = f"{arguments.rounds} rounds of {STEPS} steps"
    print(
        f"{arguments.backbone} gated, batch {arguments.batch}, {platform.machine()}, jax {jax.__version__}, {rounds}\n"
    )
    print(table({layout: summarize(turns[layout]) for layout in LAYOUTS}, exchanged))


if __name__ == "__main__":
    main()
