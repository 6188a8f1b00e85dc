"""Numbers that others published, as they stand there: what docs/results.md puts beside ours."""

from typing import NamedTuple

# Chen, Li, Bengio, Si 2019, "You Look Twice", Tables 1 to 3 of arXiv 1811.11205v1 (whether v2 prints the same was not
# checked), by dataset, network and kind: parameters in millions and test error in percent. Baselines are the authors'
# own reimplementation. The recipe, and over how many runs, is not said here. What each row is in this code:
# paper_models.py.
TABLE_1: dict[tuple[str, str, str], tuple[float, float]] = {
    ("cifar10", "resnet20", "plain"): (0.27, 8.06),
    ("cifar10", "resnet20", "wider"): (0.56, 6.85),
    ("cifar10", "resnet20", "se"): (0.28, 7.81),
    ("cifar10", "resnet20", "gated"): (0.55, 6.88),
    ("cifar10", "resnet56", "plain"): (0.86, 6.74),
    ("cifar10", "resnet56", "wider"): (1.08, 6.72),
    ("cifar10", "resnet56", "se"): (0.88, 6.27),
    ("cifar10", "resnet56", "gated"): (1.14, 5.72),
    ("cifar10", "resnet164", "plain"): (1.62, 5.61),
    ("cifar10", "resnet164", "wider"): (2.04, 5.57),
    ("cifar10", "resnet164", "se"): (2.00, 5.51),
    ("cifar10", "resnet164", "gated"): (1.96, 4.80),
    ("cifar100", "resnet20", "plain"): (0.28, 32.39),
    ("cifar100", "resnet20", "wider"): (0.57, 30.08),
    ("cifar100", "resnet20", "se"): (0.29, 31.22),
    ("cifar100", "resnet20", "gated"): (0.60, 30.79),
    ("cifar100", "resnet56", "plain"): (0.86, 28.87),
    ("cifar100", "resnet56", "wider"): (1.09, 28.39),
    ("cifar100", "resnet56", "se"): (0.89, 28.00),
    ("cifar100", "resnet56", "gated"): (1.14, 27.71),
    ("cifar100", "resnet164", "plain"): (1.64, 25.39),
    ("cifar100", "resnet164", "wider"): (2.07, 24.80),
    ("cifar100", "resnet164", "se"): (2.02, 23.83),
    ("cifar100", "resnet164", "gated"): (1.98, 23.56),
}

# Its DenseNet-BC and Shake-Shake networks.
TABLE_2: dict[tuple[str, str, str], tuple[float, float]] = {
    ("cifar10", "densenet100", "plain"): (0.77, 4.48),
    ("cifar10", "densenet100", "gated"): (1.05, 4.03),
    ("cifar10", "densenet250", "plain"): (15.32, 3.61),
    ("cifar10", "densenet250", "gated"): (15.62, 3.31),
    ("cifar10", "densenet190", "plain"): (25.62, 3.52),
    ("cifar10", "densenet190", "gated"): (25.93, 3.39),
    ("cifar10", "shake26_2x64d", "plain"): (11.71, 3.05),
    ("cifar10", "shake26_2x64d", "gated"): (12.01, 2.89),
    ("cifar10", "shake26_2x96d", "plain"): (26.33, 2.82),
    ("cifar10", "shake26_2x96d", "gated"): (26.65, 2.64),
}

# ImageNet's validation images, one crop: parameters, top-1 error, top-5 error.
TABLE_3: dict[tuple[str, str, str], tuple[float, float, float]] = {
    ("imagenet", "resnet34", "plain"): (21.80, 26.56, 8.48),
    ("imagenet", "resnet34", "wider"): (33.89, 25.36, 7.91),
    ("imagenet", "resnet34", "se"): (21.96, 26.08, 8.30),
    ("imagenet", "resnet34", "gated"): (34.08, 26.04, 8.34),
    ("imagenet", "resnet101", "plain"): (44.55, 23.36, 6.56),
    ("imagenet", "resnet101", "wider"): (59.17, 21.89, 6.05),
    ("imagenet", "resnet101", "se"): (49.33, 22.38, 6.07),
    ("imagenet", "resnet101", "gated"): (64.21, 21.51, 5.78),
    ("imagenet", "resnet152", "plain"): (60.19, 22.34, 6.22),
    ("imagenet", "resnet152", "wider"): (81.37, 21.50, 5.67),
    ("imagenet", "resnet152", "se"): (66.82, 21.57, 5.73),
    ("imagenet", "resnet152", "gated"): (83.80, 21.19, 5.45),
    ("imagenet", "inceptionv4", "plain"): (44.50, 20.33, 4.99),
    ("imagenet", "inceptionv4", "gated"): (61.67, 19.64, 4.80),
}

# Gates of the gated networks in these tables.
GATES = {
    "resnet20": 336, "resnet56": 1_008, "resnet164": 7_200, "densenet100": 540, "densenet250": 2_880,
    "densenet190": 3_600, "shake26_2x64d": 3_584, "shake26_2x96d": 5_376, "resnet34": 3_776, "resnet101": 32_512,
    "resnet152": 47_872, "inceptionv4": 16_608,
}  # fmt: skip

# The same paper, section on the gates of ResNet-164-Gated over the CIFAR-10 test set: 5,453 of 7,200 gates open per
# image, 1,567 input-dependent. Fractions, named as in the ledger.
PAPER_GATES = {"open": 5453 / 7200, "input_dependent": 1567 / 7200}


class Plain(NamedTuple):
    """Somebody's plain network: test error in percent after the last epoch, unless `note` says otherwise."""

    dataset: str
    backbone: str
    error: float
    recipe: str  # ours that is nearest
    source: str
    note: str


_HE = "[He et al. 2016](https://arxiv.org/abs/1512.03385)"
_AKAMASTER = "[akamaster/pytorch_resnet_cifar10](https://github.com/akamaster/pytorch_resnet_cifar10)"
_CHENYAOFO = "[chenyaofo/pytorch-cifar-models](https://github.com/chenyaofo/pytorch-cifar-models)"
_STEPS, _BEST = "164 epochs, 45,000 training images", "200 epochs; best epoch"
_COSINE = "200 epochs, batch 256"

PLAIN = (
    Plain("cifar10", "resnet20", 8.75, "he", _HE, _STEPS),
    Plain("cifar10", "resnet20", 8.27, "he", _AKAMASTER, _BEST),
    Plain("cifar10", "resnet20", 7.44, "strong", _CHENYAOFO, _COSINE),
    Plain("cifar10", "resnet56", 6.97, "he", _HE, _STEPS),
    Plain("cifar10", "resnet56", 6.61, "he", _AKAMASTER, _BEST),
    Plain("cifar10", "resnet56", 5.79, "strong", _CHENYAOFO, _COSINE),
    Plain("cifar100", "resnet20", 31.52, "strong", _CHENYAOFO, _COSINE),
    Plain("cifar100", "resnet56", 27.63, "strong", _CHENYAOFO, _COSINE),
)
