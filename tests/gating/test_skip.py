"""Whole networks: the logits of the masked one; of all families: tests/inference/test_network.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax.gating import count_macs, gate, skip_closed
from gaternet_jax.models.functional import merge_model, split_model
from tests.gating.foreign import foreign
from tests.helpers import model_config, random_model

SIZE = 16  # pixels


def backbone(name, width, gating="all", **overrides):
    """A backbone as a function of (arrays, images, gates), its arrays, and the number of gates."""
    model = random_model(model_config(backbone=name, width=width, gating=gating, **overrides))
    graphdef, params, stats = split_model(model)
    gates = sum(site.size for site in model.gate_sites)
    return lambda arrays, x, gates: merge_model(graphdef, *arrays).backbone(x, gates), (params, stats), gates


def selection(sites, seed=0):
    """Sites keep 0, 25, 50, 75 and 100% in turn; of 0%, one channel whose gate is closed. Unordered channels."""
    rng = np.random.default_rng(seed)
    shares = [(number + seed) % 5 / 4 for number in range(len(sites))]
    keep = [
        rng.permutation(site.size)[: max(round(share * site.size), 1)]
        for site, share in zip(sites, shares, strict=True)
    ]
    return keep, [
        np.zeros(site.size, bool) if share == 0 else np.isin(np.arange(site.size), index)
        for site, share, index in zip(sites, shares, keep, strict=True)
    ]


def differences(function, params, num_gates, batch=3, dtype=jnp.float32, size=SIZE):
    """Largest difference of logits, of images that open all, none and some of the kept channels."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(batch, size, size, 3)), dtype)
    program = skip_closed(function, params, x, jnp.zeros((batch, num_gates)))
    keep, may_open = selection(program.sites)
    share = np.array([[1.0], [0.0], [0.6]])[:batch]
    gates = np.concatenate(may_open) & (rng.random((batch, num_gates)) < share)
    assert gates[0].any() and not gates.all()
    gates = jnp.asarray(gates, jnp.float32)
    both = jax.jit(lambda params, keep, *args: (program(program.prepare(params, keep), *args), function(params, *args)))
    out, wanted = both(params, keep, x, gates)
    assert out.dtype == wanted.dtype and np.abs(np.asarray(wanted)).max() > 0.1
    return np.abs(np.asarray(out - wanted)).max()


def operations(program, *args):
    """What is left for each batch."""
    return jax.make_jaxpr(program)(*args).eqns[0].params["jaxpr"].eqns


@pytest.mark.parametrize("scope", ["global", "local"])
def test_whole_models_that_decide_their_gates(scope):
    """The heads compute the kept gates only, in one place or in each block."""
    model = random_model(model_config(backbone="densenet10", gating="all", **{"gater.scope": scope}))
    graphdef, params, stats = split_model(model)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, SIZE, SIZE, 3)), jnp.float32)
    wanted = jax.jit(lambda arrays, x: merge_model(graphdef, *arrays)(x))((params, stats), x)
    program = skip_closed(lambda arrays, x: merge_model(graphdef, *arrays)(x).logits, (params, stats), x)
    opened = np.asarray(wanted.gates).any(0)
    keep = [np.flatnonzero(opened[site.gates]) if opened[site.gates].any() else np.array([1]) for site in program.sites]
    assert 0 < opened.mean() < 1
    logits = program(program.prepare((params, stats), keep), x)
    np.testing.assert_allclose(logits, wanted.logits, atol=1e-4)
    widths = [len(index) for index in keep]
    heads = [layer for layer in program.explain(widths).layers if layer.name.endswith("scores")]
    assert sum(layer.outputs.count(widths) for layer in heads) == sum(widths)


def test_a_foreign_network_gives_the_logits_of_the_masked_one():
    assert differences(*foreign()) <= 1e-4
    assert differences(*foreign(), batch=1) <= 1e-4


def test_sums_of_whole_maps_are_exact():
    assert differences(*backbone("resnet11_bottleneck", 4)) <= 1e-4


@pytest.mark.parametrize("fold", [True, False])
def test_sums_of_whole_maps_leave_out_what_is_not_kept(fold):
    def function(params, x, gates):
        maps = x @ params if fold else jnp.sin(x)
        return x + gate(maps, gates, "sum") / 2

    params, x, gates = jnp.arange(9.0).reshape(3, 3), jnp.ones((1, 3)), jnp.array([[1, 0.5, 0]])
    program = skip_closed(function, params, x, gates)
    for always_open, opened in ([], 0.5), (["sum"], 1):
        wanted = function(params, x, jnp.array([[0, opened, 0]]))
        prepared = program.prepare(params, [[1]], always_open)
        np.testing.assert_allclose(program(prepared, x, gates), wanted)
        names = [equation.primitive.name for equation in operations(program, prepared, x, gates)]
        assert ("mul" in names) != fold, "zeros are in the kernel, where there is one"


def test_sums_of_whole_maps_leave_no_scatter():
    function, params, num_gates = backbone("resnet8", 4, "all")
    shapes = jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), jnp.float32), jax.ShapeDtypeStruct((2, num_gates), jnp.float32)
    program = skip_closed(function, params, *shapes)
    keep = [np.arange(site.size // 2) for site in program.sites]
    prepared = jax.eval_shape(lambda params: program.prepare(params, keep), params)
    names = [equation.primitive.name for equation in operations(program, prepared, *shapes)]
    assert not any(name.startswith("scatter") for name in names)
    assert (names.count("mul"), names.count("jit")) == (0, 6), "zeros are in the kernels, gates are still gates"
    assert not any(layer.outputs for layer in program.explain().layers if ".conv2" in layer.name)
    counted = count_macs(function, params, *shapes).layers
    assert all(layer.outputs for layer in counted if ".conv2" in layer.name), "what could be saved is counted"


@pytest.mark.parametrize(
    "network",
    [
        lambda: foreign(jnp.bfloat16),
        pytest.param(lambda: backbone("resnet8", 4, dtype="bfloat16"), marks=pytest.mark.slow),
    ],
)
def test_bfloat16_differs_by_its_rounding(network):
    """Kernels are rounded after BatchNorm was folded in, not before: logits of about 3, roundings of 2^-8."""
    assert differences(*network()) <= 3e-2


def test_closed_channels_are_not_computed():
    """Work that is left, and what explain() says of it."""
    function, params, num_gates = backbone("densenet10", 4)
    shapes = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32), jax.ShapeDtypeStruct((1, num_gates), jnp.float32)
    program = skip_closed(function, params, *shapes)
    widths = [site.size // 4 for site in program.sites]
    prepared = jax.eval_shape(lambda params: program.prepare(params, [np.arange(width) for width in widths]), params)
    done = [
        np.prod(equation.outvars[0].aval.shape[:-1]) * np.prod(equation.invars[1].aval.shape)
        for equation in operations(program, prepared, *shapes)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    explained = program.explain(widths)
    np.testing.assert_allclose(sum(done), sum(layer.macs * layer.left(widths) for layer in explained.layers))
    text = str(explained)
    assert "0.backbone.block1_layer1.conv2" in text and "gate block1_layer1.conv1: skips outputs of" in text


def test_one_compiled_program_serves_all_selections_of_the_same_widths():
    function, params, num_gates = backbone("resnet8", 4)
    x = jnp.ones((2, SIZE, SIZE, 3))
    traced = []

    def counted(*args):
        traced.append(args)
        return function(*args)

    program = skip_closed(counted, params, x, jnp.zeros((2, num_gates)))
    outputs = []
    for seed in (0, 5):  # the same widths
        keep, may_open = selection(program.sites, seed)
        gates = jnp.tile(jnp.asarray(np.concatenate(may_open), jnp.float32), (2, 1))
        outputs.append(
            program(
                program.prepare(params, dict(zip([site.name for site in program.sites], keep, strict=True))), x, gates
            )
        )
        np.testing.assert_allclose(outputs[-1], function(params, x, gates), atol=1e-5)
    assert len(traced) == 1 and program._run._cache_size() == program._prepare._cache_size() == 1
    assert np.abs(outputs[0] - outputs[1]).max() > 0
