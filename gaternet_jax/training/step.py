"""One training step and one evaluation step, as pure functions.

state, batch, key -> augment -> model -> loss -> gradient -> update -> state, metrics
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from gaternet_jax.config import RunConfig
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.models.functional import Tree, merge_model, split_model
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.training.augment import augment
from gaternet_jax.training.mesh import debugs_nans, replicated, split_by_batch
from gaternet_jax.training.objective import GateLoss, cross_entropy, is_class
from gaternet_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


def with_images(batch: Batch, resident: jax.Array | None) -> Batch:
    """Gives the batch with its images, which are gathered if it has indices instead.

    Args:
        batch: from a `Split`.
        resident: all images of the split, uint8 [N, H, W, C], on every device; None for batches with images.
    """
    if resident is None:
        return batch
    rest = {name: value for name, value in batch.items() if name != "index"}
    return {"image": resident[batch["index"]], **rest}


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    gate_loss: GateLoss,
    config: RunConfig,
) -> Step:
    """Builds the training step (state, batch, key) -> (state, metrics), a pure function.

    A batch may have "stop", see `stop_flags`; the metric of that name is 1 for all processes if any of them stops. With
    train.on_nonfinite = skip the metric "skipped" is 1 for a step that changed nothing.

    Args:
        graphdef: of the model in training mode, from `split_model`.
        optimizer: from `make_optimizer`.
        schedule: the learning rate that the optimiser follows, for the metrics.
        gate_loss: from `make_gate_loss`.
        config: the whole config of the run.
    """

    frozen = config.optimizer.gater_rate == 0

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        augment_key, gate_key = jax.random.split(jax.random.fold_in(key, state.step))
        images = augment(batch["image"], augment_key, config.data)

        def loss_function(params):
            if frozen:
                params = params | {"gater": jax.lax.stop_gradient(params["gater"])}
            model = merge_model(graphdef, params, state.stats)
            outputs = model(images, key=gate_key)
            auxiliary = model.gater.pop_auxiliary_logits() if model.gater is not None else None
            _, _, stats = split_model(model)
            losses = {"loss": cross_entropy(outputs.logits, batch["label"], config.loss.label_smoothing).mean()}
            if outputs.gates.size:
                losses["gate_loss"] = gate_loss(outputs.gates)
            if auxiliary is not None:
                of_classifier = cross_entropy(auxiliary, batch["label"], config.loss.label_smoothing).mean()
                losses["auxiliary_loss"] = config.model.gater.auxiliary_weight * of_classifier
            return sum(losses.values()), (stats, outputs, losses)

        gradient_of = jax.value_and_grad(loss_function, has_aux=True)
        (total_loss, (stats, outputs, losses)), gradients = gradient_of(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            **losses,
            "total_loss": total_loss,
            "learning_rate": schedule(state.step),
            "top1": (outputs.logits.argmax(-1) == batch["label"]).mean(),
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
        }
        if outputs.gates.size:
            metrics["gates_on"] = (outputs.gates > 0.5).mean()
        if config.data.on_error == "skip":
            metrics["substituted"] = 1 - batch["mask"].mean()
        if "stop" in batch:  # what one process wants, all learn at the same step
            metrics["stop"] = batch["stop"].max()
        # Less memory early on, so that the average soon forgets the initial parameters (as in TensorFlow's and timm's).
        decay = jnp.minimum(config.train.ema_decay, (1 + state.step) / (10 + state.step))
        ema = None if state.ema is None else optax.incremental_update(params, state.ema, 1 - decay)
        new = TrainState(state.step + 1, params, stats, opt_state, ema)
        if config.train.on_nonfinite == "skip":
            finite = jnp.isfinite(total_loss + metrics["gradient_norm"] + metrics["parameter_norm"])
            new = jax.tree.map(lambda after, before: _keep_if(finite, after, before), new, state)
            metrics["skipped"] = 1 - finite
        return new, metrics

    return train_step


def jit_step(train_step: Step, mesh: Mesh) -> jax.stages.Wrapped:
    """Compiles a training step for one batch on several devices; the state given to it is donated.

    Args:
        train_step: from `make_train_step`.
        mesh: the devices; batches are split over them, hence BatchNorm sees the whole batch.
    """
    everywhere, by_batch = replicated(mesh), split_by_batch(mesh)
    return jax.jit(
        train_step,
        donate_argnums=() if debugs_nans() else 0,  # which repeats a step to find where a NaN came from
        in_shardings=(everywhere, by_batch, everywhere),
        out_shardings=everywhere,
    )


def _keep_if(finite: jax.Array, after: jax.Array, before: jax.Array) -> jax.Array:
    """Chooses the new value of a number, or the old one; counts of steps go on in any case."""
    return after if jnp.issubdtype(after.dtype, jnp.integer) else jnp.where(finite, after, before)


def make_eval_step(graphdef: nnx.GraphDef, macs: MacCounter, config: RunConfig, mesh: Mesh) -> jax.stages.Wrapped:
    """Builds the jitted evaluation step (params, stats, batch, resident) -> sums over images whose mask is True, gates.

    The gates of all images, bool [B, G], stay on the devices of their images. resident: see `with_images`.

    Args:
        graphdef: of the model in evaluation mode.
        macs: of the model.
        config: the whole config of the run.
        mesh: the devices.
    """

    def eval_step(params: Tree, stats: Tree, batch: Batch, resident: jax.Array | None) -> tuple[Metrics, jax.Array]:
        batch, model = with_images(batch, resident), merge_model(graphdef, params, stats)
        outputs = model(normalize(batch["image"], config.data))
        labels, mask = batch["label"], batch["mask"]
        # Ties count against the model, so that constant (or non-finite) logits are never right.
        of_label = jnp.take_along_axis(outputs.logits, labels[:, None], axis=-1)
        better_or_equal = (outputs.logits >= of_label).sum(-1)
        valid = mask & jnp.isfinite(outputs.logits).all(-1) & is_class(labels, outputs.logits)
        sums = {
            "images": mask.sum(),
            "left_out": (labels < 0).sum(),
            "loss": jnp.where(mask, cross_entropy(outputs.logits, labels), 0.0).sum(),
            "top1": (valid & (better_or_equal <= 1)).sum(),
            "top5": (valid & (better_or_equal <= 5)).sum(),
            **({"stop": batch["stop"].max()} if "stop" in batch else {}),
            "macs": jnp.where(mask, macs.fraction(outputs.gates), 0.0).sum(),
            "open_per_gate": jnp.where(mask[:, None], outputs.gates, 0.0).sum(0),
        }
        return sums, outputs.gates > 0.5

    everywhere, by_batch = replicated(mesh), split_by_batch(mesh)
    shardings = (everywhere, everywhere, by_batch, everywhere)
    return jax.jit(eval_step, in_shardings=shardings, out_shardings=(everywhere, by_batch))
