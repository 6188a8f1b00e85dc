"""--config=configs/folder.py is --config=folder, whose run card is gaternet_jax/configs/folder.py."""

from gaternet_jax.configs.folder import get_config as get_config
