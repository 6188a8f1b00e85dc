"""Which pipeline a split is read by."""

import sys

import pytest

from gaternet_jax.data import splits as module
from gaternet_jax.data.batches import BatchShard
from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.data.memory import DeviceSplit, MemorySplit
from gaternet_jax.data.splits import choose_pipeline, open_split
from gaternet_jax.data.stream import StreamSplit
from gaternet_jax.errors import UserError
from tests.helpers import digits_config


@pytest.mark.parametrize(
    ("size", "device_memory", "fields", "expected"),
    [
        (100, 800, {}, "device"),
        (101, 800, {}, "memory"),
        (100, 0, {}, "memory"),
        (1001, 0, {}, "stream"),
        (1001, 80000, {}, "device"),
        (100, 800, {"data.train_crop": "random"}, "stream"),
        (1001, 0, {"data.pipeline": "memory"}, "memory"),
        (100, 0, {"data.pipeline": "device"}, "device"),
        (100, 800, {"data.pipeline": "stream"}, "stream"),
    ],
)
def test_auto_takes_the_first_that_fits(monkeypatch, size, device_memory, fields, expected):
    monkeypatch.setattr(module, "host_memory", lambda: 4000)
    assert choose_pipeline(digits_config(**fields), size, device_memory) == expected


def test_split_is_opened_by_the_pipeline():
    builder, share = find_dataset("digits"), BatchShard(0, 1)
    for fields, memory, kind in (
        ({}, 0, MemorySplit),
        ({}, 1 << 30, DeviceSplit),
        ({"data.pipeline": "device"}, 0, DeviceSplit),
        ({"data.pipeline": "stream"}, 1 << 30, StreamSplit),
    ):
        assert type(open_split(builder, "test[:4]", digits_config(**fields), share, memory)) is kind


def test_split_that_no_device_can_hold_is_refused():
    config = digits_config(**{"data.pipeline": "device"})
    with pytest.raises(UserError, match=r"digits/test\[:40\]' takes .* more than half of a device's .*=memory"):
        open_split(find_dataset("digits"), "test[:40]", config, BatchShard(0, 1), 64)


def test_a_stream_without_grain_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "gaternet_jax.data.stream")
    monkeypatch.setitem(sys.modules, "grain", None)  # as if it were not installed
    config = digits_config(**{"data.pipeline": "stream"})
    with pytest.raises(UserError, match=r"^data\.pipeline=stream needs grain: pip install 'gaternet-jax\[data\]'$"):
        open_split(find_dataset("digits"), "test[:4]", config, BatchShard(0, 1))
