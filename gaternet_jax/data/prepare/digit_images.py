"""A TFDS builder over scikit-learn's handwritten digits; needs neither network nor TensorFlow."""

import io
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SPLIT_SEED = 0  # of the stratified 80 / 20 split, part of the dataset's version


class Digits(tfds.core.GeneratorBasedBuilder):
    """Prepares 1,797 images of 8 x 8 pixels from the UCI optical digits test set: 1,437 to train, 360 to test.

    Gray levels 0 to 16 are scaled to 0 to 255. scikit-learn gives no split of its own.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits (scikit-learn), 8 x 8 pixels, stratified 80 / 20 split.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits: Any = load_digits()
        train, test = train_test_split(
            np.arange(len(digits.target)), test_size=360, random_state=SPLIT_SEED, stratify=digits.target
        )
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        return {
            "train": self._generate_examples(images, digits.target, np.sort(train)),
            "test": self._generate_examples(images, digits.target, np.sort(test)),
        }

    def _generate_examples(self, images, labels, indices):
        for key, index in enumerate(indices):
            png = io.BytesIO()  # encoded here: TFDS would need TensorFlow to encode an array
            Image.fromarray(images[index]).save(png, format="png")
            png.seek(0)
            yield key, {"image": png, "label": int(labels[index])}
