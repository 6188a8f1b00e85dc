"""The checks of programs compiled for TPUs, on small texts and on programs for the CPU; libtpu is not needed."""

import dataclasses
import importlib.util
import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gaternet_jax.training.step
from benchmarks import tpu, tpu_aot
from benchmarks.hlo import Array, find_collectives, hbm_traffic
from gaternet_jax.config import default
from gaternet_jax.models.build import abstract_model
from gaternet_jax.models.functional import split_model
from gaternet_jax.models.mac_counter import MacCounter
from tests.helpers import model_config

COMBINED = """
ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(128)} parameter(0)
  %all-reduce.1 = (f32[64]{0:T(128)S(1)}, bf16[3,3,4,4]{3,2,1,0:T(8,128)(2,1)}, /*index=2*/f32[]) all-reduce(%a, %b, %c), channel_id=1, to_apply=%add, metadata={op_name="jit(train_step)/jvp()/reduce_sum"}
  %g.0 = f32[64]{0} get-tuple-element(%all-reduce.1), index=0, metadata={op_name="jit(train_step)/jvp()/reduce_sum"}
  %g.1 = bf16[3,3,4,4]{3,2,1,0} get-tuple-element(%all-reduce.1), index=1, metadata={op_name="jit(train_step)/transpose(jvp())/conv_general_dilated"}
  ROOT %g.2 = f32[] get-tuple-element(%all-reduce.1), index=2, metadata={op_name="say \\"all-gather(\\" and go on"}
}
"""  # noqa: E501
ASYNC = """
%fused (p: f32[8]) -> f32[8] {
  %collective-permute.7 = u8[4,224]{1,0} collective-permute(%p), source_target_pairs={{0,1}}
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %ar = (f32[8]{0}, f32[]) all-reduce-start(%p, %q), metadata={op_name="jit(f)/first"}
  %ag = ((f32[8]{0}), f32[32]{0}) all-gather-start(%p), dimensions={0}
  %fusion = u8[4,224]{1,0} fusion(%p), kind=kCustom, calls=%fused
  %send = (f32[8]{0}, u32[], token[]) send(%p, %token), channel_id=3
  %call = f32[8]{0} custom-call(%p), custom_call_target="CrossChipAllToAll"
  %harmless = f32[8]{0} custom-call(%p), custom_call_target="ConcatBitcast"
  %ar.done = (f32[8]{0}, f32[]) all-reduce-done(%ar)
  %ag.done = f32[32]{0} all-gather-done(%ag)
  %send.done = token[] send-done(%send)
  ROOT %part = f32[] get-tuple-element(%ar.done), index=1, metadata={op_name="jit(f)/second"}
}
"""
CHIP = tpu.Chip(flops=100.0, hbm=1000, hbm_bandwidth=10.0, ici_bandwidth=4.0, source="")


def tiny_config(images=8, **model_fields):
    config = default()
    config.model = model_config(**{"gating": "all"} | model_fields)
    config.data.image_size, config.data.pipeline = 16, "stream"
    config.train.batch_size = images
    return config


def test_dispatch_of_small_images_is_a_loop_over_images_on_the_devices():
    config = tiny_config(gating="none")
    config.data.pipeline = "auto"
    lowered, _ = tpu_aot.lower_step(config, jax.devices()[:2])
    shapes = {tuple(leaf.shape) for leaf in jax.tree.leaves(lowered.in_avals)}
    assert (tpu_aot.CIFAR_IMAGES, 16, 16, 3) in shapes and (config.train.log_every_steps, 8) in shapes
    assert tpu_aot.find_config("cifar10:resnet56-plain").model.backbone == "resnet56"
    assert tpu_aot.find_config("resnet18").data.pipeline == "stream"


def test_combined_collective_is_read_array_by_array():
    (collective,) = find_collectives(COMBINED)
    assert collective.opcode == "all-reduce"
    (sums, first), (kernel, second), (scalar, _) = collective.arrays
    assert sums == Array("f32", (64,), in_hbm=False) and first.endswith("/jvp()/reduce_sum")
    assert kernel == Array("bf16", (3, 3, 4, 4)) and second.endswith("/conv_general_dilated")
    assert (sums.bytes, kernel.bytes, scalar.bytes) == (256, 288, 4)


def test_asynchronous_fused_and_hidden_collectives_are_found_once():
    found = {collective.opcode: collective for collective in find_collectives(ASYNC)}
    expected = {"all-reduce-start", "all-gather-start", "collective-permute", "send", "custom-call CrossChipAllToAll"}
    assert set(found) == expected and len(find_collectives(ASYNC)) == len(expected)
    assert [op_name for _, op_name in found["all-reduce-start"].arrays] == ["jit(f)/first", "jit(f)/second"]


def test_line_that_is_not_understood_is_an_error():
    with pytest.raises(ValueError, match="all-to-all"):
        find_collectives(COMBINED + "\n  a new way to write all-to-all(%p)\n")


def test_purposes_and_what_is_not_allowed():
    model = abstract_model(model_config(gating="all", width=4))
    backward, forward = "jit(train_step)/transpose(jvp())/dot_general", "jit(train_step)/jvp()/reduce_sum"
    for shape, op_name, purpose in [
        ((3, 3, 4, 8), backward, "gradient"),
        ((3, 3, 4, 8), "jit(train_step)/mul", "other"),  # a parameter, not its gradient
        ((4,), forward, "batchnorm"),
        ((4,), "jit(train_step)/jvp()/concatenate", "other"),
        ((), "jit(train_step)/reduce_sum", "metric"),
        ((8, 16, 16, 3), backward, "other"),  # an activation
    ]:
        assert tpu_aot.Purposes(model)(Array("f32", shape), op_name) == purpose
    sums, problems = tpu_aot.check_collectives(find_collectives(ASYNC), model)
    assert sums["metric"] == [1, 4] and len(problems) == sums["other"][0] > 4
    assert any(problem.startswith("all-gather-start of f32[32]") for problem in problems)


def test_memory_counts_shared_buffers_once():
    memory = {"arguments": 500, "outputs": 400, "aliased": 390, "temporaries": 400, "code": 90}
    assert tpu.check_memory(memory, CHIP) == []
    (problem,) = tpu.check_memory(memory | {"code": 91}, CHIP)
    assert "a chip needs" in problem


def test_traffic_leaves_out_what_lies_on_the_core():
    text = """
%fused (p: f32[8]) -> f32[8] {
  %n = f32[1000]{0} negate(%p)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(128)} parameter(0)
  %start = (f32[8]{0:S(1)}, f32[8]{0:T(128)}, u32[]{:S(2)}) copy-start(%p)
  %done = f32[8]{0:S(1)} copy-done(%start)
  %slice = ((f32[8]{0}), f32[4]{0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:4]}
  ROOT %out = bf16[8]{0:T(128)} fusion(%done, %p), kind=kLoop, calls=%fused
}
"""
    assert hbm_traffic(text) == 32 + 16 + (32 + 16)


def test_roofline_by_hand():
    seconds = tpu_aot.roofline(flops=200.0, hbm_bytes=50.0, reduced_bytes=8.0, chips=4, chip=CHIP)
    assert seconds == {"compute": 2.0, "HBM": 5.0, "ICI": 2 * 0.75 * 8 / 4}
    assert tpu_aot.roofline(1.0, 1.0, 8.0, 1, CHIP)["ICI"] == 0


def test_analytic_count_agrees_with_the_compiler():
    """A wide network, whose convolutions outweigh its elementwise work."""
    config = tiny_config(width=64, gating="none")
    lowered, model = tpu_aot.lower_step(config, jax.devices()[:1])
    analytic = tpu_aot.analytic_flops(model, 16, 8)
    np.testing.assert_allclose(lowered.cost_analysis()["flops"], analytic, rtol=0.05)


def test_images_need_no_gradient(monkeypatch):
    """Neither the gater's first convolution nor the backbone's has a gradient of its input to compute."""
    monkeypatch.setattr(tpu_aot, "share_off_padding", lambda *_: 1.0)
    model = abstract_model(model_config(gating="all"))
    counter = MacCounter(model, 16)
    first = [layer.macs for layer in counter.layers if layer.name in ("gater.extractor.conv", "backbone.conv")]
    assert len(first) == 2
    assert tpu_aot.analytic_flops(model, 16, 8) == 2 * 8 * (3 * (counter.dense + counter.gater) - sum(first))


def test_real_step_exchanges_sums_only():
    lowered, model = tpu_aot.lower_step(tiny_config(), jax.devices()[:2])
    collectives = find_collectives(lowered.compile().as_text())
    sums, problems = tpu_aot.check_collectives(collectives, model)
    assert problems == []
    kernels = [leaf for leaf in jax.tree.leaves(split_model(model)[1]) if leaf.ndim > 1]
    assert sums["gradient"][0] >= len(kernels) and sums["gradient"][1] >= sum(4 * leaf.size for leaf in kernels)
    assert sums["batchnorm"][0] > 0 and sums["metric"][0] >= 3


def test_step_on_images_split_by_height_is_refused(monkeypatch):
    def by_height(mesh):
        axes = {"image": (None, "data"), "label": (), "mask": (), "stop": ("data",)}
        return {name: NamedSharding(mesh, PartitionSpec(*of)) for name, of in axes.items()}

    monkeypatch.setattr(gaternet_jax.training.step, "split_by_batch", by_height)
    lowered, model = tpu_aot.lower_step(tiny_config(gating="none"), jax.devices()[:2])
    _, problems = tpu_aot.check_collectives(find_collectives(lowered.compile().as_text()), model)
    assert any("collective-permute" in problem or "all-gather" in problem for problem in problems)


@pytest.fixture
def run(monkeypatch):
    """A function: runs the command for the two first CPU devices, as if they were a slice, and tiny models."""
    monkeypatch.setattr(tpu_aot, "find_devices", lambda topology: jax.devices()[:2])
    monkeypatch.setattr(tpu_aot, "find_config", lambda variant: tiny_config(gating="none" if variant else "last"))

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["tpu_aot", *arguments])
        tpu_aot.main()

    return command


def test_command_prints_tables_and_fails_when_memory_is_exceeded(run, monkeypatch, tmp_path, capsys):
    out = tmp_path / "rows.json"
    arguments = "--topologies=v5e:1x2", "--models=plain", "--images_per_chip=4", f"--json={out}"
    chip = tpu.CHIPS["v5e"]
    monkeypatch.setitem(tpu.CHIPS, "v5e", dataclasses.replace(chip, hbm=1e5))
    with pytest.raises(SystemExit, match=r"plain for v5e:1x2: a chip needs .* GB and has 0\.00 GB"):
        run(*arguments)
    printed = capsys.readouterr().out
    assert printed.count("| v5e:1x2 | plain |") == 3 and "197 TFLOP/s" in printed
    (row,) = json.loads(out.read_text())
    assert row["chips"] == 2 and row["images_per_second"] == 4 / max(row["seconds"].values())
    monkeypatch.setattr(tpu_aot, "examine", lambda *_: row | {"problems": []})
    run(*arguments)  # and does not fail


def test_compiler_that_runs_out_of_memory_is_reported(run, monkeypatch):
    def compile():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory: used 20.5G of 15.7G hbm")

    monkeypatch.setattr(tpu_aot, "lower_step", lambda *_: (SimpleNamespace(compile=compile), None))
    with pytest.raises(SystemExit, match=r"memory is too small.*20\.5G of 15\.7G"):
        run("--topologies=v5e:1x2", "--models=plain")


def test_unknown_chip(run):
    with pytest.raises(SystemExit, match="'h100:2' is of no known chip"):
        run("--topologies=h100:2")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_missing_libtpu_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tpu_aot"])
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[tpu\]'"):
        tpu_aot.main()
