import jax
import numpy as np
import pytest

from gaternet_jax.gating import GateSite
from gaternet_jax.training import gate_summary as module
from gaternet_jax.training.gate_summary import CAPTION, SIDE, GateSummary, contact_sheet
from gaternet_jax.training.mesh import make_mesh, split_by_batch
from gaternet_jax.training.metrics import MetricWriter


class Writer:
    """Keeps what it is given."""

    def __init__(self):
        self.shown = []

    def show(self, *shown):
        self.shown.append(shown)


@pytest.fixture
def sites():
    return (
        GateSite("stage1.block1.conv2", 0, 2),
        GateSite("stage1.block2.conv2", 2, 1),
        GateSite("stage2.block1.conv2", 3, 3),
    )


@pytest.fixture
def batch():
    """16 images over eight devices; the second cannot be read."""
    image = np.arange(16, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 4, 4, 3), np.uint8)
    on_devices = {"image": image, "mask": np.arange(16) != 1}
    return jax.device_put(on_devices, split_by_batch(make_mesh()))


def test_what_is_written_is_of_the_readable_images(sites, batch):
    gates = np.zeros((16, 6), bool)
    gates[:, 0] = True
    gates[:9, 4] = True  # 8 of the 15 that can be read
    gates[1] = True
    probe, writer = GateSummary(sites), Writer()
    probe.look(batch, jax.device_put(gates, split_by_batch(make_mesh())))
    probe.write(writer, 7)
    ((step, view),) = writer.shown
    assert step == 7
    scalars, pictures = view()
    assert scalars == pytest.approx(
        {"probe/open_stage1": 1 / 3, "probe/open_stage2": 8 / 15 / 3, "probe/input_dependent": 1 / 6}
    )
    sheet = pictures["probe/open_gates"]
    assert sheet.shape == (SIDE + CAPTION, 8 * SIDE, 3)
    assert sheet[0, ::SIDE, 0].tolist() == [0, 2, 3, 4, 5, 6, 7, 8]
    probe.write(writer, 8)
    assert len(writer.shown) == 1, "no evaluation, nothing to write"


def test_plain_networks_and_other_processes_write_nothing(sites, batch, monkeypatch):
    gates, writer = jax.device_put(np.zeros((16, 0), bool), split_by_batch(make_mesh())), Writer()
    plain = GateSummary(())
    plain.look(batch, gates)
    plain.write(writer, 1)
    monkeypatch.setattr(module, "is_primary", lambda: False)
    other = GateSummary(sites)
    other.look(batch, gates)
    other.write(writer, 1)
    assert not writer.shown


def test_captions_tell_images_apart():
    sheet = contact_sheet(np.zeros((2, 8, 8, 1), np.uint8), np.array([0.25, 0.5]))
    below = sheet[SIDE:]
    assert (below < 100).any()
    assert not np.array_equal(below[:, :SIDE], below[:, SIDE:])


def test_tensorboard_alone_gets_it(tmp_path):
    with MetricWriter(tmp_path, resume_step=0) as writer:
        picture = np.zeros((8, 8, 3), np.uint8)
        writer.show(3, lambda: ({"probe/open_stage1": 0.5}, {"probe/open_gates": picture}))
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"probe/open_stage1" in events.read_bytes() and b"probe/open_gates" in events.read_bytes()
    with MetricWriter(tmp_path, resume_step=0, enabled=False) as silent:
        silent.show(3, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), MetricWriter(tmp_path, resume_step=0) as writer:
        writer.show(3, lambda: 1 / 0)  # fails in a thread of its own, and is told at the end
