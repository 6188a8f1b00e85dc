"""--config=configs/cifar10.py is --config=cifar10, whose run card is gaternet_jax/configs/cifar10.py."""

from gaternet_jax.configs.cifar10 import get_config as get_config
