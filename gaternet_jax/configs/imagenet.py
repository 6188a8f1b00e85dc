"""ImageNet (ILSVRC2012): 1.28 million + 50,000 photographs, 1,000 classes, at 224 x 224 pixels (Inception-v4: 299).

    python -m gaternet_jax.main --config=configs/imagenet.py                      ResNet-50-Gated
    python -m gaternet_jax.main --config=configs/imagenet.py:resnet18-plain       ResNet-18 without gates

Variants: [MODEL][-last|-all][-plain|-wider|-se|-local|-aux]; models resnet18, 34, 50, 101, 152 and inceptionv4. The
gater is ResNet-18. 90 epochs of 1,251 steps.

| model | parameters (backbone + gater) | gates | MACs (backbone + gater) |
|---|---:|---:|---:|
| resnet18 | 11.7 M + 11.8 M | 1,920 | 1.81 G + 1.81 G |
| resnet50 | 25.6 M + 15.2 M | 15,104 | 4.09 G + 1.82 G |
| resnet101 | 44.5 M + 19.7 M | 32,512 | 7.80 G + 1.82 G |
| inceptionv4 | 42.7 M + 15.6 M | 16,608 | 12.25 G + 3.40 G |

Images are read and decoded anew for every batch (gaternet_jax/data/stream.py). Prepare the dataset from the two files
of ILSVRC2012 by `python -m gaternet_jax.tools.prepare imagenet --help`; no TensorFlow is needed.

Sources: [G] Goyal et al. 2017 (arXiv 1706.02677), [I] He et al. 2016 (arXiv 1512.03385), [S] Szegedy et al. 2015 (arXiv
1409.4842; label smoothing: 2016, arXiv 1512.00567), [P] the paper, [D] derived from its numbers
(docs/paper_to_code.md); the paper's own recipe is not known.
"""

from gaternet_jax.config import default
from gaternet_jax.variants import apply_variant


def get_config(variant: str = ""):
    config = default()
    config.model.backbone = "resnet50"
    config.model.num_classes = 1000
    config.model.dtype = "bfloat16"  # assumed
    config.model.zero_init_residual = True  # [G] 5.1
    config.model.gater.extractor = "resnet18"  # [P]
    config.model.gater.bottleneck = 256  # [D]
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 224  # [I]
    config.data.mean = (0.485, 0.456, 0.406)  # of the training images, as commonly used
    config.data.std = (0.229, 0.224, 0.225)
    config.data.pipeline = "stream"
    config.data.train_crop = "random"  # area 8% to 100%, aspect 3/4 to 4/3 [S, G]
    config.data.resize = "bilinear"  # assumed; "area" looks at all pixels and costs a tenth of the speed
    config.data.eval_crop = 0.875  # 224 of 256 pixels [I, G]
    config.data.crop_padding = 0
    config.loss.label_smoothing = 0.1  # [S]
    config.loss.gate_target = 0.9  # for target and macs; assumed. ResNet-50 has 0.80 of its MACs with all gates closed
    config.optimizer.learning_rate = 0.4  # 0.1 per 256 images [G] 2.1
    config.optimizer.warmup_epochs = 5.0  # [G] 2.2
    config.optimizer.schedule = "cosine"  # assumed; [G] divides by 10 at 30, 60 and 80 epochs
    config.optimizer.nesterov = True  # [G] 5.1
    config.train.batch_size = 1024  # assumed
    config.train.epochs = 90.0  # [G] 5.1
    config.train.eval_batch_size = 1024
    config.train.log_every_steps = 100
    config = apply_variant(config, variant)
    if config.model.backbone.startswith("inceptionv4"):
        config.model.zero_init_residual = False  # it has none
        config.data.image_size = 299  # Szegedy et al. 2017
    return config.lock()
