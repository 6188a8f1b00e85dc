"""What is trained and saved."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from gaternet_jax.models.functional import Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Holds everything that a step changes.

    Attributes:
        step: number of steps done, int32.
        params: parameters, float32.
        stats: running statistics of BatchNorm, float32.
        opt_state: the optimiser's.
        ema: moving average of the parameters, float32; None without one. It is evaluated with `stats`, which are
            those of the parameters themselves.
    """

    step: jax.Array
    params: Tree
    stats: Tree
    opt_state: optax.OptState
    ema: Tree | None

    @property
    def eval_params(self) -> Tree:
        """Gives the parameters to evaluate and to publish: the moving average where there is one."""
        return self.params if self.ema is None else self.ema


def init_state(params: Tree, stats: Tree, optimizer: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
    """Makes the state before the first step.

    Args:
        params: parameters.
        stats: BatchNorm statistics.
        optimizer: from `make_optimizer`.
        ema: whether to keep a moving average of the parameters.
    """
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), average)
