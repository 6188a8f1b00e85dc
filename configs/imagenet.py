"""--config=configs/imagenet.py is --config=imagenet, whose run card is gaternet_jax/configs/imagenet.py."""

from gaternet_jax.configs.imagenet import get_config as get_config
