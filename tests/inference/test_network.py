"""Every network gives the logits of the masked one, whatever is left out of it, in both engines."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gaternet_jax.gating import GateSite
from gaternet_jax.inference.compaction import fix_gates, fixed_gates
from gaternet_jax.inference.engines import ENGINES
from gaternet_jax.inference.modes import count_per_site, widths_for
from gaternet_jax.inference.network import Network, first_open
from gaternet_jax.models.backbone import Backbone
from gaternet_jax.models.functional import merge_model, split_model
from tests.gating.foreign import Foreign
from tests.helpers import SMALL, image_size, model_config, random_model, small_config

SIZE = 16  # pixels
RATES = (0.5, 0.75, 1, 1, 0, 0.25)  # of the filters that are kept, those that an image opens, one after the other
BATCHES = (1, 3, 64)  # XLA compiles each network for one of them, in turn; ONNX Runtime takes all
VARIANTS = {
    "all": {"gating": "all"},
    "last": {"gating": "last"},
    "squeeze": {"gating": "all", "se_ratio": 2},
    "bfloat16": {"gating": "all", "dtype": "bfloat16"},
    "local": {"gating": "all", "gater.scope": "local"},
}
QUICK = {("basic", "squeeze"), ("densenet", "last"), ("basic", "local")}
CASES = [
    pytest.param(
        family,
        VARIANTS[variant],
        BATCHES[number % 3],
        id=f"{family}, {variant}",
        marks=() if (family, variant) in QUICK else pytest.mark.slow,
    )
    for number, (family, variant) in enumerate(itertools.product(SMALL, VARIANTS))
]


def selection(sites, seed=0):
    """Filters to keep, bool [G]: 0, 25, 50, 75 and 100% of the sites in turn."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.random(site.size) < (number + seed) % 5 / 4 for number, site in enumerate(sites)])


class Stranger(Backbone):
    """A backbone of plain Flax layers, of which this package knows nothing."""

    channels, num_features, fc = 3, 16, None

    def __init__(self):
        self.network = Foreign(nnx.Rngs(0))
        names, starts = ("stem", "depthwise", "project", "gate3", "gate4", "hidden"), np.cumsum([0, *Foreign.sizes])
        self.gate_sites = tuple(GateSite(*site) for site in zip(names, starts.tolist(), Foreign.sizes, strict=False))

    def __call__(self, images, gates=None, key=None):
        return self.network(images, gates)


def stranger():
    model = random_model(model_config(gating="all"))
    model.backbone = Stranger()
    model.gater.head.scores = nnx.Linear(model.gater.head.bottleneck.out_features, sum(Foreign.sizes), rngs=nnx.Rngs(1))
    return model


@pytest.mark.parametrize(("family", "variant", "compiled"), [*CASES, pytest.param("stranger", {}, 1, id="stranger")])
def test_every_network_gives_the_logits_of_the_masked_one(family, variant, compiled):
    model = stranger() if family == "stranger" else random_model(small_config(family, **variant))
    rng, size, is_float32 = np.random.default_rng(1), image_size(family, SIZE), "dtype" not in variant
    images = rng.normal(size=(max(BATCHES), size, size, 3)).astype(np.float32)
    keep, rates = selection(model.gate_sites), np.resize(RATES, (len(images), 1))
    gates = (keep[None] & (rng.random((len(images), len(keep))) < rates)).astype(np.float32)
    assert gates[2].any() and not gates[4].any()
    inputs = (images, gates)
    if model.gater is None:
        model, inputs = fix_gates(model, ~keep, np.zeros_like(keep)), (images,)
    graphdef, *arrays = split_model(model)
    network = functools.partial(Network, model, size)
    if model.gater is None:
        wanted, found = jax.jit(lambda arrays, x: merge_model(graphdef, *arrays)(x))(arrays, images)[:2]
        engines = {engine: network(engine).make("whole") for engine in ENGINES}
        gates = np.asarray(found)
    else:
        wanted = jax.jit(lambda arrays, *x: merge_model(graphdef, *arrays).backbone(*x))(arrays, *inputs)
        widths = widths_for(count_per_site(keep[None], model.gate_sites), model.gate_sites)
        xla = network("xla")
        engines = {"static": xla.make("backbone", keep), "traced": xla.profile(widths)}
        if is_float32:
            onnx = network("onnxruntime")
            engines |= {"onnxruntime": onnx.make("backbone", keep), "onnxruntime, whole": onnx.make("backbone")}
    tolerance = 1e-4 if is_float32 else 5e-2  # kernels are rounded after folding
    for name, engine in engines.items():
        for batch in BATCHES if "onnxruntime" in name else (compiled,):
            logits, *own = engine(np.arange(batch), *inputs)
            np.testing.assert_allclose(logits, wanted[:batch], atol=tolerance, err_msg=f"{name}, {batch} images")
            if own:
                np.testing.assert_array_equal(own[0], gates[:batch])


@pytest.mark.parametrize("scope", ["global", "local"])
def test_gates_that_are_fixed_do_not_depend_on_the_image(scope):
    model = random_model(model_config(gating="all", **{"gater.scope": scope}))
    assert not np.any(fixed_gates(model))
    closed, opened = (np.arange(len(selection(model.gate_sites))) % 3 == rest for rest in (0, 1))
    fixed = fix_gates(model, closed, opened)
    np.testing.assert_array_equal(fixed_gates(fixed), [closed, opened])
    images = np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    gates, before = (np.asarray(jax.jit(lambda x, net=net: net(x).gates)(images)) for net in (fixed, model))
    assert not gates[:, closed].any() and gates[:, opened].all()
    if scope == "global":  # blocks that gate themselves see other maps now
        np.testing.assert_array_equal(gates[:, ~closed & ~opened], before[:, ~closed & ~opened])
    assert not np.any(fixed_gates(model)), "the model is left as it is"


def test_gates_that_are_fixed_stay_so_in_training():
    """SemHash has no gradient there, and its noise is small beside such scores."""
    model = random_model(model_config(gating="all"))
    closed, opened = (np.arange(len(selection(model.gate_sites))) % 3 == rest for rest in (0, 1))
    fixed = fix_gates(model, closed, opened)
    fixed.train()
    graphdef, params, stats = split_model(fixed)
    images = np.random.default_rng(0).normal(size=(8, SIZE, SIZE, 3)).astype(np.float32)

    def loss(params):
        outputs = merge_model(graphdef, params, stats)(images, key=jax.random.key(0))
        return (outputs.logits**2).mean() + outputs.gates.mean(), outputs.gates

    gradient, gates = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert not gates[:, closed].any() and (gates[:, opened] == 1).all()
    assert 0 < gates[:, ~closed & ~opened].mean() < 1
    for part in gradient["gater"]["head"]["scores"].values():
        moved = np.abs(part).reshape(-1, len(closed)).max(0) > 0
        assert not moved[closed | opened].any() and moved[~closed & ~opened].mean() > 0.5


def test_a_gater_that_has_nothing_to_decide_is_not_run():
    model = random_model(model_config(gating="all"))
    keep = selection(model.gate_sites)
    network = Network(fix_gates(model, ~keep, keep), SIZE, "xla")
    names = [layer.name for layer in network.program("whole").explain().layers]
    assert names and not [name for name in names if "gater" in name]
    images = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    logits, gates, _ = network.make("whole")(np.arange(2), images)
    np.testing.assert_array_equal(gates, np.broadcast_to(keep, gates.shape))
    np.testing.assert_allclose(logits, jax.jit(lambda x: network.model(x).logits)(images), atol=1e-4)
    whole = Network(model, SIZE, "xla")
    fewer, all_of_them = (sum(array.size for array in each.prepare("whole").arrays) for each in (network, whole))
    assert fewer < all_of_them
    everything = [site.size for site in model.gate_sites]
    assert whole.work(everything) == 1 > whole.work([size // 2 for size in everything]) > 0.2


def test_a_profile_serves_every_selection_of_its_widths():
    """One compiled program; kernels were folded once."""
    model = random_model(model_config(gating="all"))
    network = Network(model, SIZE, "xla")
    widths = tuple(site.size // 2 for site in model.gate_sites)
    one, other = (network.profile(widths) for _ in range(2))
    assert one.run is other.run and one.prepared is other.prepared
    names = [step.name for step in network._folded[1]._plan(network._folded[1]._args).program.steps]
    assert "conv_general_dilated" in names and "rsqrt" not in names


@pytest.mark.parametrize("filters", [1, 5, 64])
def test_open_filters_come_first_and_else_in_order(filters):
    sites = [GateSite(f"site{number}", number * filters, filters) for number in range(4)]
    opened = np.random.default_rng(0).random((4, filters)) < np.array([[0], [0.3], [0.7], [1]])
    found = first_open(jnp.asarray(opened.ravel()), sites, [filters] * 4)
    orders = np.stack([found[site.name] for site in sites])
    np.testing.assert_array_equal(orders, np.argsort(~opened, axis=1, kind="stable"))
    few = first_open(jnp.asarray(opened.ravel()), sites, [1] * 4)
    np.testing.assert_array_equal(np.stack([few[site.name] for site in sites]), orders[:, :1])
