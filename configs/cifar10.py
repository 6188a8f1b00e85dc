"""CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 pixels, 10 classes.

    python -m gaternet_jax.main --config=configs/cifar10.py                   ResNet-20-Gated, 547,842 parameters
    python -m gaternet_jax.main --config=configs/cifar10.py:resnet56          ResNet-56-Gated, 1,137,186 parameters
    python -m gaternet_jax.main --config=configs/cifar10.py:resnet56-plain    the same backbone without gates

Variants: [resnet8|resnet20|resnet32|resnet44|resnet56|resnet110][-plain]. The data must be prepared (see README).
200 epochs of 390 steps.
"""

from gaternet_jax.config import default
from gaternet_jax.variants import apply_variant


def get_config(variant: str = ""):
    return apply_variant(default(), variant).lock()
