"""Checks a config before anything is compiled: its fields, their values, and what does not go together."""

import math

from gaternet_jax.config import FIELDS, RunConfig
from gaternet_jax.errors import UserError
from gaternet_jax.fields import misfits, out_of_bounds


def validate(config: RunConfig, num_devices: int) -> None:
    """Checks fields and their combinations, before anything is compiled.

    Raises:
        UserError: naming every field that is wrong, its value and what is expected.
    """
    _refuse(misfits(config, FIELDS) or out_of_bounds(config, FIELDS) + _combinations(config, num_devices))


def for_evaluation(config: RunConfig, num_devices: int) -> RunConfig:
    """Checks a run's config and gives it with evaluation batches that these devices can share: metrics stay the same.

    The devices that the run was trained on may have been another number.

    Raises:
        UserError: as of `validate`.
    """
    validate(config, num_devices=1)
    config = config.copy_and_resolve_references()
    config.train.eval_batch_size = math.ceil(config.train.eval_batch_size / num_devices) * num_devices
    return config


def check_fields(config: RunConfig) -> None:
    """Checks that a config has the fields that there are, and each a value of its type, within its bounds.

    Raises:
        UserError: naming every field that is missing, unknown, of another type or out of bounds.
    """
    _refuse(misfits(config, FIELDS) or out_of_bounds(config, FIELDS))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UserError("the config cannot be used:\n  " + "\n  ".join(problems))


def _combinations(config: RunConfig, num_devices: int) -> list[str]:
    problems = []
    for name, size in (("batch_size", config.train.batch_size), ("eval_batch_size", config.train.eval_batch_size)):
        if size % num_devices:
            problems.append(f"train.{name}={size} must be a multiple of the number of devices, {num_devices}")
    for name, values in (("mean", config.data.mean), ("std", config.data.std)):
        if len(values) != config.model.channels:
            problems.append(
                f"data.{name}={values} needs one number per channel (model.channels={config.model.channels})"
            )
    if config.data.train_crop == "random" and config.data.pipeline in ("memory", "device"):
        problems.append("data.train_crop=random needs data.pipeline=stream: a split in memory is cropped once")
    size = config.data.image_size
    for name, pixels in (("crop_padding", config.data.crop_padding), ("cutout", config.data.cutout)):
        if pixels > size:
            problems.append(
                f"data.{name}={pixels} must be at most data.image_size={size}: nothing would be left of many images"
            )
    name, epochs = "train.epochs", config.train.epochs
    if config.optimizer.schedule_epochs:
        name, epochs = "optimizer.schedule_epochs", config.optimizer.schedule_epochs
    if config.optimizer.warmup_epochs >= epochs > 0:
        problems.append(f"optimizer.warmup_epochs={config.optimizer.warmup_epochs} must be less than {name}={epochs}")
    if config.model.gater.batch_norm and config.train.batch_size == 1:
        problems.append("model.gater.batch_norm=True needs train.batch_size of at least 2: it compares images")
    if config.model.gater.auxiliary_weight and config.model.gater.scope == "local":
        problems.append("model.gater.auxiliary_weight needs model.gater.scope=global: no block sees the whole image")
    if config.init_from and config.init_parts != "backbone" and config.model.gater.pretrained:
        problems.append("init_from and model.gater.pretrained are both for the gater; give one, or init_parts=backbone")
    return problems
