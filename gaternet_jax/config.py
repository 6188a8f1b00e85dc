"""Every field of a run, with its unit and source, and the check of their values.

A run card (configs/) is `default()` with a few fields changed. Any field can be overridden on the command line:
`--config.optimizer.learning_rate=0.05`.

Sources: [P] the paper (arXiv 1811.11205), [C] the authors' released evaluation code, [D] derived from numbers that [P]
prints (docs/paper_to_code.md), [He] He et al. 2016 (arXiv 1512.03385) section 4.2; "assumed" marks what none tells. The
paper's learning rate, batch size, epochs, weight decay, schedule and lambda are not known. The default is the recipe of
He et al. (variants.py: `he`): under it others' plain ResNets come near the paper's plain rows, under `strong` they are
better than those (docs/results.md).
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from gaternet_jax.errors import UserError

Config = Any  # an ml_collections.ConfigDict; its fields are beyond a type checker


def default() -> Config:
    """The CIFAR recipe; unlocked, so that a run card can change it and lock it."""
    config: Config = ConfigDict()
    config.seed = 0  # less than 2**32; initial parameters, shuffling, augmentation and gate noise all follow from it

    config.init_from = ""  # workdir of a run whose model this one starts from; "": from random numbers
    config.init_parts = "all"  # what is taken from there: all | backbone | gater

    config.model = ConfigDict(
        dict(
            backbone="resnet20",  # any of gaternet_jax.models.registry.known_backbones()
            width=0,  # filters of the first stage (DenseNet: growth rate); 0: the model's own (ResNet: 16 [He, C])
            as_many_parameters_as="",  # residual | all: a plain network takes the width that matches that gated one
            num_classes=10,  # of the dataset; 0: as many as it has
            channels=3,  # of the input images: 1 grayscale, 3 RGB
            gating="residual",  # none | residual: last convolution of each block [C] | all: the earlier ones too
            dense_ungated="last",  # of a dense block's layers, without gates: first | last | none [D]; which: assumed
            dtype="float32",  # compute type: float32 [C] | bfloat16; parameters, BatchNorm and loss stay float32
            squeeze_ratio=0,  # of squeeze-and-excitation in each block (see variants.py: -se); 0: none
            zero_init_residual=False,  # last BatchNorm scale of each residual block starts at 0 (Goyal et al. 2017)
            gater=dict(
                scope="global",  # global: one gater decides all [P, C] | local: each block decides for itself
                extractor="resnet20",  # [P, C] for CIFAR
                width=0,  # filters of its first stage; 0: the extractor's own (ResNet-20: 16 [C])
                bottleneck=8,  # units between features and gate scores [C, D]; local scope: in each block's head
                pretrained="",  # workdir of a plain run of the extractor to start from (an option of [P], unconfirmed)
                batch_norm=False,  # before the bottleneck's ReLU: False [C], True [P]
                initial_bias=0.0,  # of the gate scores, before training: 3.0 opens all gates; assumed, paper silent
            ),
        )
    )
    config.data = ConfigDict(
        dict(
            name="cifar10",  # "digits", or the name of a prepared TFDS dataset
            root="",  # a folder of images, prepared on first use (see tools/prepare); data.name may then be ""
            data_dir="",  # folder of prepared datasets; "": $TFDS_DATA_DIR, else ~/tensorflow_datasets
            train_split="train",
            eval_split="test",  # "": the first of test, validation that is there
            pipeline="auto",  # memory: decoded once | device: held there | stream: decoded anew | auto: one that fits
            image_size=32,  # pixels, height and width
            resize="area",  # area: all pixels count | bilinear: 2 x 2 of them, faster
            train_crop="center",  # center: as eval_crop | random: of random area, aspect and place (stream only)
            crop_area=(0.08, 1.0),  # "random" only: fractions of the image's area (Szegedy et al. 2015)
            crop_aspect=(3 / 4, 4 / 3),  # "random" only: width / height (likewise)
            eval_crop=1.0,  # side of the central square relative to the shorter side; 224 / 256: 0.875
            background=(255, 255, 255),  # R, G, B that transparent pictures are put on
            mean=(0.4914, 0.4822, 0.4465),  # per channel, of pixels in [0, 1] [C]
            std=(0.2470, 0.2435, 0.2616),  # likewise [C]
            crop_padding=4,  # pixels of zero padding before the random crop [He]
            flip=True,  # random horizontal flip [He]
            cutout=0,  # pixels, side of the square that is blanked at random (DeVries and Taylor 2017: 16); 0: none
            on_error="raise",  # an image that cannot be read: raise | skip: another takes its place, and it is reported
            threads=0,  # "stream" only: that read and decode; 0: as many as CPU cores
            stall_seconds=300.0,  # a wait for a batch of so long is reported, with where it hangs
            workers=0,  # "stream" only: processes with so many threads each; 0: threads of the training process
        )
    )
    config.loss = ConfigDict(
        dict(
            gate="l1",  # l1: mean(gates) [P] | target: (open fraction - t)^2 | macs: (fraction of dense MACs - t)^2
            gate_weight=0.1,  # lambda, the weight of that term [P has it for l1]; value assumed
            gate_target=0.5,  # t, for target and macs; assumed
            gate_target_scope="overall",  # target only: the open fraction overall | of each site
            label_smoothing=0.0,  # probability mass spread over all classes; 0: none [He]
        )
    )
    config.optimizer = ConfigDict(
        dict(
            learning_rate=0.1,  # peak, at the configured batch size [He]
            momentum=0.9,  # [He]
            nesterov=False,  # whether that momentum is Nesterov's [He: not]
            weight_decay=1e-4,  # on kernels only [He: 1e-4 on all parameters]
            schedule="steps",  # steps [He] | cosine to zero
            schedule_epochs=0.0,  # in which the schedule runs off, then its last rate holds; 0: all of train.epochs
            warmup_epochs=1.0,  # linear from zero; assumed
            decay_at=(0.5, 0.75),  # "steps" only: fractions of the run at which the rate falls [He]
            decay_factor=0.1,  # "steps" only [He]
            gater_rate=1.0,  # the gater's learning rate relative to the others'; 0: the gater is frozen
            clip_norm=0.0,  # the gradient's norm is cut to this; 0: never [He]
        )
    )
    config.train = ConfigDict(
        dict(
            batch_size=128,  # images per step over all devices [He]
            epochs=200.0,  # may be a fraction; assumed [He: 164]
            ema_decay=0.0,  # moving average of parameters, for evaluation; usually 0.9999, less early on; 0: none [He]
            on_nonfinite="stop",  # loss, gradient or update NaN or infinite: stop | skip: that step changes nothing
            max_skipped_steps=10,  # "skip" only: in the whole run; one more ends it
            eval_batch_size=512,  # images per evaluation step over all devices
            eval_every_epochs=1.0,  # a checkpoint follows each evaluation
            log_every_steps=50,  # training metrics are means over this many steps
            steps_per_call=0,  # in one dispatch, at most; 0: a logging window with images on an accelerator, else 1
        )
    )
    config.checkpoint = ConfigDict(
        dict(
            keep_latest=2,  # checkpoints; the best one (top-1 on eval_split) is kept besides
            every_steps=0,  # more checkpoints between evaluations; 0: none
        )
    )
    return config


POSITIVE = """
    model.channels model.gater.bottleneck data.image_size train.batch_size train.epochs
    train.eval_batch_size train.eval_every_epochs train.log_every_steps checkpoint.keep_latest data.stall_seconds
"""
NON_NEGATIVE = """
    seed model.num_classes model.width model.gater.width model.squeeze_ratio data.crop_padding data.cutout
    train.max_skipped_steps data.threads data.workers loss.gate_weight
    optimizer.clip_norm optimizer.gater_rate optimizer.learning_rate optimizer.weight_decay optimizer.warmup_epochs
    optimizer.schedule_epochs checkpoint.every_steps train.steps_per_call
"""
KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a sequence of numbers",
}
STARTING_POINTS = ("init_from", "model.gater.pretrained")  # folders of other runs
FLOAT32_MAX = 3.4028235e38  # what is larger is infinite on the devices
CHOICES = {
    "init_parts": ("all", "backbone", "gater"),
    "model.gating": ("none", "residual", "all"),
    "model.dense_ungated": ("first", "last", "none"),
    "model.as_many_parameters_as": ("", "residual", "all"),
    "model.gater.scope": ("global", "local"),
    "model.dtype": ("float32", "bfloat16"),
    "data.pipeline": ("auto", "memory", "device", "stream"),
    "data.resize": ("area", "bilinear"),
    "data.train_crop": ("center", "random"),
    "data.on_error": ("raise", "skip"),
    "train.on_nonfinite": ("stop", "skip"),
    "loss.gate": ("l1", "target", "macs"),
    "loss.gate_target_scope": ("overall", "site"),
    "optimizer.schedule": ("cosine", "steps"),
}


def validate(config: Config, num_devices: int) -> None:
    """Checks ranges and combinations, before anything is compiled.

    Raises:
        UserError: naming every field that is wrong, its value and what is expected.
    """
    check_fields(config)
    fields = dict(flatten(config))
    problems = [f"{f}={fields[f]} must be greater than 0" for f in POSITIVE.split() if not fields[f] > 0]
    problems += [f"{f}={fields[f]} must be at least 0" for f in NON_NEGATIVE.split() if not fields[f] >= 0]
    for field in ("train.batch_size", "train.eval_batch_size"):
        if fields[field] % num_devices:
            problems.append(f"{field}={fields[field]} must be a multiple of the number of devices, {num_devices}")
    for field in ("data.mean", "data.std"):
        if len(fields[field]) != config.model.channels:
            problems.append(
                f"{field}={fields[field]} needs one number per channel (model.channels={config.model.channels})"
            )
    if config.model.channels not in (1, 3):
        problems.append(f"model.channels={config.model.channels} must be 1 (grayscale) or 3 (RGB)")
    decay_at = tuple(config.optimizer.decay_at)
    if any(not 0 < at < 1 for at in decay_at) or list(decay_at) != sorted(set(decay_at)):
        problems.append(f"optimizer.decay_at={decay_at} must be increasing fractions between 0 and 1")
    if any(not std > 0 for std in config.data.std):
        problems.append(f"data.std={config.data.std} must be greater than 0")
    background = tuple(config.data.background)
    if len(background) != 3 or any(type(value) is not int or not 0 <= value <= 255 for value in background):
        problems.append(f"data.background={background} must be three integers from 0 to 255: red, green and blue")
    for field, kind, highest in (
        ("data.crop_area", "numbers between 0 and 1", 1.0),
        ("data.crop_aspect", "positive numbers", float("inf")),
    ):
        if len(fields[field]) != 2 or not 0 < fields[field][0] <= fields[field][1] <= highest:
            problems.append(f"{field}={fields[field]} must be two {kind}, least and greatest")
    if not 0 < config.data.eval_crop <= 1:
        problems.append(f"data.eval_crop={config.data.eval_crop} must be greater than 0 and at most 1")
    if config.data.train_crop == "random" and config.data.pipeline in ("memory", "device"):
        problems.append("data.train_crop=random needs data.pipeline=stream: a split in memory is cropped once")
    for field, choices in CHOICES.items():
        if fields[field] not in choices:
            problems.append(f"{field}='{fields[field]}' must be one of {', '.join(choices)}")
    for field, value in fields.items():
        if any(not abs(number) <= FLOAT32_MAX for number in _floats(value)):
            problems.append(f"{field}={value} must be finite (in float32)")
    if config.seed >= 2**32:
        problems.append(f"seed={config.seed} must be less than 2**32: further bits would be ignored")
    if not 0 < config.optimizer.decay_factor < 1:
        problems.append(f"optimizer.decay_factor={config.optimizer.decay_factor} must be between 0 and 1")
    for field in ("optimizer.momentum", "loss.label_smoothing", "train.ema_decay"):
        if not 0 <= fields[field] < 1:
            problems.append(f"{field}={fields[field]} must be at least 0 and less than 1")
    if not 0 < config.loss.gate_target <= 1:
        problems.append(f"loss.gate_target={config.loss.gate_target} must be greater than 0 and at most 1")
    length = "optimizer.schedule_epochs" if config.optimizer.schedule_epochs else "train.epochs"
    if config.optimizer.warmup_epochs >= fields[length] > 0:
        problems.append(
            f"optimizer.warmup_epochs={config.optimizer.warmup_epochs} must be less than {length}={fields[length]}"
        )
    if config.model.gater.batch_norm and config.train.batch_size == 1:
        problems.append("model.gater.batch_norm=True needs train.batch_size of at least 2: it compares images")
    if config.init_from and config.init_parts != "backbone" and config.model.gater.pretrained:
        problems.append("init_from and model.gater.pretrained are both for the gater; give one, or init_parts=backbone")
    if problems:
        raise UserError("the config cannot be used:\n  " + "\n  ".join(problems))


def check_fields(config: Config) -> None:
    """Checks that a config has the fields of `default()`, and each a value of its type.

    Raises:
        UserError: naming every field that is missing, unknown or of another type.
    """
    known = dict(flatten(default()))
    fields = dict(flatten(config)) if isinstance(config, ConfigDict) else {}
    problems = [f"{field} is missing" for field in known.keys() - fields.keys()]
    problems += [f"{field} is unknown" for field in fields.keys() - known.keys()]
    for field in fields.keys() & known.keys():
        value, like = fields[field], known[field]
        numbers = isinstance(like, tuple) and isinstance(value, tuple) and all(map(_is_number, value))
        whole = isinstance(like, float) and _is_number(value)  # a whole number will do
        if not (numbers or whole or (type(value) is type(like) and not isinstance(like, tuple))):
            problems.append(f"{field}={value!r} must be {KINDS[type(like)]}")
    if problems:
        raise UserError("the config cannot be used:\n  " + "\n  ".join(sorted(problems)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _floats(value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, tuple) else (value,)
    return tuple(number for number in values if isinstance(number, float))


def identify(config: Config) -> dict[str, Any]:
    """Gives all fields, with those that name a run to start from told apart by whether they name one, not by where.

    Two runs of equal fields compute the same, as far as their starting points are the same.
    """
    fields = dict(flatten(config))
    return fields | {field: "a run" for field in STARTING_POINTS if fields.get(field)}


def flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("model.gater.bottleneck", 8) and so on; sequences as tuples."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tuple(value) if isinstance(value, (list, tuple)) else value
