import numpy as np
import pytest
from PIL import Image

from gaternet_jax.configs.folder import get_config
from gaternet_jax.data.batches import BatchShard, train_batch_indices
from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.data.prepare.folders import prepare_folder
from gaternet_jax.data.reader import Reader
from gaternet_jax.data.splits import open_split
from gaternet_jax.errors import UserError

BATCH, TRAIN, TEST = 8, 22, 11
ALONE = BatchShard(0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of two classes whose red tells which image it is."""
    root = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    for split, count in (("train", TRAIN), ("test", TEST)):
        for number in range(count):
            path = root / split / ("even", "odd")[number % 2] / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = noise.copy()
            pixels[..., 0] = number * 10
            Image.fromarray(pixels).save(path, quality=95, subsampling=0)
    return root


@pytest.fixture(scope="module")
def builder(folder, data_dir):
    return find_dataset(prepare_folder(folder, data_dir, "photos", workers=1).parent.name)


def config(**fields):
    config = get_config().unlock()
    small = {"data.pipeline": "stream", "data.image_size": 16, "data.threads": 3}
    config.update_from_flattened_dict(small | fields)
    return config


def first(count, builder, share=ALONE, step=0, seed=5, batch=BATCH, **fields):
    batches = open_split(builder, "train", config(**fields), share).train_batches(batch, seed, step)
    return [next(batches) for _ in range(count)]


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys() == {"image", "label", "mask"}
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_have_the_images_of_the_common_order(builder):
    reader = Reader(builder, "train", config())
    whole = np.empty((TRAIN, 16, 16, 3), np.uint8)
    labels = np.array([reader.read(index, whole[index]) for index in range(TRAIN)])
    for step, batch in enumerate(first(5, builder)):
        indices = train_batch_indices(TRAIN, BATCH, 5, step)
        np.testing.assert_array_equal(batch["label"], labels[indices])
        assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32 and batch["mask"].all()
        of_image = [images[..., 0].mean() for images in whole[indices]]
        np.testing.assert_allclose([image[..., 0].mean() for image in batch["image"]], of_image, atol=3)


def test_crops_are_random_and_follow_from_the_seed(builder):
    batches = first(6, builder)
    assert_equal(batches, first(6, builder))
    centers = first(6, builder, **{"data.train_crop": "center"})
    cut_elsewhere = [(b["image"] != c["image"]).any((1, 2, 3)) for b, c in zip(batches, centers, strict=True)]
    assert np.concatenate(cut_elsewhere).all()
    seen = {}
    for step, batch in enumerate(batches):
        for index, image in zip(train_batch_indices(TRAIN, BATCH, 5, step), batch["image"], strict=True):
            seen.setdefault(index, []).append(image)
    assert all(not np.array_equal(images[0], images[1]) for images in seen.values() if len(images) > 1)
    assert len({image[..., 1:].tobytes() for batch in batches for image in batch["image"]}) == 48


@pytest.mark.parametrize("count", [2, 4])
def test_processes_make_the_batches_of_one_bit_for_bit(builder, count):
    whole = first(9, builder)
    shares = [first(9, builder, BatchShard(index, count)) for index in range(count)]
    joined = [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in zip(*shares)]  # noqa: B905
    assert_equal(whole, joined)
    resumed = [first(2, builder, BatchShard(index, count), step=7) for index in range(count)]
    joined = [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in zip(*resumed)]  # noqa: B905
    assert_equal(whole[7:], joined)


def test_threads_and_workers_make_no_difference(builder):
    whole = first(4, builder)
    assert_equal(whole, first(4, builder, **{"data.threads": 1}))
    assert_equal(whole, first(4, builder, **{"data.workers": 2}))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_sees_every_image_once(builder, count):
    in_memory = open_split(builder, "test", config(**{"data.pipeline": "memory", "data.train_crop": "center"}), ALONE)
    splits = [open_split(builder, "test", config(), BatchShard(index, count)) for index in range(count)]
    shares = [list(split.eval_batches(BATCH)) for split in splits]
    joined = [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in zip(*shares)]  # noqa: B905
    assert_equal(in_memory.eval_batches(BATCH), joined)
    assert sum(batch["mask"].sum() for batch in joined) == TEST == splits[0].num_images


def damage(reader, *bad):
    """Cuts some images short, in place of damaging the files."""
    whole = reader.record

    def record(index):
        encoded, label = whole(index)
        return (encoded[:200] if index in bad else encoded), label

    reader.record = record
    return reader


@pytest.mark.parametrize("pipeline", ["stream", "memory"])
def test_unreadable_images_are_replaced_and_nothing_else_changes(builder, pipeline, monkeypatch, capsys):
    bad = (3, 4, 21)
    fields = {"data.pipeline": pipeline, "data.train_crop": "center", "data.on_error": "skip"}
    whole = first(8, builder, **fields)
    monkeypatch.setattr("gaternet_jax.data.splits.Reader", lambda *args: damage(Reader(*args), *bad))
    reader = Reader(builder, "train", config())
    for step, (batch, clean) in enumerate(zip(first(8, builder, **fields), whole, strict=True)):
        indices = train_batch_indices(TRAIN, BATCH, 5, step)
        np.testing.assert_array_equal(batch["mask"], ~np.isin(indices, bad))
        for place, index in enumerate(indices):
            if index not in bad:
                np.testing.assert_array_equal(batch["image"][place], clean["image"][place])
                assert batch["label"][place] == clean["label"][place]
            else:
                label = reader.read({3: 5, 4: 5, 21: 0}[index], image := np.empty((16, 16, 3), np.uint8))
                np.testing.assert_array_equal(batch["image"][place], image)
                assert batch["label"][place] == label
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Left out")]
    assert sorted(said) == [f"Left out: image {index} of photos/train cannot be read" for index in (21, 3, 4)]


@pytest.mark.parametrize("pipeline", ["stream", "memory"])
def test_unreadable_images_are_masked_in_evaluation(builder, pipeline, monkeypatch):
    monkeypatch.setattr("gaternet_jax.data.splits.Reader", lambda *args: damage(Reader(*args), 2, 9))
    fields = {"data.pipeline": pipeline, "data.train_crop": "center", "data.on_error": "skip"}
    batches = list(open_split(builder, "test", config(**fields), ALONE).eval_batches(BATCH))
    labels = np.concatenate([batch["label"] for batch in batches])
    masks = np.concatenate([batch["mask"] for batch in batches])
    assert np.flatnonzero(labels < 0).tolist() == [2, 9]
    assert np.flatnonzero(~masks).tolist() == [2, 9, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("pipeline", ["stream", "memory"])
def test_unreadable_image_ends_the_run_by_name(builder, pipeline, monkeypatch):
    monkeypatch.setattr("gaternet_jax.data.splits.Reader", lambda *args: damage(Reader(*args), 3))
    with pytest.raises(UserError, match=r"image 3 of photos/train cannot be read as an image: .*data.on_error=skip"):
        first(3, builder, **{"data.pipeline": pipeline, "data.train_crop": "center"})


@pytest.mark.parametrize("pipeline", ["stream", "memory"])
def test_split_without_a_readable_image_is_refused(builder, pipeline, monkeypatch):
    monkeypatch.setattr("gaternet_jax.data.splits.Reader", lambda *args: damage(Reader(*args), *range(TRAIN)))
    with pytest.raises(UserError, match="no image of photos/train can be used: image 0 of photos/train cannot be read"):
        first(1, builder, **{"data.pipeline": pipeline, "data.train_crop": "center", "data.on_error": "skip"})


def test_damaged_container_is_reported_by_position(builder, monkeypatch):
    reader = Reader(builder, "train", config())
    monkeypatch.setattr(reader, "_records", [b"no record"] * TRAIN)
    with pytest.raises(UserError, match="image 5 of photos/train cannot be read"):
        reader.read(5, np.empty(reader.shape, np.uint8))
