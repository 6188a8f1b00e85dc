"""CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 pixels, 10 classes.

    python -m gaternet_jax.main --config=configs/cifar10.py                   ResNet-20-Gated
    python -m gaternet_jax.main --config=configs/cifar10.py:resnet56-wider    a plain ResNet-56 with as many parameters
    python -m gaternet_jax.main --config=configs/cifar10.py:resnet20-strong   the stronger of the two recipes

Variants: [MODEL][-last|-all][-plain|-wider|-se|-local|-aux][-he|-strong], any model of `python -m
gaternet_jax.tools.models`. Recipes, both of 200 epochs at batch 128: `he` (the default; weight decay 1e-4, learning
rate 0.1 divided by 10 at 50% and 75%) and `strong` (weight decay 5e-4, cosine, Nesterov). The data must be prepared
(docs/running.md). 200 epochs of 390 steps; cost of a run:

| model | parameters (backbone + gater) | gates | MACs per image (backbone + gater) | steps |
|---|---:|---:|---:|---:|
| resnet20 | 0.27 M + 0.28 M | 336 | 40.8 M + 40.6 M | 78,000 |
| resnet56 | 0.86 M + 0.28 M | 1,008 | 125.7 M + 40.6 M | 78,000 |
| resnet164_paper | 1.62 M + 0.34 M | 7,200 | 169.0 M + 40.7 M | 78,000 |
| resnet164 | 1.70 M + 0.35 M | 8,064 | 247.6 M + 40.7 M | 78,000 |
| densenet100 | 0.77 M + 0.28 M | 540 | 287.9 M + 40.6 M | 78,000 |
| shake26_2x96d | 26.19 M + 0.32 M | 5,376 | 3,776.9 M + 40.7 M | 78,000 (Gastaldi 2017 trains 1,800 epochs) |
"""

from gaternet_jax.config import default
from gaternet_jax.variants import RECIPES, apply_variant


def get_config(variant: str = ""):
    config = apply_variant(default(), variant, RECIPES)
    if config.model.backbone.startswith("shake26"):
        config.data.cutout = 16  # DeVries and Taylor 2017, table 1
    return config.lock()
