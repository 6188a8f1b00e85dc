"""Compiles the modes of inference for a TPU on a machine without one: memory, FLOPs and bytes beside the masked model.

    python -m benchmarks.tpu_inference [--model=resnet50-all] [--open=0.5] [--batches=64,1]

Needs libtpu (`pip install -e '.[tpu]'`). One chip, bfloat16, as configs/imagenet.py has it. Of each layer the same
fraction of filters is open. masked: the model as it is written. dense: its parameters folded. compact: whole, without
the filters that are closed. gater and specialist: one after the other, the specialist without the closed filters.
profile: what dynamic mode runs, which sees only from the gates which filters these are. The bound on images/s is that
of benchmarks.tpu_aot: matrix units or main memory, whichever takes longer. Exits with 1 if a program does not fit.
"""

import argparse
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from benchmarks.hlo import hbm_traffic
from benchmarks.inference import open_only, pattern
from benchmarks.mode_programs import programs
from benchmarks.tpu import Chip, check_memory, find_chip, find_config, find_devices, memory_of, table
from gaternet_jax.cli.command_line import command_line
from gaternet_jax.gating.program import shaped
from gaternet_jax.inference.engines import XLA
from gaternet_jax.models.build import build_model
from gaternet_jax.progress import progress_bar

COLUMNS = (
    "batch", "program", "compile s", "parameters GB", "in all GB", "GFLOP", "of masked", "GB of HBM", "of masked",
    "images/s at most",
)  # fmt: skip


def examine(program: XLA, inputs: list[Any], device: Any, chip: Chip) -> dict[str, Any]:
    """Compiles a program for one chip; what is known of it."""
    on_chip = SingleDeviceSharding(device)
    run = jax.jit(program.run, in_shardings=on_chip, out_shardings=on_chip)
    lowered = run.lower(shaped(program.prepared), *inputs)
    start = time.perf_counter()
    compiled = lowered.compile()
    row: dict[str, Any] = {"compile_seconds": time.perf_counter() - start}
    memory, text, cost = memory_of(compiled), compiled.as_text(), compiled.cost_analysis()
    assert text is not None and cost is not None
    row |= {"parameters": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.prepared))}
    row |= {"bytes": sum(memory.values()) - 2 * memory["aliased"], "problems": check_memory(memory, chip)}
    row |= {"flops": cost["flops"], "traffic": hbm_traffic(text)}
    return row | {"seconds": max(row["flops"] / chip.flops, row["traffic"] / chip.hbm_bandwidth)}


@command_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2", help="whose first chip is meant")
    parser.add_argument("--model", default="resnet50-all", help="variant of configs/imagenet.py, or CARD:VARIANT")
    parser.add_argument("--open", type=float, default=0.5, help="fraction of the filters of each layer")
    parser.add_argument("--batches", default="64,1", help="comma-separated numbers of images")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # an accelerator of this machine is left alone
    jax.config.update("jax_enable_compilation_cache", False)
    chip, device = find_chip(arguments.topology), find_devices(arguments.topology)[0]
    config, random = find_config(arguments.model), np.random.default_rng(0)
    model, size = build_model(config.model), config.data.image_size
    model.eval()
    keep = pattern(model, arguments.open, random)
    open_only(model, keep)
    made, batches = list(programs(model, keep, size)), [int(batch) for batch in arguments.batches.split(",")]
    lines, problems = [], []
    with progress_bar("Compiling", len(made) * len(batches), unit="program") as bar:
        for batch in batches:
            rows = {}
            for name, program, takes_gates in made:
                images = jax.ShapeDtypeStruct((batch, size, size, config.model.channels), jnp.float32)
                gates = [jax.ShapeDtypeStruct((batch, len(keep)), jnp.float32)] if takes_gates else []
                inputs = [jax.ShapeDtypeStruct((batch,), jnp.int32), images, *gates]
                row = rows[name] = examine(program, inputs, device, chip)
                problems += [f"{name}, batch {batch}: {problem}" for problem in row["problems"]]
                lines.append([
                    str(batch), name, f"{row['compile_seconds']:.0f}", f"{row['parameters'] / 1e9:.3f}",
                    f"{row['bytes'] / 1e9:.3f}", f"{row['flops'] / 1e9:,.1f}",
                    f"{row['flops'] / rows['masked']['flops']:.2f}", f"{row['traffic'] / 1e9:.3f}",
                    f"{row['traffic'] / rows['masked']['traffic']:.2f}", f"{batch / row['seconds']:,.0f}",
                ])  # fmt: skip
                bar.write("  ".join(lines[-1]), file=sys.stderr)
                bar.update()
    print(f"jax {jax.__version__}, {arguments.model}, {arguments.open:.0%} open, one chip of {arguments.topology}\n")
    print(table(COLUMNS, lines))
    if problems:
        sys.exit("\n".join(["", *problems]))


if __name__ == "__main__":
    main()
