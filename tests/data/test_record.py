import dataclasses
import re

import pytest
import tensorflow_datasets as tfds

from gaternet_jax.data.datasets import record_dataset
from gaternet_jax.data.record import DatasetRecord, check_same_dataset, number_classes
from gaternet_jax.errors import UserError
from tests.image_folders import make_dataset

RUN = DatasetRecord("pets", "1.0.0", ("ant", "bee", "cat"), {"train": 8, "test": 2}, "a digest")


def found(*classes, **fields):
    return dataclasses.replace(RUN, classes=classes, digest="another digest", **fields)


@pytest.mark.parametrize("training", [False, True])
def test_the_same_dataset_by_another_name(training):
    same = dataclasses.replace(RUN, name="animals", version="2.0.0")
    assert check_same_dataset(RUN, same, training=training) == [0, 1, 2]


def test_some_of_the_classes_in_any_order_get_the_labels_of_the_run():
    assert check_same_dataset(RUN, found("cat", "ant")) == [2, 0]
    assert check_same_dataset(RUN, found("bee", "cat", "ant")) == [1, 2, 0]


@pytest.mark.parametrize("classes", [("ant", "bee", "cow"), ("ant", "bee", "cat", "cow"), ("cow",)])
def test_a_class_that_the_run_does_not_know_is_refused(classes):
    label = classes.index("cow")
    sentence = (
        f"dataset 'pets' has other classes than the run ('pets'): the run knows 3 (ant, bee, cat); the dataset has "
        f"{len(classes)} ({', '.join(classes)}); first difference: class {label} of the dataset, 'cow', is none of"
    )
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}"):
        check_same_dataset(RUN, found(*classes))


@pytest.mark.parametrize(
    ("classes", "difference"),
    [
        (("ant", "cat", "bee"), "class 1 is 'bee' in the run, but 'cat' here"),
        (("ant", "bee"), "class 2 is 'cat' in the run, but '(none)' here"),
        (("ant", "bee", "cat", "dog"), "class 3 is '(none)' in the run, but 'dog' here"),
    ],
)
def test_a_run_goes_on_with_its_classes_only(classes, difference):
    with pytest.raises(UserError, match=f"first difference: {re.escape(difference)}"):
        check_same_dataset(RUN, found(*classes), training=True)


def test_a_run_goes_on_with_its_images_only():
    more = found(*RUN.classes, images={"train": 9, "test": 2})
    assert check_same_dataset(RUN, more) == [0, 1, 2]
    with pytest.raises(UserError, match=r"trained on 'pets' 1\.0\.0 \(8 train, 2 test images\); this is .*\(9 train"):
        check_same_dataset(RUN, more, training=True)


def test_a_run_of_an_earlier_version_knows_its_classes_and_its_name():
    old = DatasetRecord("pets", "", RUN.classes, {}, "")
    assert check_same_dataset(old, RUN, training=True) == [0, 1, 2]
    with pytest.raises(UserError, match="has other classes"):
        check_same_dataset(old, found("ant", "cow"))
    with pytest.raises(UserError, match=r"was trained on 'pets', and has no dataset\.json to tell whether 'animals'"):
        check_same_dataset(old, dataclasses.replace(RUN, name="animals"), training=True)


def test_classes_without_names_are_told_by_their_number():
    unnamed = DatasetRecord("cifar100", "", number_classes(3), {}, "")
    assert check_same_dataset(unnamed, found("x", "y", "z")) == [0, 1, 2]
    with pytest.raises(UserError, match="has other classes"):
        check_same_dataset(unnamed, found("x", "y"))


def test_long_lists_are_cut():
    run = dataclasses.replace(RUN, classes=tuple(f"c{i}" for i in range(100)))
    with pytest.raises(UserError, match=r"knows 100 \(c0, c1, c2, c3, c4, \.\.\.\); the dataset has 1 \(d\)"):
        check_same_dataset(run, found("d"))


def test_names_are_compared_in_unicodes_composed_form():
    assert check_same_dataset(found("Bu\u0308si"), found("Büsi")) == [0]


def test_record_of_a_dataset_is_independent_of_its_place(tmp_path):
    def record(place, labels, classes=("cat", "dog"), name="pets/small/1.2.0", config="small"):
        folder = make_dataset(tmp_path / place / name, {"train": labels, "test": [1]}, classes, config)
        return record_dataset(tfds.builder_from_directory(str(folder)))

    one = record("here", [0, 1, 1])
    assert (one.name, one.version, one.classes) == ("pets/small", "1.2.0", ("cat", "dog"))
    assert one.images == {"train": 3, "test": 1}
    assert record("there", [0, 1, 1]) == one
    assert record("renamed", [0, 1, 1], name="animals/1.0.0", config=None).digest == one.digest
    others = [record("fewer", [0, 1]), record("called", [0, 1, 1], ("cat", "lynx"))]
    assert len({one.digest, *(other.digest for other in others)}) == 3
