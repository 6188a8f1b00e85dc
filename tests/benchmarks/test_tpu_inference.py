"""The programs that are compiled for TPUs, here for the CPU; libtpu is not needed."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inference import open_only
from benchmarks.mode_programs import programs
from benchmarks.tpu import Chip
from benchmarks.tpu_inference import examine
from tests.helpers import model_config, random_model

CHIP = Chip(flops=1e9, hbm=1e12, hbm_bandwidth=1e9, ici_bandwidth=1.0, source="")
SIZE, BATCH = 16, 2


def test_each_mode_does_less_than_the_masked_model(monkeypatch):
    monkeypatch.setattr("benchmarks.tpu_inference.hbm_traffic", len)  # of the compiler's text for TPUs
    model = random_model(model_config(gating="all", width=8))
    keep = np.arange(sum(site.size for site in model.gate_sites)) % 2 == 0
    open_only(model, keep)
    rows = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    images = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.float32)
    gates, flops = jax.ShapeDtypeStruct((BATCH, len(keep)), jnp.float32), {}
    for name, program, takes_gates in programs(model, keep, SIZE):
        inputs = [rows, images, *([gates] if takes_gates else [])]
        row = examine(program, inputs, jax.devices()[0], CHIP)
        assert not row["problems"] and row["bytes"] >= row["parameters"] > 0
        flops[name] = row["flops"]
    assert list(flops) == ["masked", "dense", "compact", "gater", "specialist", "profile"]
    gated = flops["masked"] - flops["gater"]
    assert flops["dense"] < flops["masked"]
    assert flops["specialist"] < 0.6 * gated and flops["compact"] - flops["gater"] < 0.6 * gated
    assert flops["profile"] < 0.6 * gated
