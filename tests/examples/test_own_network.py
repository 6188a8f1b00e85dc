"""The example does what it says, of a network that is hardly trained."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime

from examples import own_network


def test_a_network_of_ones_own(capsys):
    macs, keep, explanation, masked, compact, files = own_network.main(steps=3)
    np.testing.assert_allclose(compact, masked, atol=1e-4)
    assert [tuple(site) for site in macs.sites] == [("block1", 0, 48), ("block2", 48, 48), ("last", 96, 64)]
    block = 64 * (24 * 48 + 9 * 48 + 48 * 24)
    assert macs.dense == 64 * 9 * 24 + 2 * block + 16 * 9 * 24 * 64 + 64 * 10
    kept = np.concatenate([np.isin(np.arange(site.size), keep[site.name]) for site in macs.sites])
    left = sum(layer.macs * layer.left(explanation.widths) for layer in explanation.layers)
    assert 0 < left < macs.dense
    np.testing.assert_allclose(left, macs.count(jnp.asarray(kept[None], jnp.float32))[0], rtol=1e-5)
    exported = jax.export.deserialize(files["StableHLO"])
    assert exported.call(jnp.zeros((3, 8, 8, 1))).shape == (3, 10)
    printed = capsys.readouterr().out
    assert "gate block1: skips outputs of block1.expand, block1.depthwise; skips inputs of block1.project" in printed
    assert "always closed" in printed and "no rule" not in printed and "only masks" not in printed
    session = onnxruntime.InferenceSession(files["ONNX"], providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    np.testing.assert_allclose(session.run(None, {"images": images})[0], exported.call(images), atol=1e-4)
