"""Every field of a run: its type, unit, source and bounds, and whether a resumed run or an evaluation may change it.

A run card (configs/) is `default()` with a few fields changed. Any field can be overridden on the command line:
`--config.optimizer.learning_rate=0.05`; `gaternet train --help` lists them.

Sources: [P] the paper (arXiv 1811.11205), [C] the authors' released evaluation code, [D] derived from numbers that [P]
prints (docs/paper_to_code.md), [He] He et al. 2016 (arXiv 1512.03385) section 4.2; "assumed" marks what none tells. The
paper's learning rate, batch size, epochs, weight decay, schedule and lambda are not known. The default is the recipe of
He et al. (variants.py: `he`): under it others' plain ResNets come near the paper's plain rows, under `strong` they are
better than those (docs/results.md). Lambda, and how the gater's head begins, are by experiment.
"""

import operator
from typing import Any, Literal

from gaternet_jax.errors import check_choice
from gaternet_jax.fields import Section, field, make, table
from gaternet_jax.fields import flatten as flatten


class GaterConfig(Section):
    """Declares what decides which filters are open."""

    scope: Literal["global", "local"] = field(
        "global", "global: one gater decides all [P, C] | local: each block decides for itself"
    )
    extractor: str = field("resnet20", "network that sees the image first", source="P, C: for CIFAR")
    width: int = field(0, "filters of its first stage; 0: the extractor's own (ResNet-20: 16 [C])", at_least=0)
    bottleneck: int = field(
        8, "units between features and gate scores; in local scope: in each block's head", source="C, D", above=0
    )
    pretrained: str = field(
        "",
        "workdir of a plain run of the extractor to start from (an option of [P], unconfirmed)",
        start=True,
        run=True,
    )
    batch_norm: bool = field(
        False,
        "before the bottleneck's ReLU: False [C], True [P]",
        source="by experiment (docs/gating_study.md): True makes gates depend on the image, which pays with a gater "
        "that is taught (pretrained, auxiliary_weight)",
    )
    initial_bias: float = field(
        3.0,
        "of the gate scores, before training: 3.0 opens all gates, 0.0 half of them in training [C]",
        source="by experiment (docs/gating_study.md): from 0.0 on, gates close before anything is learnt",
        start=True,
    )
    auxiliary_weight: float = field(
        0.0,
        "of the loss of a classifier on the gater's features, thrown away after training; 0: there is none",
        source="ours: [P] trains the extractor so beforehand",
        at_least=0,
    )


class ModelConfig(Section):
    """Declares the network."""

    backbone: str = field("resnet20", "any model that `gaternet models` lists")
    width: int = field(
        0, "filters of the first stage (DenseNet: growth rate); 0: the model's own (ResNet: 16 [He, C])", at_least=0
    )
    match_params_of: Literal["", "last", "all"] = field(
        "", "last | all: a plain network takes the width that matches that gated one"
    )
    num_classes: int = field(10, "of the dataset; 0: as many as it has", at_least=0)
    channels: Literal[1, 3] = field(3, "of the input images: 1 grayscale, 3 RGB")
    gating: Literal["none", "last", "all"] = field(
        "last", "none | last: the last convolution of each block [C] | all: the earlier ones too"
    )
    dense_ungated: Literal["first", "last", "none"] = field(
        "last", "of a dense block's layers, without gates: first | last | none; which is assumed", source="D"
    )
    dtype: Literal["float32", "bfloat16"] = field(
        "float32", "compute type; parameters, BatchNorm and loss stay float32", source="C"
    )
    se_ratio: int = field(0, "of squeeze-and-excitation in each block (see variants.py: -se); 0: none", at_least=0)
    zero_init_residual: bool = field(
        False, "last BatchNorm scale of each residual block starts at 0 (Goyal et al. 2017)", start=True
    )
    gater: GaterConfig


class DataConfig(Section):
    """Declares the images, and how they come to the model."""

    name: str = field(
        "cifar10", '"digits", or the name of a prepared TFDS dataset', resume=True, evaluate=True
    )  # of a resumed run, dataset.json tells whether it is the same one
    root: str = field(
        "", 'a folder of images, prepared on first use (gaternet prepare); name may then be ""', resume=True
    )
    data_dir: str = field(
        "",
        'folder of prepared datasets; "": $TFDS_DATA_DIR, else ~/tensorflow_datasets',
        resume=True,
        evaluate=True,
    )
    train_split: str = field("train", "images to train on, as TFDS writes it: train[:5000]")
    eval_split: str = field("test", 'to evaluate on; "": the first of test, validation that is there', evaluate=True)
    pipeline: Literal["auto", "memory", "device", "stream"] = field(
        "auto",
        "memory: decoded once | device: held there | stream: decoded anew | auto: one that fits",
        resume=True,
        evaluate=True,
    )
    image_size: int = field(32, "pixels, height and width", above=0)
    resize: Literal["area", "bilinear"] = field("area", "area: all pixels count | bilinear: 2 x 2 of them, faster")
    train_crop: Literal["center", "random"] = field(
        "center", "center: as eval_crop | random: of random area, aspect and place (stream only)"
    )
    crop_area: tuple[float, float] = field(
        (0.08, 1.0),
        '"random" only: fractions of the image\'s area (Szegedy et al. 2015)',
        check=lambda area: len(area) == 2 and 0 < area[0] <= area[1] <= 1,
        must="two numbers between 0 and 1, least and greatest",
    )
    crop_aspect: tuple[float, float] = field(
        (3 / 4, 4 / 3),
        '"random" only: width / height (likewise)',
        check=lambda aspect: len(aspect) == 2 and 0 < aspect[0] <= aspect[1],
        must="two positive numbers, least and greatest",
    )
    eval_crop: float = field(
        1.0, "side of the central square relative to the shorter side; 224 / 256: 0.875", above=0, at_most=1
    )
    background: tuple[int, ...] = field(
        (255, 255, 255),
        "R, G, B that transparent pictures are put on",
        check=lambda colour: len(colour) == 3 and all(type(part) is int and 0 <= part <= 255 for part in colour),
        must="three integers from 0 to 255: red, green and blue",
    )
    mean: tuple[float, ...] = field((0.4914, 0.4822, 0.4465), "per channel, of pixels in [0, 1]", source="C")
    std: tuple[float, ...] = field((0.2470, 0.2435, 0.2616), "likewise", source="C", above=0)
    crop_padding: int = field(4, "pixels of zero padding before the random crop", source="He", at_least=0)
    flip: bool = field(True, "random horizontal flip", source="He")
    cutout: int = field(
        0, "pixels, side of the square that is blanked at random (DeVries and Taylor 2017: 16); 0: none", at_least=0
    )
    on_error: Literal["raise", "skip"] = field(
        "raise",
        "an image that cannot be read: raise | skip: another takes its place, and it is reported",
        resume=True,
        evaluate=True,
    )
    threads: int = field(
        0, '"stream" only: that read and decode; 0: as many as CPU cores', at_least=0, resume=True, evaluate=True
    )
    stall_seconds: float = field(
        300.0, "a wait for a batch of so long is reported, with where it hangs", above=0, resume=True
    )
    workers: int = field(
        0,
        '"stream" only: processes with so many threads each; 0: threads of the training process',
        at_least=0,
        resume=True,
        evaluate=True,
    )


class LossConfig(Section):
    """Declares what is minimised besides the cross-entropy."""

    gate: Literal["l1", "target", "macs"] = field(
        "l1", "l1: mean(gates) [P] | target: (open fraction - t)^2 | macs: (fraction of dense MACs - t)^2"
    )
    gate_weight: float = field(
        0.01,
        "lambda, the weight of that term [P has it for l1]; target and macs need more, 1 to 10",
        source="value by experiment (docs/gating_study.md); [P]'s is not known",
        at_least=0,
    )
    gate_target: float = field(0.5, "t, for target and macs", source="assumed", above=0, at_most=1)
    gate_target_scope: Literal["overall", "site"] = field(
        "overall", "target only: the open fraction overall | of each site"
    )
    label_smoothing: float = field(
        0.0, "probability mass spread over all classes; 0: none", source="He", at_least=0, below=1
    )


class OptimizerConfig(Section):
    """Declares how the loss is minimised."""

    learning_rate: float = field(0.1, "peak, at the configured batch size", source="He", at_least=0)
    momentum: float = field(0.9, "of SGD", source="He", at_least=0, below=1)
    nesterov: bool = field(False, "whether that momentum is Nesterov's", source="He: not")
    weight_decay: float = field(1e-4, "on kernels only", source="He: 1e-4 on all parameters", at_least=0)
    schedule: Literal["cosine", "steps"] = field("steps", "steps [He] | cosine to zero")
    schedule_epochs: float = field(
        0.0,
        "in which the schedule runs off, then its last rate holds; 0: all of train.epochs",
        at_least=0,
        resume=True,
    )
    warmup_epochs: float = field(1.0, "linear from zero", source="assumed", at_least=0)
    decay_at: tuple[float, ...] = field(
        (0.5, 0.75),
        '"steps" only: fractions of the run at which the rate falls',
        source="He",
        check=lambda places: all(0 < at < 1 for at in places) and list(places) == sorted(set(places)),
        must="increasing fractions between 0 and 1",
    )
    decay_factor: float = field(0.1, '"steps" only', source="He", above=0, below=1)
    gater_rate: float = field(1.0, "the gater's learning rate relative to the others'; 0: it is frozen", at_least=0)
    clip_norm: float = field(0.0, "the gradient's norm is cut to this; 0: never", source="He", at_least=0)


class TrainConfig(Section):
    """Declares how long to train, in which steps, and what is told of it."""

    batch_size: int = field(128, "images per step over all devices", source="He", above=0)
    epochs: float = field(200.0, "may be a fraction", source="assumed; He: 164", above=0, resume=True)
    ema_decay: float = field(
        0.0,
        "moving average of parameters, for evaluation; usually 0.9999, less early on; 0: none",
        source="He",
        at_least=0,
        below=1,
    )
    on_nonfinite: Literal["stop", "skip"] = field(
        "stop", "loss, gradient or update NaN or infinite: stop | skip: that step changes nothing"
    )
    max_skipped_steps: int = field(10, '"skip" only: in the whole run; one more ends it', at_least=0, resume=True)
    eval_batch_size: int = field(
        512, "images per evaluation step over all devices", above=0, resume=True, evaluate=True
    )
    eval_every_epochs: float = field(1.0, "a checkpoint follows each evaluation", above=0, resume=True)
    log_every_steps: int = field(50, "training metrics are means over this many steps", above=0, resume=True)
    steps_per_call: int = field(
        0,
        "in one dispatch, at most; 0: a logging window with images on an accelerator, else 1",
        at_least=0,
        resume=True,
    )


class CheckpointConfig(Section):
    """Declares which checkpoints are kept."""

    keep_latest: int = field(2, "checkpoints; the best one (top-1 on eval_split) is kept besides", above=0, resume=True)
    every_steps: int = field(0, "more checkpoints between evaluations; 0: none", at_least=0, resume=True)


class RunConfig(Section):
    """Declares the whole config of a run."""

    seed: int = field(
        0, "initial parameters, shuffling, augmentation and gate noise all follow from it", at_least=0, below=2**32
    )
    init_from: str = field(
        "", 'workdir of a run whose model this one starts from; "": from random numbers', start=True, run=True
    )
    init_parts: Literal["all", "backbone", "gater"] = field("all", "what is taken from there", start=True)
    model: ModelConfig
    data: DataConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig


FIELDS = table(RunConfig)
CHOICES = {name: known.choices for name, known in FIELDS.items() if known.choices}
MAY_CHANGE = tuple(sorted(name for name, known in FIELDS.items() if known.resume))  # by a resumed run
MAY_OVERRIDE = tuple(sorted(name for name, known in FIELDS.items() if known.evaluate))  # by an evaluation
INITIAL_ONLY = tuple(sorted(name for name, known in FIELDS.items() if known.start))


def default() -> RunConfig:
    """Makes the CIFAR recipe; unlocked, so that a run card can change it and lock it."""
    return make(RunConfig)


def check_choices(section: Section, name: str) -> None:
    """Checks the fields of a section, e.g. config.model, that take but a few values: a whole config is checked as such.

    Raises:
        UserError: a value that there is not; the message lists those there are.
    """
    for path, choices in CHOICES.items():
        part, _, known = path.partition(".")
        if part == name:
            check_choice(known, operator.attrgetter(known)(section), choices)


def identify(config: RunConfig) -> dict[str, Any]:
    """Gives all fields, with those that name a run to start from told apart by whether they name one, not by where.

    Two runs of equal fields compute the same, as far as their starting points are the same.
    """
    fields = dict(flatten(config))
    return fields | {name: "a run" for name, known in FIELDS.items() if known.run and fields.get(name)}
