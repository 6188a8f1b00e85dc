"""CIFAR-100: 50,000 + 10,000 colour images of 32 x 32 pixels, 100 classes.

    python -m gaternet_jax.main --config=configs/cifar100.py    ResNet-20-Gated
    python -m gaternet_jax.main --config=configs/cifar100.py:resnet164_paper    ResNet-164-Gated, the largest claim

Variants and cost as for CIFAR-10 (the output layer adds 90 units). The data must be prepared (docs/running.md).
200 epochs of 390 steps.
"""

from gaternet_jax.config import default
from gaternet_jax.variants import RECIPES, apply_variant


def get_config(variant: str = ""):
    config = default()
    config.model.num_classes = 100
    config.data.name = "cifar100"
    config.data.mean = (0.5071, 0.4865, 0.4409)  # of the training images; assumed, paper silent
    config.data.std = (0.2673, 0.2564, 0.2762)
    config = apply_variant(config, variant, RECIPES)
    if config.model.backbone.startswith("shake26"):
        config.data.cutout = 8  # DeVries and Taylor 2017, table 1
    return config.lock()
