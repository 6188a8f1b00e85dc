"""Numbers that others published, as they stand there: what docs/results.md puts beside ours."""

from typing import NamedTuple

# Chen, Li, Bengio, Si 2019, "You Look Twice", Table 1 of arXiv 1811.11205v1 (whether v2 prints the same was not
# checked): parameters in millions and test error in percent. Baselines are the authors' own reimplementation. The
# recipe, and over how many runs, is not said here.
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

# The same, section on the gates of ResNet-164-Gated over the CIFAR-10 test set: 5,453 of 7,200 gates open per image,
# 1,567 input-dependent. Fractions, named as in the ledger.
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
