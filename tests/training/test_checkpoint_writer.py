"""Checkpoints are written beside the training loop: what is written, errors, and how many saves wait."""

import contextlib
import threading

import jax
import jax.numpy as jnp
import pytest

from gaternet_jax.errors import UserError
from gaternet_jax.training.checkpoint_reader import checksum
from gaternet_jax.training.checkpoint_writer import IN_FLIGHT, CheckpointWriter


class SlowDisk:
    """In place of Orbax: writes when it is told to go on, and fails with `error`."""

    def __init__(self):
        self.go_on, self.error, self.written = threading.Event(), None, []

    def save_checkpointables(self, step, parts, custom_metadata):
        assert self.go_on.wait(10)
        if self.error:
            raise self.error
        assert custom_metadata["checksums"]["model"] == checksum(parts["model"])
        self.written.append((step, float(parts["model"])))

    def close(self):
        pass


@pytest.fixture
def disk(monkeypatch):
    disk = SlowDisk()
    monkeypatch.setattr("gaternet_jax.training.checkpoint_writer._open_orbax", lambda *_: disk)
    monkeypatch.setattr("gaternet_jax.training.checkpoint_writer._read_back", lambda *_: None)
    yield disk
    disk.go_on.set()


def test_what_is_written_is_the_state_at_the_save_whatever_the_next_step_does(disk, tmp_path):
    writer, state = CheckpointWriter(tmp_path, 1, {}), jnp.float32(3)
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    for number in range(IN_FLIGHT):
        state = step(state)
        writer.save(number, {"model": state}, {})
        state = step(state)
    jax.block_until_ready(state)
    assert not disk.written, "the loop went on"
    disk.go_on.set()
    writer.close()
    assert disk.written == [(0, 4.0), (1, 6.0)]


def test_only_so_many_saves_are_in_flight(disk, tmp_path):
    writer, begun = CheckpointWriter(tmp_path, 1, {}), []

    def save_all():
        for number in range(IN_FLIGHT + 1):
            writer.save(number, {"model": jnp.float32(number)}, {})
            begun.append(number)

    loop = threading.Thread(target=save_all)
    loop.start()
    loop.join(0.3)
    assert begun == list(range(IN_FLIGHT)), "the next save waits"
    disk.go_on.set()
    loop.join(10)
    writer.close()
    assert [step for step, _ in disk.written] == begun == list(range(IN_FLIGHT + 1))


def test_a_save_starts_no_thread_which_an_interrupt_could_part_from_the_writer(disk, tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, 1, {})

    def interrupted(thread):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    writer.save(1, {"model": jnp.float32(4)}, {})
    disk.go_on.set()
    writer.close()
    assert disk.written == [(1, 4.0)]


def test_error_in_the_background_comes_up_at_the_next_save(disk, tmp_path):
    writer, disk.error = CheckpointWriter(tmp_path, 1, {}), OSError("No space left on device\nand so on")
    writer.save(1, {"model": jnp.float32(0)}, {})
    disk.go_on.set()
    with pytest.raises(UserError, match=rf"cannot be written to {tmp_path}: No space left on device\. The earlier"):
        for number in range(2, 3 + IN_FLIGHT):  # no later than when it would have to wait
            writer.save(number, {"model": jnp.float32(0)}, {})
    with contextlib.suppress(UserError):  # the others fail as well
        writer.close()


def test_a_checkpoint_that_cannot_be_read_back_is_said_once(disk, tmp_path, monkeypatch):
    def unreadable(*_):
        raise UserError("cannot be read; choose another --workdir")

    monkeypatch.setattr("gaternet_jax.training.checkpoint_writer._read_back", unreadable)
    writer = CheckpointWriter(tmp_path, 1, {})
    writer.save(1, {"model": jnp.float32(0)}, {})
    disk.go_on.set()
    with pytest.raises(UserError, match=r"^cannot be read; choose another --workdir$"):
        writer.close()


def test_error_in_the_background_comes_up_at_the_end(disk, tmp_path):
    writer, disk.error = CheckpointWriter(tmp_path, 1, {}), OSError("No space left on device")
    writer.save(1, {"model": jnp.float32(0)}, {})
    disk.go_on.set()
    with pytest.raises(UserError, match="No space left on device"):
        writer.close()
