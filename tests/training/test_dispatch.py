"""Steps per dispatch and images on the devices change when things are computed, not what."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gaternet_jax.training.dispatch as module
from gaternet_jax.data.batches import BatchShard
from gaternet_jax.data.memory import DeviceSplit, MemorySplit
from gaternet_jax.errors import NonFiniteError
from gaternet_jax.training import mesh as parallel
from gaternet_jax.training.dispatch import StepLoop, choose_steps_per_call, stack_batches
from gaternet_jax.training.loop import train
from gaternet_jax.training.mesh import make_mesh, replicate, split_second_axis, stop_flags, to_devices
from gaternet_jax.training.state import init_state
from gaternet_jax.training.step import with_images
from tests.helpers import digits_config
from tests.training.test_loop import assert_same_bits, read_metrics, read_state

ALONE = BatchShard(0, 1)


@pytest.fixture
def on_devices(monkeypatch):
    """Steps run in a loop on the device, and images are held there, as on an accelerator."""
    monkeypatch.setattr(module, "on_accelerator", lambda mesh: True)


def run(workdir, epochs=1.0, stop_at=None, **fields):
    fields = {"train.epochs": epochs, "checkpoint.every_steps": 4, **fields}
    return train(digits_config(**fields), workdir, stop_at=stop_at)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """One epoch, 22 steps, on two devices, step by step from memory."""
    workdir, devices = tmp_path_factory.mktemp("undisturbed"), jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: devices[:2])
        run(workdir, **{"data.pipeline": "memory", "train.steps_per_call": 1})
    return workdir


@pytest.mark.parametrize(("pipeline", "steps"), [("memory", [7]), ("device", [50, 7])], ids=str)
def test_run_is_the_same_to_the_bit_whatever_the_number_of_steps(undisturbed, tmp_path, use_devices, pipeline, steps):
    """Interrupted and resumed, too, with another number."""
    use_devices(2)
    for place, number in enumerate(steps):
        stop_at = None if number == steps[-1] else 5 + 4 * place
        run(tmp_path, stop_at=stop_at, **{"data.pipeline": pipeline, "train.steps_per_call": number})
    assert_same_bits(read_state(tmp_path, 22), read_state(undisturbed, 22))
    assert read_metrics(tmp_path) == read_metrics(undisturbed)


def test_loop_on_the_device_is_the_same_for_any_number_of_steps(undisturbed, tmp_path, use_devices, on_devices):
    use_devices(2)
    fields = {"data.pipeline": "device", "train.log_every_steps": 5}
    run(tmp_path / "1", **fields, **{"train.steps_per_call": 1})
    run(tmp_path / "several", stop_at=9, **fields, **{"train.steps_per_call": 7})
    run(tmp_path / "several", **fields, **{"train.steps_per_call": 50})
    assert_same_bits(read_state(tmp_path / "1", 22), read_state(tmp_path / "several", 22))
    assert read_metrics(tmp_path / "1") == read_metrics(tmp_path / "several")
    first, expected = (read_metrics(path)[0] for path in (tmp_path / "1", undisturbed))
    assert first.pop("split") == expected.pop("split") == "train"
    assert first == pytest.approx(expected, rel=1e-4), "the CPU convolves otherwise within loops; later steps drift"


def batches_of(split, steps=3, size=4):
    return list(itertools.islice(split.train_batches(size, seed=3, first_step=5), steps))


def small_splits(share=ALONE):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (11, 2, 2, 3), np.uint8)
    labels, readable = np.arange(11, dtype=np.int32), np.arange(11) != 4
    return [kind("numbers", images, labels, readable, share) for kind in (MemorySplit, DeviceSplit)]


@pytest.mark.parametrize("share", [ALONE, BatchShard(1, 2)], ids=str)
def test_images_on_the_device_are_those_of_memory(share):
    memory, device = small_splits(share)
    assert memory.resident is None and device.resident is memory.images
    pairs = [*zip(batches_of(memory), batches_of(device), strict=True)]
    evaluation = [*zip(memory.eval_batches(4), device.eval_batches(4), strict=True)]
    for whole, indexed in pairs + evaluation:
        assert indexed["index"].dtype == np.int32 and "image" not in indexed
        found = jax.tree.map(np.asarray, with_images(indexed, device.resident))
        np.testing.assert_array_equal(found["label"], whole["label"])
        np.testing.assert_array_equal(found["mask"], whole["mask"])
        np.testing.assert_array_equal(found["image"][whole["mask"]], whole["image"][whole["mask"]])
    for whole, indexed in pairs:  # in training what cannot be read has a substitute
        np.testing.assert_array_equal(device.resident[indexed["index"]], whole["image"])


def test_batches_of_a_dispatch_are_stacked_and_filled_up():
    memory, _ = small_splits()
    stacked = list(stack_batches(memory.train_batches(4, 3, 5), [2, 1], 2))
    expected = batches_of(memory)
    assert [batch["image"].shape for batch in stacked] == [(2, 4, 2, 2, 3)] * 2
    for place, batch in enumerate(expected):
        np.testing.assert_array_equal(stacked[place // 2]["image"][place % 2], batch["image"])


def count_steps(state, batch, key):
    """A step that adds up what it is given."""
    del key
    params = {"sum": state.params["sum"] + batch["image"].astype(jnp.float32).sum() * (state.step + 1)}
    stop = batch["stop"].max()
    return type(state)(state.step + 1, params, {}, state.opt_state, None), {"sum": params["sum"], "stop": stop}


@pytest.mark.parametrize("fused", [False, True])
def test_loop_runs_as_many_steps_as_asked_and_compiles_once(fused):
    mesh = make_mesh(jax.devices()[:2])
    _, split = small_splits()
    optimizer = optax.identity()
    traced = []

    def step(*args):
        traced.append(1)
        return count_steps(*args)

    loop = StepLoop(step, mesh, 3, replicate(split.resident, mesh), fused=fused)
    state = replicate(init_state({"sum": jnp.float32(0)}, {}, optimizer), mesh)
    go_on, stop = stop_flags(mesh)
    total, done = 0, 0
    feeds = to_devices(stack_batches(split.train_batches(4, 3, 0), [3, 2, 1], 3), split_second_axis(mesh))
    expected = split.train_batches(4, 3, 0)
    for count, feed in zip([3, 2, 1], feeds, strict=True):
        state, metrics = loop(state, feed, stop if count == 1 else go_on, count, jax.random.key(0))
        for place in range(count):
            done += 1
            total += float(split.resident[next(expected)["index"]].astype(np.float64).sum()) * done
            assert float(metrics["sum"][place]) == total
            assert float(metrics["stop"][place]) == (count == 1)
    assert int(state.step) == 6
    assert len(traced) <= 3, "once for the names of the metrics, and for one program"


def test_steps_per_call_are_chosen():
    memory, device = small_splits()
    mesh, config = make_mesh(jax.devices()[:1]), digits_config()
    assert choose_steps_per_call(config, device, mesh) == (1, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "on_accelerator", lambda mesh: True)
        assert choose_steps_per_call(config, device, mesh) == (5, 5)
        assert choose_steps_per_call(config, memory, mesh) == (1, 1)
        config.train.steps_per_call = 3
        assert choose_steps_per_call(config, device, mesh) == (3, 5)
        assert choose_steps_per_call(config, memory, mesh) == (3, 3)
        config.train.steps_per_call = 50
        assert choose_steps_per_call(config, memory, mesh) == (5, 5)


def test_step_that_is_not_finite_is_named_whatever_the_number_of_steps(tmp_path, use_devices, on_devices):
    use_devices(1)
    fields = {"optimizer.learning_rate": 1e30, "optimizer.warmup_epochs": 0.0, "train.log_every_steps": 20}
    with pytest.raises(NonFiniteError, match=r"at step [1-4] .*no checkpoint yet"):
        run(tmp_path, **fields, **{"train.steps_per_call": 20, "checkpoint.every_steps": 20})
    fields |= {"train.on_nonfinite": "skip", "train.max_skipped_steps": 3}
    with pytest.raises(NonFiniteError, match="not finite in 4 steps"):
        run(tmp_path / "skip", **fields, **{"train.steps_per_call": 20})


def test_memory_of_devices_is_zero_on_cpus():
    assert parallel.device_memory(make_mesh()) == 0
    assert not parallel.on_accelerator(make_mesh())
