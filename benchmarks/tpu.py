"""TPU chips for the compiler alone, and what a program compiled for one needs of its memory."""

import dataclasses
import importlib
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from gaternet_jax.config import RunConfig
from gaternet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak numbers of one TPU chip: bfloat16 FLOP/s, bytes, bytes/s, bytes/s over all links one way; their source."""

    flops: float
    hbm: float
    hbm_bandwidth: float
    ici_bandwidth: float
    source: str


CHIPS = {
    "v5e": Chip(197e12, 16e9, 819e9, 200e9, "cloud.google.com/tpu/docs/v5e (ICI: 1600 Gbit/s)"),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9, "cloud.google.com/tpu/docs/v5p (ICI: 4800 Gbit/s)"),
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9, "cloud.google.com/tpu/docs/v4; ICI: arXiv 2304.01433, 6 x 50 GB/s"),
}


def find_chip(topology: str) -> Chip:
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise UserError(f"the topology '{topology}' is of no known chip; give CHIP:SHAPE, CHIP one of {list(CHIPS)}")
    return CHIPS[name]


def find_devices(topology: str) -> Sequence[Any]:
    """The chips of a slice such as "v5e:2x2", for the compiler alone.

    Raises:
        UserError: libtpu is not installed, or does not know the topology.
    """
    # libtpu would ask this machine, and Google's metadata server, which TPU it has.
    for name, value in dict(SKIP_MDS_QUERY="1", ACCELERATOR_TYPE="v5litepod-4", WORKER_HOSTNAMES="localhost").items():
        os.environ.setdefault(f"TPU_{name}", value)
    # The two cores of a v4 chip work as one device, as they do by default on Cloud TPUs.
    cores = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **cores).devices
    except RuntimeError as error:
        if "TPU support not installed" in str(error):
            raise UserError("compiling for TPUs needs libtpu: pip install -e '.[tpu]'") from None
        raise UserError(f"libtpu knows no topology '{topology}': {error}") from None


def find_config(variant: str) -> RunConfig:
    """The config of "resnet50" (of configs/imagenet.py) or of "cifar10:resnet20"."""
    card, _, of_card = variant.rpartition(":")
    return importlib.import_module(f"gaternet_jax.configs.{card or 'imagenet'}").get_config(of_card)


def memory_of(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Gives the bytes that a program needs of a chip's memory, by what they hold."""
    stats = compiled.memory_analysis()
    assert stats is not None
    return {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }


def check_memory(memory: dict[str, int], chip: Chip) -> list[str]:
    """A sentence if the program does not fit; arguments and outputs that share memory count once."""
    needed = sum(memory.values()) - 2 * memory["aliased"]
    if needed <= chip.hbm:
        return []
    return [f"a chip needs {needed / 1e9:.2f} GB and has {chip.hbm / 1e9:.2f} GB: fewer --images_per_chip, more chips"]


def table(columns: Sequence[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"
