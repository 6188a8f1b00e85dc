"""CIFAR-100: 50,000 + 10,000 colour images of 32 x 32 pixels, 100 classes.

    python -m gaternet_jax.main --config=configs/cifar100.py                  ResNet-20-Gated
    python -m gaternet_jax.main --config=configs/cifar100.py:resnet110        ResNet-110-Gated

Variants as for CIFAR-10. The data must be prepared (see README). 200 epochs of 390 steps.
"""

from gaternet_jax.config import default
from gaternet_jax.variants import apply_variant


def get_config(variant: str = ""):
    config = default()
    config.model.num_classes = 100
    config.data.name = "cifar100"
    config.data.mean = (0.5071, 0.4865, 0.4409)  # of the training images; assumed, paper silent
    config.data.std = (0.2673, 0.2564, 0.2762)
    return apply_variant(config, variant).lock()
