"""Several training steps in one dispatch: small networks on fast accelerators wait for the host, not for arithmetic.

batches of some steps, with images or with indices of images that are on the device -> steps -> metrics of each step
"""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gaternet_jax.config import RunConfig
from gaternet_jax.data.batches import Split
from gaternet_jax.training.mesh import debugs_nans, on_accelerator, replicated, split_by_batch, split_second_axis
from gaternet_jax.training.state import TrainState
from gaternet_jax.training.step import Batch, Metrics, Step, with_images


def choose_steps_per_call(config: RunConfig, split: Split, mesh: Mesh) -> tuple[int, int]:
    """Chooses how many steps a dispatch runs, and for how many its program has room.

    train.steps_per_call, or, where that is 0, a logging window if the images are on an accelerator and 1 if not.
    Indices of images take so little that there is always room for a logging window: one program then serves any number
    of steps, and runs with different numbers are equal to the bit. (Programs with room for 1 and for 7 steps gave
    metrics that differed in the last bit.)
    """
    window = config.train.log_every_steps
    chosen = window if split.resident is not None and on_accelerator(mesh) else 1
    steps = min(config.train.steps_per_call or chosen, window)  # a dispatch ends where metrics are logged
    return steps, steps if split.resident is None else window


def stack_batches(
    batches: Iterator[dict[str, np.ndarray]], lengths: Iterable[int], size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of each dispatch as arrays [size, ...]; what is beyond its length means nothing."""
    for length in lengths:
        taken = [next(batches) for _ in range(length)]
        if size == 1:
            yield {name: value[None] for name, value in taken[0].items()}
            continue
        stacked = {name: np.empty((size, *value.shape), value.dtype) for name, value in taken[0].items()}
        for name, out in stacked.items():
            out[length:] = 0
            np.stack([batch[name] for batch in taken], out=out[:length])
        yield stacked


class StepLoop:
    """Runs training steps, up to `size` of them in one dispatch.

    On an accelerator they are a loop on the device, whose number of steps is an argument. On CPUs the host runs them
    one by one, with the loop's body: XLA's CPU backend rewrites convolutions outside of loops only, and within one
    their kernel gradients take some 20 times as long; dispatch is no matter there.

    Args:
        step: from `make_train_step`.
        mesh: the devices.
        size: steps in a dispatch, at most.
        resident: images on the devices, uint8 [N, H, W, C], for batches with indices, see `Split`.
        fused: whether the loop is on the device; None: on accelerators, unless NaNs are looked for.
    """

    def __init__(
        self, step: Step, mesh: Mesh, size: int, resident: jax.Array | None = None, *, fused: bool | None = None
    ):
        self._step, self._mesh, self._size, self._resident = step, mesh, size, resident
        self._fused = on_accelerator(mesh) and not debugs_nans() if fused is None else fused
        everywhere = replicated(mesh)
        shardings = (everywhere, everywhere, everywhere, split_second_axis(mesh), split_by_batch(mesh), everywhere)
        self._run: Any = jax.jit(
            self._train_steps if self._fused else self._train_step,
            donate_argnums=() if debugs_nans() else 1,  # which repeats a step to find where a NaN came from
            in_shardings=shardings,
            out_shardings=everywhere,
        )
        self._empty: Any = None

    def __call__(
        self, state: TrainState, batches: Batch, stop: jax.Array, count: int, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Runs `count` steps.

        Args:
            state: is donated.
            batches: [size, B, ...] each, see `stack_batches`; on the devices.
            stop: see `stop_flags`.
            count: at most `size`.
            key: of the run.

        Returns:
            The state, and the metrics of the steps, float32 [size] each; those beyond `count` mean nothing.
        """
        carry, inputs = (state, self._empty_metrics(state, batches, stop, key)()), (batches, stop, key)
        if self._fused:
            return self._run(np.int32(count), carry, self._resident, *inputs)
        for index in range(count):
            carry = self._run(np.int32(index), carry, self._resident, *inputs)
        return carry

    def compile(self, state: TrainState, batches: Batch, stop: jax.Array, key: jax.Array) -> None:
        """Compiles ahead, for arguments of these shapes and no others."""
        self._run = self.lower(state, batches, stop, key).compile()

    def lower(self, state: TrainState, batches: Batch, stop: jax.Array, key: jax.Array) -> jax.stages.Lowered:
        """Traces the program; arrays may be their shapes, those on the devices too."""
        carry = state, jax.eval_shape(self._empty_metrics(state, batches, stop, key))
        return self._run.lower(np.int32(0), carry, self._resident, batches, stop, key)

    def _train_steps(self, count, carry, resident, *inputs):
        return jax.lax.fori_loop(
            0, count, lambda index, carry: self._train_step(index, carry, resident, *inputs), carry
        )

    def _train_step(self, index, carry, resident, *inputs):
        state, metrics = carry
        state, values = self._step_at(index, state, resident, *inputs)
        return state, {name: metrics[name].at[index].set(jnp.float32(values[name])) for name in values}

    def _step_at(self, index, state, resident, batches, stop, key):
        batch = {name: jax.lax.dynamic_index_in_dim(x, index, keepdims=False) for name, x in batches.items()}
        return self._step(state, with_images(batch, resident) | {"stop": stop}, key)

    def _empty_metrics(self, state, batches, stop, key):
        """Gives the function that makes room for the metrics of one dispatch."""
        if self._empty is None:
            _, names = jax.eval_shape(self._step_at, np.int32(0), state, self._resident, batches, stop, key)
            self._empty = jax.jit(
                lambda: {name: jnp.zeros(self._size, jnp.float32) for name in names},
                out_shardings=replicated(self._mesh),
            )
        return self._empty
