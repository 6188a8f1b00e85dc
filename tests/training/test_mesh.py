import jax
import numpy as np

from gaternet_jax.training.mesh import make_mesh, replicated, split_by_batch, to_devices


def batches(n):
    for i in range(n):
        yield {"image": np.full((8, 2), i, np.uint8)}


def test_batches_arrive_in_order_split_over_the_devices():
    mesh = make_mesh()
    assert mesh.size == 8
    arrived = list(to_devices(batches(5), split_by_batch(mesh)))
    assert [int(batch["image"][0, 0]) for batch in arrived] == list(range(5))
    image = arrived[0]["image"]
    assert image.sharding == split_by_batch(mesh) and image.dtype == np.uint8
    assert {shard.data.shape for shard in image.addressable_shards} == {(1, 2)}


def test_batches_are_sent_ahead():
    taken = []

    def watched():
        for i, batch in enumerate(batches(10)):
            taken.append(i)
            yield batch

    next(to_devices(watched(), split_by_batch(make_mesh()), ahead=2))
    assert taken == [0, 1, 2]


def test_replicated_state_is_whole_on_every_device():
    mesh = make_mesh()
    value = jax.device_put(np.arange(3.0), replicated(mesh))
    assert all(shard.data.shape == (3,) for shard in value.addressable_shards)
    assert len(value.addressable_shards) == 8
