"""Starting from a trained run: what is copied, what is newly initialised, and what stays frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.ledger import difference
from gaternet_jax.config import default
from gaternet_jax.errors import UserError
from gaternet_jax.models.functional import split_model
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.training.objective import make_gate_loss
from gaternet_jax.training.optimizer import make_optimizer
from gaternet_jax.training.pretrained import freeze_gater, initialize, load_extractor, load_parts
from gaternet_jax.training.state import init_state
from gaternet_jax.training.step import make_train_step
from gaternet_jax.validation import validate
from gaternet_jax.workdir import check_workdir, load_config, save_config
from tests.helpers import digits_config, random_model, save_random_model

DIGITS = [str(i) for i in range(10)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "gated"
    save_random_model(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "plain"
    save_random_model(folder, **{"model.gating": "none"})
    return folder


def arrays(model):
    _, params, stats = split_model(model)
    return jax.tree.map(np.asarray, {"params": params, "stats": stats})


def part(tree, *path):
    for name in path:
        tree = {kind: content[name] for kind, content in tree.items() if name in content}
    return tree


def same(one, other):
    return jax.tree.structure(one) == jax.tree.structure(other) and jax.tree.all(
        jax.tree.map(np.array_equal, one, other)
    )


def fresh(classes=10, **fields):
    return random_model(digits_config(**{"model.num_classes": classes} | fields).model, seed=1)


@pytest.mark.parametrize("parts", ["all", "backbone", "gater"])
def test_the_parts_asked_for_are_copied_and_no_other(trained, parts):
    model = fresh()
    before, source = arrays(model), arrays(random_model(load_config(trained).model))
    said = load_parts(model, trained, parts, DIGITS)
    after = arrays(model)
    for name, copied in (("backbone", parts != "gater"), ("gater", parts != "backbone")):
        assert same(part(after, name), part(source if copied else before, name))
        assert (f"The {name} starts from {trained}" in said) == copied


def test_an_auxiliary_classifier_starts_anew(trained):
    model = fresh(4, **{"model.gater.auxiliary_weight": 1.0})  # where the run has none
    before = arrays(model)
    load_parts(model, trained, "gater", DIGITS[:4])
    assert same(part(arrays(model), "gater", "auxiliary"), part(before, "gater", "auxiliary"))
    assert not same(part(arrays(model), "gater", "extractor"), part(before, "gater", "extractor"))


@pytest.mark.parametrize("classes", [DIGITS[:4], DIGITS[::-1]])
def test_the_output_layer_of_other_classes_is_new_and_that_is_said(trained, classes):
    model = fresh(len(classes))
    before, source = arrays(model), arrays(random_model(load_config(trained).model))
    said = load_parts(model, trained, "all", classes)
    after = arrays(model)
    assert same(part(after, "backbone", "fc"), part(before, "backbone", "fc"))
    assert same(part(after, "backbone", "stage1"), part(source, "backbone", "stage1"))
    assert f"newly initialised: the classes are others than there (10 there, {len(classes)} here)" in said[1]


def test_another_network_is_refused(trained, plain):
    for model, parts, message in (
        (
            fresh(**{"model.width": 4}),
            "backbone",
            r"backbone of .* \d+ arrays differ, e\.g\. bn\.bias: \(8,\) there, \(4,\)",
        ),
        (fresh(**{"model.backbone": "resnet14"}), "backbone", r"stage1\.block2\.bn1\.bias: none there, \(8,\) here"),
        (fresh(**{"model.gater.bottleneck": 4}), "gater", r"gater of .* head\.bottleneck\.bias: \(8,\) there, \(4,\)"),
        (fresh(**{"model.gating": "last"}), "all", r"gater of .* head\.scores\.bias: \(112,\) there, \(56,\) here"),
        (
            fresh(**{"model.gating": "none"}),
            "all",
            "this model has no global gater; choose --config.init_parts=backbone",
        ),
        (fresh(**{"model.gating": "none"}), "gater", "this model has no global gater"),
    ):
        with pytest.raises(UserError, match=message):
            load_parts(model, trained, parts, DIGITS)
    with pytest.raises(UserError, match=rf"but {plain} has no global gater; choose --config\.init_parts=backbone"):
        load_parts(fresh(), plain, "all", DIGITS)
    with pytest.raises(UserError, match=f"this model and {plain} have no global gater"):
        load_parts(fresh(**{"model.gating": "none"}), plain, "gater", DIGITS)


def test_a_config_says_where_a_model_starts(trained, plain):
    source = arrays(random_model(load_config(trained).model))
    model = fresh()
    fields = {"init_from": str(trained), "init_parts": "backbone", "model.gater.pretrained": str(plain)}
    said = initialize(model, digits_config(**fields), DIGITS)
    assert said == [f"The backbone starts from {trained}", f"The gater's extractor starts from {plain}"]
    assert same(part(arrays(model), "backbone"), part(source, "backbone"))
    assert initialize(model, digits_config(), DIGITS) == []
    whole = fresh(**{"model.gating": "none"})
    assert initialize(whole, digits_config(init_from=str(plain)), DIGITS) == [f"The backbone starts from {plain}"]
    with pytest.raises(UserError, match=r"init_from and model\.gater.pretrained are both for the gater; give one"):
        validate(digits_config(**fields | {"init_parts": "all"}), 1)


def test_the_extractor_starts_from_a_plain_run(trained, plain):
    model = fresh()
    before, source = arrays(model), arrays(random_model(load_config(plain).model))
    load_extractor(model, plain)
    extractor = part(source, "backbone")
    del extractor["params"]["fc"]
    assert same(part(arrays(model), "gater", "extractor"), extractor)
    assert same(part(arrays(model), "backbone"), part(before, "backbone"))
    with pytest.raises(UserError, match=r"no plain run of the gater's extractor \(it is gated\)"):
        load_extractor(model, trained)
    with pytest.raises(UserError, match=r"\d+ arrays differ, e\.g\. bn\.bias"):
        load_extractor(fresh(**{"model.gater.width": 4}), plain)
    with pytest.raises(UserError, match="this model has no global gater"):
        load_extractor(fresh(**{"model.gating": "none"}), plain)


def test_a_frozen_gater_stays_to_the_bit_and_so_do_its_statistics():
    config = digits_config(**{"optimizer.gater_rate": 0.0, "optimizer.weight_decay": 0.1})
    model = fresh()
    model.train()
    freeze_gater(model, 0.0)
    graphdef, params, stats = split_model(model)
    optimizer = make_optimizer(config.optimizer, lambda _: 0.1)
    gate_loss = make_gate_loss(config.loss, model.gate_sites, MacCounter(model, 8))
    step = jax.jit(make_train_step(graphdef, optimizer, lambda _: 0.1, gate_loss, config))
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)
    state = init_state(params, stats, optimizer)
    for _ in range(2):
        state, _ = step(state, {"image": images, "label": jnp.arange(8), "mask": np.ones(8, bool)}, jax.random.key(0))
    assert same(params["gater"], state.params["gater"]) and same(stats["gater"], state.stats["gater"])
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), params["backbone"], state.params["backbone"])
    assert jax.tree.all(moved)


def test_a_rate_of_no_gater_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.gater_rate=0\.5 was given, but this model has no global gater"):
        freeze_gater(fresh(**{"model.gating": "none"}), 0.5)
    freeze_gater(fresh(**{"model.gating": "none"}), 1.0)


def test_which_run_it_was_does_not_tell_runs_apart(tmp_path):
    """A run goes on after the one that it started from has moved; the ledger has one entry for both."""
    first, moved, scratch = (digits_config(init_from=folder) for folder in ("runs/a", "elsewhere/b", ""))
    save_config(first, DIGITS, tmp_path)
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    check_workdir(tmp_path, moved)
    with pytest.raises(UserError, match="init_from: a run in the workdir,  given"):
        check_workdir(tmp_path, scratch)
    assert difference(first, tmp_path)["init_from"] == "a run"
    assert difference(first, tmp_path) == difference(moved, tmp_path) != difference(scratch, tmp_path)
    assert "init_from" not in difference(default(), tmp_path)


def test_a_new_output_layer():
    model = fresh()
    before = arrays(model)
    model.reset_classifier(3, seed=1)
    assert model.backbone.fc.kernel.shape == (model.backbone.num_features, 3)
    outputs = jax.eval_shape(model, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))
    assert outputs.logits.shape == (2, 3)
    assert same(part(arrays(model), "gater"), part(before, "gater"))
    one, other = fresh(), fresh()
    one.reset_classifier(3)
    other.reset_classifier(3, seed=1)
    assert not np.array_equal(one.backbone.fc.kernel, other.backbone.fc.kernel)
    np.testing.assert_array_equal(other.backbone.fc.kernel, model.backbone.fc.kernel)
    two = fresh(**{"model.gater.auxiliary_weight": 1.0})
    two.reset_classifier(3)
    assert two.gater.auxiliary.kernel.shape == (two.gater.extractor.num_features, 3)
    with pytest.raises(UserError, match="num_classes=0 must be at least 1"):
        model.reset_classifier(0)
