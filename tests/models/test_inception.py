"""Inception-v4: its parameters and gates, and its logits beside those of timm, where that is installed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax.errors import UserError
from gaternet_jax.models.build import abstract_model, build_model, count_parameters, empty_model
from gaternet_jax.models.functional import merge_model, split_model
from tests.helpers import model_config


def config(**fields):
    return model_config(**{"backbone": "inceptionv4", "width": 0, "gating": "none", "num_classes": 1000} | fields)


def sites_of(gating):
    return {site.name: site.size for site in abstract_model(config(gating=gating)).gate_sites}


def test_parameters_are_those_of_the_released_network():
    """timm and Cadene's port of TensorFlow's code count as many."""
    assert count_parameters(abstract_model(config())) == 42_679_816


def test_residual_gates_what_other_convolutions_of_a_branch_read():
    """By hand, from the figures: filters that are not the last of their branch."""
    inner = {
        "blockA": 64 + (64 + 96),
        "reductionA": 192 + 224,
        "blockB": (192 + 224) + (192 + 192 + 224 + 224),
        "reductionB": 192 + (256 + 256 + 320),
        "blockC": 384 + (384 + 448 + 512),
        "stem_4a": 64 + (64 + 64 + 64),
        "stem_conv2": 32,
        "stem_conv3": 64,
    }
    times = {"blockA": 4, "blockB": 7, "blockC": 3}
    expected = {part: times.get(part, 1) * size for part, size in inner.items()}
    found = dict.fromkeys(expected, 0)
    for name, size in sites_of("last").items():
        found[re.sub(r"_\d+$", "", name.split(".")[0]) if name.startswith("block") else name.split(".")[0]] += size
    assert found == expected
    assert sum(found.values()) == 16_608  # [P]


def test_all_gates_every_convolution_but_the_first():
    gates, model = sites_of("all"), abstract_model(config(gating="all"))
    for name, size in gates.items():
        module = model.backbone
        for part in name.split("."):
            module = getattr(module, part)
        assert module.out_features == size
    assert "stem_conv1.conv" not in gates
    assert (len(gates), sum(gates.values())) == (149 - 1, 31_584 - 32)


def test_options_that_it_cannot_have_are_refused():
    with pytest.raises(UserError, match="asked of an Inception, which has no residual"):
        build_model(config(zero_init_residual=True))


def timm_name(path):
    """Where timm keeps an array of ours: features.N.branch1.0.conv.weight, last_linear.weight."""
    block, *rest = path.split(".")
    if block == "fc":
        return "last_linear." + {"kernel": "weight"}.get(rest[0], rest[0])
    order = ["stem_conv1", "stem_conv2", "stem_conv3", "stem_3a", "stem_4a", "stem_5a"]
    order += [f"blockA_{i}" for i in range(1, 5)] + ["reductionA"] + [f"blockB_{i}" for i in range(1, 8)]
    order += ["reductionB"] + [f"blockC_{i}" for i in range(1, 4)]
    prefix = f"features.{order.index(block)}"
    if not block.startswith("stem_conv"):
        unit = rest.pop(0)
        branch, position, fork = re.fullmatch(r"branch(\d)_(\d)([ab]?)", unit).groups()
        if block in ("stem_3a", "stem_5a"):
            unit = "conv"
        elif block.startswith("blockC") and branch in "12":
            unit = f"branch{branch}_{position}{fork}"
        elif (block[:6], branch) in {
            ("blockA", "0"),
            ("blockB", "0"),
            ("blockC", "0"),
            ("reduct", "0"),
        } and position == "0":
            unit = f"branch{branch}" + (".0" if block == "reductionB" else "")
        else:
            unit = f"branch{branch}.{position}"
        prefix += f".{unit}"
    kind, leaf = rest
    leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
    return f"{prefix}.{kind}.{leaf}"


def test_logits_agree_with_timm():
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("inception_v4", pretrained=False).eval()
    arrays = theirs.state_dict()
    for name, value in arrays.items():  # statistics and scales that do something, maps that stay of one size
        if name.endswith(("running_var", "bn.weight")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(std=0.1)
        elif value.ndim == 4:
            value.normal_(std=(2 / value[0].numel()) ** 0.5)
    images = np.random.default_rng(0).normal(size=(2, 129, 129, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).numpy()

    ours = empty_model(config())
    ours.eval()
    graphdef, params, stats = split_model(ours)
    used = set()

    def fill(tree, path=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                fill(value, f"{path}{key}.")
                continue
            name = timm_name(path + key)
            array = arrays[name].numpy()
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            assert array.shape == value.shape, name
            tree[key] = jnp.asarray(array)
            used.add(name)

    fill(params["backbone"]), fill(stats["backbone"])
    assert used == {name for name in arrays if not name.endswith("num_batches_tracked")}
    forward = jax.jit(lambda params, stats, images: merge_model(graphdef, params, stats)(images).logits)
    logits = np.asarray(forward(params, stats, jnp.asarray(images)))
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
