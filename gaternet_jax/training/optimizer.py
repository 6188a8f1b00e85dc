"""SGD with momentum, weight decay on kernels only, and the learning rate schedule."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gaternet_jax.config import OptimizerConfig, RunConfig, check_choices


def learning_rate_schedule(config: OptimizerConfig, steps_per_epoch: int, num_steps: int) -> optax.Schedule:
    """Makes the learning rate by step: linear warm-up from zero, then cosine to zero, or steps; then the last rate.

    Args:
        config: the `optimizer` part of a run's config.
        steps_per_epoch: steps in an epoch.
        num_steps: steps in the run.

    Raises:
        UserError: a schedule that there is not.
    """
    check_choices(config, "optimizer")
    steps = max(round(config.schedule_epochs * steps_per_epoch), 1) if config.schedule_epochs else num_steps
    peak = config.learning_rate
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    warmup = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(steps - warmup_steps, 1))
    else:
        boundaries = {round(at * steps) - warmup_steps: config.decay_factor for at in config.decay_at}
        main = optax.piecewise_constant_schedule(peak, boundaries)
    schedule = optax.join_schedules([warmup, main], [warmup_steps])
    return schedule if steps >= num_steps else lambda step: schedule(jnp.minimum(step, steps - 1))


def describe_change(before: RunConfig, now: RunConfig, steps_per_epoch: int, done: int) -> str:
    """Says what becomes of the learning rate of a run that goes on with another number of epochs; "" if nothing.

    Args:
        before: the whole config of the run so far.
        now: the one that it goes on with.
        steps_per_epoch: steps in an epoch.
        done: steps done.
    """

    def rate(config: RunConfig, step: int) -> float:
        num_steps = max(round(config.train.epochs * steps_per_epoch), 1)
        schedule: Any = learning_rate_schedule(config.optimizer, steps_per_epoch, num_steps)
        return float(schedule(min(step, num_steps - 1)))

    old, new = rate(before, done), rate(now, done)
    lengths = [config.optimizer.schedule_epochs or config.train.epochs for config in (before, now)]
    if lengths[0] == lengths[1]:
        more = now.train.epochs > lengths[1] and now.train.epochs != before.train.epochs
        return f"the learning rate stays at {old:.2g} after epoch {lengths[1]:g}" if more else ""
    return (
        f"the schedule of {lengths[0]:g} epochs becomes one of {lengths[1]:g}: the learning rate goes from {old:.2g} "
        f"to {new:.2g}. To hold its last rate instead: --config.optimizer.schedule_epochs={lengths[0]:g}"
    )


def kernels_only(params):
    """Gives True for the kernels of convolutions and linear layers, False for biases and BatchNorm's parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Makes the optimiser; weight decay is L2, added to the (clipped) gradient before momentum, as in PyTorch's SGD."""
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    of_gater = [_scale_gater(config.gater_rate)] if config.gater_rate != 1 else []
    return optax.chain(
        *clip,
        optax.add_decayed_weights(config.weight_decay, mask=kernels_only),
        optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
        *of_gater,
    )


def _scale_gater(rate: float) -> optax.GradientTransformation:
    """Scales the gater's updates, which is its learning rate; at 0 its parameters stay, to the bit."""

    def scale(updates: Any, _) -> Any:
        return updates | {"gater": jax.tree.map(lambda update: rate * update, updates["gater"])}

    return optax.stateless(scale)
