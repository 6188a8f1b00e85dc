"""SGD with momentum, weight decay on kernels only, and the learning rate schedule."""

import jax
import optax

from gaternet_jax.config import Config


def learning_rate_schedule(config: Config, steps_per_epoch: int, num_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from zero, then cosine to zero, or steps.

    Args:
        config: the `optimizer` part of a run's config.
        steps_per_epoch: steps in an epoch.
        num_steps: steps in the run.
    """
    peak = config.learning_rate
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    warmup = optax.linear_schedule(0.0, peak, max(warmup_steps, 1))
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(num_steps - warmup_steps, 1))
    else:
        boundaries = {round(at * num_steps) - warmup_steps: config.decay_factor for at in config.decay_at}
        main = optax.piecewise_constant_schedule(peak, boundaries)
    return optax.join_schedules([warmup, main], [warmup_steps])


def kernels_only(params):
    """True for the kernels of convolutions and linear layers, False for biases and BatchNorm's parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser; its weight decay is L2, added to the (clipped) gradient before momentum, as in PyTorch's SGD."""
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(
        *clip,
        optax.add_decayed_weights(config.weight_decay, mask=kernels_only),
        optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
    )
