"""Every mode of every family gives the logits of the masked dense model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gaternet_jax.errors import UserError
from gaternet_jax.inference import Predictor, dynamic, open_filters, tuning
from gaternet_jax.inference.calibration import run_model
from gaternet_jax.inference.predictor import MODES
from gaternet_jax.models import layers
from gaternet_jax.models.convolution import convolution
from gaternet_jax.models.local import LocalHead
from tests.helpers import model_config, random_model

SIZE, KINDS = 16, 4  # pixels; how many patterns of gates there are
FAMILIES = {
    "basic": {},
    "bottleneck": {"backbone": "resnet11_bottleneck"},
    "large images": {"backbone": "resnet18", "width": 8},
    "squeeze": {"squeeze_ratio": 2},
    "dense": {"backbone": "densenet10_k8", "width": 0},
    "dense, squeeze": {"backbone": "densenet10_k8", "width": 0, "squeeze_ratio": 2},
    "shake": {"backbone": "shake26_2x4d", "width": 0},
    "shake, squeeze": {"backbone": "shake26_2x4d", "width": 0, "squeeze_ratio": 2},
}


def images_of(kinds, seed=0):
    """Images that the engineered gater tells apart: kind k is bright in quarter k."""
    images = np.random.default_rng(seed).normal(size=(len(kinds), SIZE, SIZE, 3)).astype(np.float32) * 0.1
    for image, kind in zip(images, kinds, strict=True):
        row, column = divmod(int(kind), 2)
        image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 1.0 + kind
    return images


def engineered(patterns=None, scope="global", seed=0, **overrides):
    """A model whose gates for images of kind k are patterns[k]."""
    config = model_config(**({"gater.scope": scope, "gater.batch_norm": True, "gater.bottleneck": KINDS} | overrides))
    model = random_model(config, seed)
    if patterns is None:
        return model
    if scope == "local":
        for _, module in nnx.iter_modules(model):
            if isinstance(module, LocalHead):
                start, size = module.sites[0].offset, module.scores.out_features
                own = np.where(patterns[0][start : start + size], 9.0, -9.0)
                module.scores.bias.set_value(jnp.asarray(own, jnp.float32))
        return model
    # Least squares from the extractor's features to one unit of the bottleneck per kind.
    head, kinds = model.gater.head, np.arange(KINDS).repeat(8)
    features = np.asarray(model.gater.extractor.features(jnp.asarray(images_of(kinds, seed=99))), np.float64)
    features = np.concatenate([features, np.ones((len(features), 1))], 1)
    weights = np.linalg.lstsq(features, np.eye(KINDS)[kinds] - 0.5, rcond=None)[0]
    head.bn = None
    head.bottleneck.kernel.set_value(jnp.asarray(weights[:-1], jnp.float32))
    head.bottleneck.bias.set_value(jnp.asarray(weights[-1], jnp.float32))
    scores = np.where(patterns, 40.0, -40.0)
    head.scores.kernel.set_value(jnp.asarray(scores, jnp.float32))
    head.scores.bias.set_value(jnp.zeros(scores.shape[1], jnp.float32))
    return model


def random_patterns(model, rate=0.5, seed=0):
    gates = sum(site.size for site in model.gate_sites)
    return np.random.default_rng(seed).random((KINDS, gates)) < rate


def differing(model, mode, images, calibration=None, **options):
    outputs = Predictor(model, mode, calibration, tune=False, **options)(images)
    wanted = run_model(model, images)
    np.testing.assert_array_equal(outputs.gates, wanted.gates)
    return np.abs(outputs.logits - wanted.logits).max(1)


MIXED = {"gating": "all", "backbone": "resnet11_bottleneck"}  # 1x1 and 3x3 convolutions
QUICK = (("basic", "all"), ("dense", "residual"))


@pytest.mark.parametrize(
    ("family", "gating"),
    [
        pytest.param(family, gating, marks=() if (family, gating) in QUICK else pytest.mark.slow)
        for family in FAMILIES
        for gating in ("residual", "all")
    ],
)
def test_every_mode_gives_the_logits_of_the_masked_model(family, gating):
    overrides = FAMILIES[family] | {"gating": gating}
    patterns = random_patterns(engineered(**overrides), 0.4)
    patterns[:, ::3] = False  # a third is never open, another always
    patterns[:, 1::3] = True
    model = engineered(patterns, **overrides)
    calibration, images = images_of(np.arange(64) % KINDS, seed=1), images_of([0, 3, 1], seed=2)
    assert 0 < run_model(model, images).gates.mean() < 1
    assert len(np.unique(run_model(model, images).gates, axis=0)) == 3  # the gater was engineered well
    for mode in ("dense", "compact", "specialists", "dynamic"):
        assert differing(model, mode, images, calibration, batch_sizes=(4,)).max() <= 1e-4, mode


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        pytest.param({"backbone": "densenet10_k8", "width": 0}, marks=pytest.mark.slow),
        pytest.param({"squeeze_ratio": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_blocks_that_gate_themselves(overrides):
    overrides = {"gating": "all"} | overrides
    model = engineered(random_patterns(engineered(**overrides)), scope="local", **overrides)
    images = images_of([0, 1, 2], seed=2)
    for mode in ("dense", "compact", "dynamic"):
        assert differing(model, mode, images, images, batch_sizes=(3,)).max() <= 1e-4, mode
    with pytest.raises(UserError, match="block by block"):
        Predictor(model, "specialists", images)


@pytest.mark.parametrize("mode", ["dense", "compact", "specialists", "dynamic"])
def test_batches_of_any_size_come_back_in_order(mode):
    model = engineered(random_patterns(engineered(gating="all")), gating="all")
    predictor = Predictor(model, mode, images_of(np.arange(64) % KINDS, seed=1), batch_sizes=(1, 16), tune=False)
    for count in (1, 3, 64):
        images = images_of(np.arange(count) * 7 % KINDS, seed=2)
        outputs, wanted = predictor(images), run_model(model, images)
        np.testing.assert_array_equal(outputs.gates, wanted.gates)
        np.testing.assert_allclose(outputs.logits, wanted.logits, atol=1e-4)


@pytest.mark.parametrize("mode", ["dense", "compact", "specialists", pytest.param("dynamic", marks=pytest.mark.slow)])
def test_whatever_is_measured_the_logits_are_the_same(mode, monkeypatch):
    """All algorithms, widths and ways that measurements could choose; here by chance."""
    rng = np.random.default_rng(MODES.index(mode))
    monkeypatch.setattr(tuning.ConvTimes, "measure", lambda _, runs, *__: list(rng.uniform(1, 2, len(runs))))
    chosen = set()
    monkeypatch.setattr(layers, "convolution", lambda *args: chosen.add(args[-1]) or convolution(*args))
    monkeypatch.setattr(dynamic, "convolution", layers.convolution)
    model = engineered(random_patterns(engineered(**MIXED), 0.3), **MIXED)
    calibration, images = images_of(np.arange(64) % KINDS, seed=1), images_of([0, 3, 1], seed=2)
    predictor = Predictor(model, mode, calibration, batch_sizes=(4,))
    outputs, wanted = predictor(images), run_model(model, images)
    np.testing.assert_array_equal(outputs.gates, wanted.gates)
    np.testing.assert_allclose(outputs.logits, wanted.logits, atol=1e-4)
    assert len(chosen) > 2, "the model has convolutions for several algorithms"


def test_parts_of_kernels_are_those_that_indices_take():
    kernel, some = jax.random.normal(jax.random.key(0), (3, 2, 5, 7)), jnp.array([3, 0, 4])
    np.testing.assert_array_equal(open_filters.take_inputs(kernel, some), kernel[:, :, some])
    np.testing.assert_array_equal(open_filters.take_outputs(kernel, some), kernel[..., some])


@pytest.mark.parametrize("filters", [1, 5, 64])
def test_open_filters_come_first_and_else_in_order(filters):
    opened = np.random.default_rng(0).random((4, filters)) < np.array([[0], [0.3], [0.7], [1]])
    orders, numbers = open_filters.open_first(jnp.asarray(opened))
    np.testing.assert_array_equal(orders, np.argsort(~opened, axis=1, kind="stable"))
    np.testing.assert_array_equal(numbers, opened.sum(1))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_any_pattern_of_gates(seed):
    """Backbones get gates that no gater gives: random ones, all closed, all open, one filter alone."""
    from gaternet_jax.inference.dynamic import make_dynamic

    model = engineered(gating="all", seed=seed)
    size, rng = sum(site.size for site in model.gate_sites), np.random.default_rng(seed)
    patterns = np.stack([rng.random(size) < rate for rate in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)] + [np.arange(size) == 5])
    gates, images = jnp.asarray(patterns, jnp.float32), jnp.asarray(images_of(np.arange(8) % KINDS))
    dynamic = make_dynamic(model, SIZE)
    run = jax.jit(lambda image, gates: dynamic.backbone(image, gates))
    wanted = model.backbone(images, gates)
    for i in range(len(patterns)):
        np.testing.assert_allclose(run(images[i : i + 1], gates[i : i + 1])[0], wanted[i], atol=1e-4)
    np.testing.assert_allclose(run(images, gates), wanted, atol=1e-4)


def test_images_that_calibration_never_saw():
    """Exact modes stay exact; compaction counts what it only approximates."""
    from gaternet_jax.inference.compact import compact_model, departures

    model = engineered(random_patterns(engineered(gating="all")), gating="all")
    calibration, images = images_of(np.zeros(16, int), seed=1), images_of(np.arange(8) % KINDS, seed=2)
    for mode in ("specialists", "dynamic"):
        assert differing(model, mode, images, calibration, batch_sizes=(8,)).max() <= 1e-4, mode
    compacted, selection = compact_model(model, run_model(model, calibration).gates)
    whole, narrow = run_model(model, images), run_model(compacted, images)
    left = departures(whole.gates, model.gate_sites, selection)
    np.testing.assert_array_equal(left, np.arange(8) % KINDS != 0)
    difference = np.abs(whole.logits - narrow.logits).max(1)
    assert difference[~left].max() <= 1e-4 < difference[left].min()
