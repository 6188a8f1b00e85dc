"""Data parallelism: one mesh axis, "data"; batches are split over it, the training state is on every device."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gaternet_jax.data.batches import BatchShard
from gaternet_jax.errors import UserError


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh over the given devices, or over all."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def this_process() -> BatchShard:
    """Says which part of each batch this process provides."""
    return BatchShard(jax.process_index(), jax.process_count())


def debugs_nans() -> bool:
    """Tells whether JAX was told to find the operation that makes a NaN (--debug_nans)."""
    settings: Any = jax.config  # its fields are made at run time
    return settings.jax_debug_nans


def on_accelerator(mesh: Mesh) -> bool:
    """Tells whether the devices are GPUs or TPUs."""
    return mesh.devices.flat[0].platform != "cpu"


def device_memory(mesh: Mesh) -> int:
    """Gives the bytes that a program may use on each device, the same number in all processes; 0 on CPUs."""
    if not on_accelerator(mesh):
        return 0
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    least = min(found.get("bytes_limit", 0) for found in stats)
    return int(multihost_utils.broadcast_one_to_all(np.int64(least))) if jax.process_count() > 1 else least


def require_jit(what: str) -> None:
    """Refuses to do what needs compiled programs where JAX was told not to compile.

    Raises:
        UserError: JAX_DISABLE_JIT is set.
    """
    settings: Any = jax.config
    if settings.jax_disable_jit:
        raise UserError(
            f"JAX_DISABLE_JIT is set, but {what} needs compiled programs; unset it (--debug_nans tells where a NaN "
            "comes from)"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Gives the sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays, the same in all processes, on every device."""
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated(mesh))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(replicated(mesh), np.asarray(x)), tree)


def split_by_batch(mesh: Mesh) -> NamedSharding:
    """Gives the sharding that splits the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def split_second_axis(mesh: Mesh) -> NamedSharding:
    """Gives the sharding that splits the second axis over the devices: of the batches of several steps."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def stop_flags(mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Makes two batches of flags, one per device, int8 [devices]: of a process that goes on, and of one that stops."""
    mine = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
    sharding = split_by_batch(mesh)
    go_on, stop = (
        jax.make_array_from_process_local_data(sharding, np.full(mine, flag, np.int8)) for flag in (False, True)
    )
    return go_on, stop


def to_devices(
    batches: Iterable[dict[str, np.ndarray]], sharding: NamedSharding, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Sends batches, each process its rows, to the devices, `ahead` of them before they are needed.

    Transfers overlap computation.

    Args:
        batches: arrays by name.
        sharding: `split_by_batch`, or `split_second_axis` for the batches of several steps.
        ahead: see above.
    """
    queue: deque[dict[str, jax.Array]] = deque()
    for batch in batches:
        queue.append({k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()})
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue
