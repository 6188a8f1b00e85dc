"""Small configs."""

from configs.digits import get_config
from gaternet_jax.config import default


def digits_config(**overrides):
    """The digits card, shrunk so that a run takes seconds; overrides like {"train.epochs": 2.0}."""
    config = get_config()
    small = {
        "model.width": 8,
        "model.gater.width": 8,
        "train.epochs": 1.0,
        "train.eval_every_epochs": 1.0,
        "optimizer.warmup_epochs": 0.1,
        "optimizer.learning_rate": 0.2,
        "train.log_every_steps": 5,
        "train.eval_batch_size": 128,
    }
    config.update_from_flattened_dict(small | overrides)
    return config


def model_config(**overrides):
    """The `model` part of a config: a small gated ResNet for 3-channel images."""
    config = default().model
    small = {"backbone": "resnet8", "width": 4, "gater.extractor": "resnet8", "gater.width": 4}
    config.update_from_flattened_dict(small | overrides)
    return config
