"""Handwritten digits: scikit-learn's 1,797 real images of 8 x 8 pixels, 10 classes; needs no download.

    python -m gaternet_jax.main --config=configs/digits.py            (what `make demo` runs)

ResNet-8-Gated with both convolutions of each block gated. For trying things: everything the large runs do, in
about a minute on two CPU cores. Variants as for CIFAR-10; without a recipe: weight decay 1e-4, cosine.
"""

from gaternet_jax.config import default
from gaternet_jax.variants import RECIPES, apply_variant


def get_config(variant: str = ""):
    config = default()
    config.model.backbone = "resnet8"
    config.model.channels = 1
    config.model.gating = "all"
    config.model.gater.extractor = "resnet8"
    config.model.gater.initial_bias = 0.0  # for trying what closed filters save: gates that start half open close early
    config.loss.gate_weight = 0.1
    config.data.name = "digits"
    config.data.image_size = 8
    config.data.mean = (0.3054,)  # of the training images (tests/data/test_datasets.py)
    config.data.std = (0.3760,)
    config.data.crop_padding = 1  # an eighth of the image, as for CIFAR
    config.data.flip = False  # a mirrored digit is no digit
    config.optimizer.schedule = "cosine"  # assumed
    config.optimizer.nesterov = True  # assumed
    config.train.batch_size = 64
    config.train.epochs = 40.0
    config.train.eval_every_epochs = 5.0
    config.train.log_every_steps = 20
    return apply_variant(config, variant, RECIPES).lock()
