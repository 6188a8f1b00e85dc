"""Compiles the training step for TPUs on a machine without one, and checks the program: memory, FLOPs, collectives.

    python -m benchmarks.tpu_aot [--topologies=v5e:2x2,v5e:4x8,v4:2x2x1] [--models=resnet50,resnet18,resnet50-plain]
    python -m benchmarks.tpu_aot --topologies=v5e:2x2 --models=cifar10:resnet20,cifar10:resnet56

Models are variants of configs/imagenet.py, in bfloat16, or CARD:VARIANT. Of CIFAR the program is that of a whole
dispatch: a loop of 50 steps over images on the chips; XLA counts the FLOPs of one of them.

Needs libtpu (`pip install -e '.[tpu]'`), 10 GB of memory and two to seven minutes a program (two cores). Ends with exit
code 1 if a program does not fit a chip's memory, or if devices exchange anything but sums: of gradients, of BatchNorm's
statistics and their gradients, of metrics.

The bound on images/s is the longest of three times, as if nothing else took any: matrix units (XLA's FLOPs / peak),
main memory (bytes / bandwidth) and links (a ring's 2 (n - 1) / n x bytes reduced / all links of a chip). XLA's own
"GB accessed" has what stays on the core as well; "GB of HBM" is what this program's layouts leave of it.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.hlo import Array, Collective, find_collectives, hbm_traffic
from benchmarks.tpu import CHIPS, Chip, check_memory, find_chip, find_config, find_devices, memory_of, table
from gaternet_jax.cli.command_line import command_line
from gaternet_jax.config import RunConfig
from gaternet_jax.gating.program import shaped
from gaternet_jax.models.build import abstract_model
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.nn.layers import BatchNorm, Conv
from gaternet_jax.progress import progress_bar
from gaternet_jax.training.dispatch import StepLoop
from gaternet_jax.training.mesh import make_mesh
from gaternet_jax.training.optimizer import learning_rate_schedule
from gaternet_jax.training.setup import make_training
from gaternet_jax.training.step import jit_step
from gaternet_jax.validation import validate

TRAIN_IMAGES = 1_281_167  # of ImageNet; only the learning rate's schedule depends on it
CIFAR_IMAGES = 50_000
PURPOSES = ("gradient", "batchnorm", "metric", "other")
ALLOWED = ("all-reduce", "all-reduce-start")


def lower_step(config: RunConfig, devices: Sequence[Any]) -> tuple[jax.stages.Lowered, GaterNet]:
    """Traces the training step that `config` describes, on shapes alone; and its model."""
    mesh = make_mesh(devices)
    validate(config, mesh.size)
    model = abstract_model(config.model)
    batch_size, size = config.train.batch_size, config.data.image_size
    steps_per_epoch = TRAIN_IMAGES // batch_size
    schedule = learning_rate_schedule(config.optimizer, steps_per_epoch, round(config.train.epochs * steps_per_epoch))
    training = make_training(config, schedule, model)
    state = shaped(training.state)
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, size, size, config.model.channels), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((batch_size,), jnp.bool_),
        "stop": jax.ShapeDtypeStruct((mesh.size,), jnp.int8),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    if config.data.pipeline == "stream":
        return jit_step(training.step, mesh).lower(state, batch, key), model
    resident = jax.ShapeDtypeStruct((CIFAR_IMAGES, *batch.pop("image").shape[1:]), jnp.uint8)
    stop, batch["index"] = batch.pop("stop"), jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    steps = config.train.log_every_steps
    batches = {name: jax.ShapeDtypeStruct((steps, *x.shape), x.dtype) for name, x in batch.items()}
    loop: Any = StepLoop(training.step, mesh, steps, resident)  # type: ignore  # shapes stand for arrays
    return loop.lower(state, batches, stop, key), model


def share_off_padding(conv: Conv, positions: int) -> float:
    """The share of (output position, kernel tap) pairs that meet the image and not its padding, of square images."""
    out, share = round(np.sqrt(positions)), 1.0
    for kernel, padding in zip(conv.kernel_size, np.broadcast_to(conv.padding, 2), strict=True):
        if padding:
            taps = conv.strides * np.arange(out)[:, None] + np.arange(kernel) - padding
            share *= ((taps >= 0) & (taps < conv.strides * out)).mean()
    return float(share)


def analytic_flops(model: GaterNet, image_size: int, images: int) -> float:
    """FLOPs of convolutions and linear layers in a training step, two for each multiply-accumulate.

    Forward, gradient of the weights, gradient of the input; not the last for the layers that see the images. Taps on
    padding are left out, as XLA leaves them out.
    """
    modules: dict[str, Any] = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    total, parts = 0.0, set()
    for layer in MacCounter(model, image_size).layers:
        module, part = modules[layer.name], layer.name.partition(".")[0]
        positions = layer.macs // module.kernel.size
        share = share_off_padding(module, positions) if isinstance(module, Conv) else 1.0
        total += (3 if part in parts else 2) * layer.macs * share
        parts.add(part)  # the first layer of gater or backbone is done
    return 2 * images * total


def without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape for comparison: the compiler may reorder axes and drop those of one element."""
    return tuple(sorted(size for size in shape if size != 1))


class Purposes:
    """Says what a sum over the devices is for.

    Attributes:
        parameters: shapes of all parameters.
        channels: shapes of the parameters of BatchNorm, which are those of its statistics.
    """

    def __init__(self, model: GaterNet):
        norms = [module for _, module in nnx.iter_modules(model) if isinstance(module, BatchNorm)]
        self.parameters = {without_ones(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))}
        self.channels = {without_ones((norm.num_features,)) for norm in norms}

    def __call__(self, array: Array, op_name: str) -> str:
        """One of PURPOSES; a linear layer's bias as long as some BatchNorm's counts as BatchNorm's."""
        shape = without_ones(array.shape)
        if not array.shape:
            return "metric"
        if shape in self.channels and "jvp(" in op_name and op_name.endswith("/reduce_sum"):
            return "batchnorm"
        return "gradient" if shape in self.parameters and "transpose(jvp(" in op_name else "other"


def check_collectives(collectives: list[Collective], model: GaterNet) -> tuple[dict[str, list[int]], list[str]]:
    """Number and bytes of the arrays by purpose, and a sentence for each collective that should not be."""
    purpose_of, sums, problems = Purposes(model), {purpose: [0, 0] for purpose in PURPOSES}, []
    for collective in collectives:
        for array, op_name in collective.arrays:
            purpose = purpose_of(array, op_name) if collective.opcode in ALLOWED else "other"
            sums[purpose][0] += 1
            sums[purpose][1] += array.bytes
            if purpose == "other":
                what = f"{array.dtype}{list(array.shape)}"
                problems.append(f"{collective.opcode} of {what} ({op_name or collective.name}): devices exchange it")
    return sums, problems


def roofline(flops: float, hbm_bytes: float, reduced_bytes: float, chips: int, chip: Chip) -> dict[str, float]:
    """Seconds that a step takes at least in each part, of one chip's work."""
    return {
        "compute": flops / chip.flops,
        "HBM": hbm_bytes / chip.hbm_bandwidth,
        "ICI": 2 * (chips - 1) / chips * reduced_bytes / chip.ici_bandwidth,
    }


def examine(topology: str, variant: str, images_per_chip: int) -> dict[str, Any]:
    """All that is known of a program; its `problems` are sentences."""
    chip, devices = find_chip(topology), find_devices(topology)
    config = find_config(variant)
    config.train.batch_size = images_per_chip * len(devices)
    lowered, model = lower_step(config, devices)
    row: dict[str, Any] = {"topology": topology, "model": variant, "images_per_chip": images_per_chip}
    row |= {"chips": len(devices), "problems": []}
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = next(line.strip() for line in str(error).splitlines() if line.strip())
        return row | {"problems": [f"a chip's memory is too small: fewer --images_per_chip, more chips. XLA: {said}"]}
    row["compile_seconds"] = time.perf_counter() - start
    text = compiled.as_text()
    assert text is not None
    row["memory"] = memory_of(compiled)
    cost: Any = compiled.cost_analysis()
    row |= {"flops": cost["flops"], "analytic_flops": analytic_flops(model, config.data.image_size, images_per_chip)}
    row |= {"bytes_accessed": cost["bytes accessed"], "hbm_bytes": hbm_traffic(text)}
    collectives = find_collectives(text)
    kinds = sorted({collective.opcode for collective in collectives})
    row["kinds"] = {kind: sum(collective.opcode == kind for collective in collectives) for kind in kinds}
    row["collectives"], others = check_collectives(collectives, model)
    row["problems"] = check_memory(row["memory"], chip) + others
    reduced = sum(bytes_ for _, bytes_ in row["collectives"].values())
    row["seconds"] = roofline(row["flops"], row["hbm_bytes"], reduced, len(devices), chip)
    row["images_per_second"] = images_per_chip / max(row["seconds"].values())
    return row


def report(rows: list[dict[str, Any]]) -> str:
    """Three tables: memory, work, collectives."""
    memory, work, exchanged = [], [], []
    for row in rows:
        start = [row["topology"], row["model"]]
        needed = sum(row["memory"].values()) - 2 * row["memory"]["aliased"]
        sizes = [f"{size / 1e9:.2f}" for size in (*row["memory"].values(), needed, find_chip(row["topology"]).hbm)]
        memory.append([*start, f"{row['compile_seconds']:.0f}", *sizes])
        flops = [f"{row[name] / 1e12:.3f}" for name in ("flops", "analytic_flops")]
        bytes_ = [f"{row[name] / 1e9:.1f}" for name in ("bytes_accessed", "hbm_bytes")]
        times = [f"{1e3 * seconds:.1f}" for seconds in row["seconds"].values()]
        speeds = [f"{row['images_per_second']:,.0f}", f"{row['images_per_second'] * row['chips']:,.0f}"]
        work.append([*start, *flops, f"{row['flops'] / row['analytic_flops']:.3f}", *bytes_, *times, *speeds])
        kinds = ", ".join(f"{number} {kind}" for kind, number in row["kinds"].items())
        sums = [f"{number}, {size / 1e6:.3f} MB" if number else "0" for number, size in row["collectives"].values()]
        exchanged.append([*start, kinds, *sums])
    gigabytes = ("arguments", "outputs", "aliased", "temporaries", "code", "in all", "of")
    teraflops, traffic = ("XLA TFLOP", "analytic", "ratio"), ("GB accessed", "GB of HBM")
    bounds = ("compute ms", "HBM ms", "ICI ms", "images/s a chip", "images/s")
    return "\n".join(
        [
            table(("GB a chip", "model", "compile s", *gigabytes), memory),
            table(("step of a chip", "model", *teraflops, *traffic, *bounds), work),
            table(("arrays summed", "model", "instructions", *PURPOSES), exchanged),
        ]
    )


@command_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", default="v5e:2x2,v5e:4x8,v4:2x2x1", help="comma-separated")
    parser.add_argument(
        "--models", default="resnet50,resnet18,resnet50-plain", help="variants of configs/imagenet.py, or CARD:VARIANT"
    )
    parser.add_argument("--images_per_chip", type=int, default=128)
    parser.add_argument("--json", default="", help="also write all numbers to this file")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # an accelerator of this machine is left alone
    jax.config.update("jax_enable_compilation_cache", False)
    programs = [(t, m) for t in arguments.topologies.split(",") for m in arguments.models.split(",")]
    rows = []
    for topology, variant in programs:  # wrong names end it before minutes have gone
        find_chip(topology)
        find_devices(topology)
        find_config(variant)
    with progress_bar("Compiling", len(programs), unit="program") as bar:
        for topology, variant in programs:
            bar.write(f"{variant} for {topology} ...", file=sys.stderr)
            rows.append(examine(topology, variant, arguments.images_per_chip))
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")
            jax.clear_caches()
            bar.update()
    print(f"jax {jax.__version__}, {arguments.images_per_chip} images a chip\n")
    print(report([row for row in rows if "memory" in row]))
    for name in dict.fromkeys(topology.partition(":")[0] for topology, _ in programs):
        chip = CHIPS[name]
        peaks = f"{chip.flops / 1e12:.0f} TFLOP/s, {chip.hbm / 1e9:.1f} GB at {chip.hbm_bandwidth / 1e9:.0f} GB/s"
        print(f"{name}: {peaks}, links {chip.ici_bandwidth / 1e9:.0f} GB/s ({chip.source})")
    problems = [f"{row['model']} for {row['topology']}: {problem}" for row in rows for problem in row["problems"]]
    if problems:
        sys.exit("\n".join(["", *problems]))


if __name__ == "__main__":
    main()
