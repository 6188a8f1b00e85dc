"""One training step: golden values, the compiled program, and the state that comes out."""

import dataclasses
import functools
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax.config import default
from gaternet_jax.models.functional import split_model
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.training.mesh import make_mesh, replicated, split_by_batch
from gaternet_jax.training.setup import make_training
from gaternet_jax.training.step import jit_step, make_eval_step
from tests.helpers import SMALL, image_size, model_config

GOLDEN = Path(__file__).parents[1] / "golden" / "steps.json"
UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))


def setup(devices=1, ema_decay=0.0, on_nonfinite="stop", size=16, **model_fields):
    """A small model, its step, its state and a batch."""
    config = default()
    config.model = model_config(**model_fields)
    config.loss.gate_weight = 0.1  # so that the gate loss tells in the golden values
    config.train.ema_decay, config.train.on_nonfinite = ema_decay, on_nonfinite
    mesh = make_mesh(jax.devices()[:devices])
    config.data.image_size = size
    training = make_training(config, lambda _: 0.1)
    state = jax.device_put(training.state, replicated(mesh))
    random = np.random.default_rng(0)
    batch = {
        "image": random.integers(0, 256, (8, size, size, 3), np.uint8),
        "label": random.integers(0, 10, 8).astype(np.int32),
        "mask": np.ones(8, bool),
    }
    batch = jax.device_put(batch, split_by_batch(mesh))
    return (
        jit_step(training.step, mesh),
        state,
        batch,
        config,
        training.model,
        mesh,
    )


GOLDEN_MODELS = {  # a shrunken member of each family, and every gating of one
    "resnet8-none": {"gating": "none"},
    "resnet8-last": {"gating": "last"},
    "resnet8-all": {"gating": "all"},
    "resnet8-all-local": {"gating": "all", "gater.scope": "local"},
    "resnet8-se": {"gating": "none", "se_ratio": 4},
    **{
        f"{name}-all": {"backbone": name, "width": width, "gating": "all", "size": image_size(family)}
        for family, (name, width) in SMALL.items()
    },
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name.startswith(("inception", "shake", "resnet18", "resnet8-last")) else ()
        )
        for name in GOLDEN_MODELS
    ],
)
def test_golden_values_of_two_steps(name):
    step, state, batch, *_ = setup(**GOLDEN_MODELS[name])
    found = []
    for _ in range(2):
        state, metrics = step(state, batch, jax.random.key(0))
        found.append({name: float(value) for name, value in sorted(metrics.items())})
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if UPDATE:
        GOLDEN.write_text(json.dumps(golden | {name: found}, indent=1, sort_keys=True) + "\n")
        pytest.skip("golden values written")
    for wanted, got in zip(golden[name], found, strict=True):
        assert wanted.keys() == got.keys()
        for metric in wanted:
            np.testing.assert_allclose(
                got[metric],
                wanted[metric],
                rtol=3e-4,  # other compilers' rounding makes 1.2e-4 of Inception's gradients
                err_msg=f"{name}: {metric} changed. Legitimate only if the model, the loss, the initialisation, the "
                "augmentation or JAX's random numbers were meant to change; then UPDATE_GOLDEN=1 pytest "
                "tests/training/test_step.py, and say so in CHANGELOG.md",
            )


def test_step_changes_what_it_should():
    step, state, batch, *_ = setup(gating="all")
    before = jax.tree.map(np.asarray, state)
    after, metrics = step(state, batch, jax.random.key(0))
    assert int(after.step) == 1
    for tree in ("params", "stats"):
        for old, new in zip(jax.tree.leaves(getattr(before, tree)), jax.tree.leaves(getattr(after, tree)), strict=True):
            assert old.dtype == new.dtype == jnp.float32 and old.shape == new.shape
    changed = jax.tree_util.tree_map(lambda a, b: not np.array_equal(a, b), before.params, after.params)
    assert all(jax.tree.leaves(changed["backbone"]))
    assert all(jax.tree.leaves(changed["gater"]))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: not np.array_equal(a, b), before.stats, after.stats)))
    assert set(metrics) == {
        "loss",
        "total_loss",
        "learning_rate",
        "top1",
        "gradient_norm",
        "parameter_norm",
        "gates_on",
        "gate_loss",
    }
    np.testing.assert_allclose(metrics["loss"] + metrics["gate_loss"], metrics["total_loss"], rtol=1e-6)


def test_an_auxiliary_classifier_adds_its_loss():
    step, state, batch, config, model, _ = setup(**{"gater.auxiliary_weight": 0.5})
    weights = np.asarray(state.params["gater"]["auxiliary"]["kernel"])
    assert weights.shape == (model.gater.extractor.num_features, config.model.num_classes)
    after, metrics = step(state, batch, jax.random.key(0))
    terms = [metrics[name] for name in ("loss", "gate_loss", "auxiliary_loss")]
    assert 0.5 < float(terms[2]) / (0.5 * np.log(10)) < 2  # it knows nothing yet
    np.testing.assert_allclose(sum(terms), metrics["total_loss"], rtol=1e-6)
    assert not np.array_equal(weights, after.params["gater"]["auxiliary"]["kernel"])


def test_moving_average_follows_its_formula():
    step, state, batch, *_ = setup(gating="none", ema_decay=0.15)
    old = jax.tree.map(np.asarray, state.ema)
    for number in range(3):
        state, _ = step(state, batch, jax.random.key(0))
        decay = min(0.15, (1 + number) / (10 + number))
        old = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * np.asarray(p), old, state.params)
        for one, other in zip(jax.tree.leaves(old), jax.tree.leaves(state.ema), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert state.eval_params is state.ema


def test_randomness_follows_from_key_and_step_alone():
    step, state, batch, *_ = setup(gating="all")
    copy = lambda: jax.tree.map(jnp.copy, state)  # noqa: E731  (the step takes its state's memory)
    loss = lambda state, key: float(step(state, batch, jax.random.key(key))[1]["loss"])  # noqa: E731
    assert loss(copy(), 0) == loss(copy(), 0)
    assert loss(copy(), 0) != loss(copy(), 1)
    later = copy()
    later = dataclasses.replace(later, step=later.step + 1)
    assert loss(copy(), 0) != loss(later, 0)


@pytest.fixture(scope="module")
def compiled():
    step, state, batch, *_ = setup(devices=8, gating="all")
    return step.lower(state, batch, jax.random.key(0)).compile()


def test_only_reductions_cross_devices(compiled):
    """Gradients, BatchNorm and metrics are summed; no activation, image or parameter travels."""
    collectives = set(re.findall(r"\b(all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", compiled.as_text()))
    assert collectives == {"all-reduce"}


def test_state_is_updated_in_place(compiled):
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes - 1024


def test_images_travel_as_bytes(compiled):
    (_, batch, _), _ = compiled.in_avals
    assert batch["image"].dtype == jnp.uint8


def eval_step(step, params, stats, batch):
    return step(params, stats, batch, None)


def test_evaluation_ignores_masked_images():
    _, state, batch, config, model, mesh = setup(gating="all")
    macs = MacCounter(model, 16)
    model.eval()
    step = functools.partial(eval_step, make_eval_step(split_model(model)[0], macs, config, mesh))
    params, stats = state.params, state.stats
    whole, gates = step(params, stats, batch)
    np.testing.assert_allclose(gates.sum(0), whole["open_per_gate"])
    half, _ = step(params, stats, batch | {"mask": np.arange(8) < 4})
    rest, _ = step(params, stats, batch | {"mask": np.arange(8) >= 4})
    assert int(half["images"]) == 4
    for name in whole:
        np.testing.assert_allclose(half[name] + rest[name], whole[name], rtol=1e-5)
    spoiled = {"image": np.where(np.arange(8).reshape(-1, 1, 1, 1) < 4, batch["image"], 0), "label": batch["label"]}
    again, _ = step(params, stats, spoiled | {"mask": np.arange(8) < 4})
    np.testing.assert_allclose(again["loss"], half["loss"], rtol=1e-6)


def test_masked_images_are_not_counted_as_right():
    _, state, batch, config, model, mesh = setup(gating="none")
    macs = MacCounter(model, 16)
    model.eval()
    step = functools.partial(eval_step, make_eval_step(split_model(model)[0], macs, config, mesh))
    # Only the bias of the output layer speaks: the order of the classes is 9, 8, ..., 0 for every image.
    params = jax.tree.map(jnp.zeros_like, state.params)
    params["backbone"]["fc"]["bias"] = jnp.arange(10.0)
    labels = np.array([9, 9, 8, 5, 4, 0, 9, 5], np.int32)

    def counts(mask):
        found, _ = step(params, state.stats, batch | {"label": labels, "mask": mask})
        return [int(found[name]) for name in ("images", "top1", "top5")]

    assert counts(np.ones(8, bool)) == [8, 3, 6]
    assert counts(np.array([1, 0, 1, 1, 1, 1, 0, 0], bool)) == [5, 1, 3]


def test_labels_that_are_no_class_are_never_right():
    _, state, batch, config, model, mesh = setup(gating="none")
    macs = MacCounter(model, 16)
    model.eval()
    step = functools.partial(eval_step, make_eval_step(split_model(model)[0], macs, config, mesh))
    labels = np.array([10, 11, -1, 10, 99, -2, 10, 10], np.int32)
    found, _ = step(state.params, state.stats, batch | {"label": labels, "mask": np.ones(8, bool)})
    assert int(found["top1"]) == 0 and int(found["top5"]) == 0 and np.isnan(found["loss"])


def test_constant_or_broken_logits_are_never_right():
    _, state, batch, config, model, mesh = setup(gating="none")
    macs = MacCounter(model, 16)
    model.eval()
    step = functools.partial(eval_step, make_eval_step(split_model(model)[0], macs, config, mesh))
    for value in (0.0, float("nan")):
        params = jax.tree.map(lambda x, value=value: jnp.full_like(x, value), state.params)
        result, _ = step(params, state.stats, batch)
        assert int(result["top1"]) == 0 and int(result["top5"]) == 0


def test_step_that_is_not_finite_changes_nothing_but_the_count():
    step, state, batch, *_ = setup(gating="all", on_nonfinite="skip", ema_decay=0.9)
    good, metrics = step(jax.tree.map(jnp.copy, state), batch, jax.random.key(0))
    assert int(metrics["skipped"]) == 0 and int(good.step) == 1
    broken = dataclasses.replace(state, params=jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), state.params))
    before = jax.device_get(broken)
    after, metrics = step(broken, batch, jax.random.key(0))
    assert int(metrics["skipped"]) == 1 and int(after.step) == 1
    assert np.isnan(metrics["loss"]), "the metrics tell what was not finite"
    for name in ("params", "stats", "ema"):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(getattr(after, name)), getattr(before, name))


def test_all_learn_which_process_stops():
    step, state, batch, *_, mesh = setup(devices=4)
    flags = np.array([0, 0, 1, 0], np.int8)
    state, metrics = step(state, batch | {"stop": jax.device_put(flags, split_by_batch(mesh))}, jax.random.key(0))
    assert int(metrics["stop"]) == 1
    _, metrics = step(state, batch | {"stop": jax.device_put(0 * flags, split_by_batch(mesh))}, jax.random.key(0))
    assert int(metrics["stop"]) == 0
