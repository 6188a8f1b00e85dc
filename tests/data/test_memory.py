import numpy as np
import pytest

from gaternet_jax.data.batches import BatchShard, steps_per_epoch, train_batch_indices
from gaternet_jax.data.memory import MemorySplit
from gaternet_jax.errors import UserError


def test_batch_is_a_pure_function_of_seed_and_step():
    first = train_batch_indices(100, 8, seed=3, step=40)
    train_batch_indices(100, 8, seed=3, step=999)
    np.testing.assert_array_equal(first, train_batch_indices(100, 8, seed=3, step=40))
    assert not np.array_equal(first, train_batch_indices(100, 8, seed=4, step=40))
    one, other = (train_batch_indices(96, 8, seed, 12 * (1 - seed)) for seed in (0, 1))
    assert not np.array_equal(one, other), "seed 0's second epoch is not seed 1's first"


def test_epoch_has_every_image_at_most_once_and_epochs_differ():
    epochs = [
        np.concatenate([train_batch_indices(100, 8, 0, step) for step in range(12 * epoch, 12 * epoch + 12)])
        for epoch in range(3)
    ]
    for epoch in epochs:
        assert len(np.unique(epoch)) == 96
    assert not np.array_equal(epochs[0], epochs[1])
    assert set(epochs[0]) != set(epochs[1]), "the images left over differ from epoch to epoch"


def split(n, share=None):
    images, labels = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), np.arange(n, dtype=np.int32)
    return MemorySplit("numbers", images, labels, np.ones(n, bool), share or BatchShard(0, 1))


def test_batches_start_anywhere():
    batches = split(20).train_batches(4, seed=1, first_step=0)
    ahead = [next(batches) for _ in range(8)][7]
    resumed = next(split(20).train_batches(4, seed=1, first_step=7))
    np.testing.assert_array_equal(ahead["image"], resumed["image"])
    np.testing.assert_array_equal(resumed["image"][:, 0, 0, 0], resumed["label"])


@pytest.mark.parametrize("images", [1, 8, 9, 15])
def test_evaluation_sees_every_image_once(images):
    batches = list(split(images).eval_batches(8))
    assert all(batch["image"].shape == (8, 1, 1, 1) and batch["mask"].shape == (8,) for batch in batches)
    seen = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(images))


def test_batch_larger_than_the_split_is_refused():
    with pytest.raises(UserError, match="batch_size=8 is more than the 7 training images"):
        steps_per_epoch(7, 8)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_batch(count):
    parts = [split(19, BatchShard(index, count)) for index in range(count)]
    for batches in (
        lambda split: [next(split.train_batches(8, seed=1, first_step=step)) for step in (0, 5)],
        lambda split: list(split.eval_batches(8)),
    ):
        for whole, *shares in zip(batches(split(19)), *map(batches, parts), strict=True):
            for name in ("image", "label", "mask"):
                np.testing.assert_array_equal(whole[name], np.concatenate([share[name] for share in shares]))
