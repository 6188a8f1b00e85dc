"""--config=configs/cifar100.py is --config=cifar100, whose run card is gaternet_jax/configs/cifar100.py."""

from gaternet_jax.configs.cifar100 import get_config as get_config
