"""--config=configs/digits.py is --config=digits, whose run card is gaternet_jax/configs/digits.py."""

from gaternet_jax.configs.digits import get_config as get_config
