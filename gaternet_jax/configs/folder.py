"""Your own pictures: a folder of images, in it one folder per class.

    python -m gaternet_jax.main --config=configs/folder.py --config.data.root=PICTURES --workdir=runs/pictures

    PICTURES/train/cat/1.jpg ...      PICTURES/test/cat/9.jpg ...      ("validation" in place of "test" will do)

The folder is prepared once, into --data_dir (`python -m gaternet_jax.tools.prepare folder --help` tells how, and what
is refused); the classes follow from it. ResNet-18-Gated at 224 x 224 pixels; variants as in configs/imagenet.py.

The recipe is that of configs/imagenet.py with smaller batches. Thousands of pictures need some hundred epochs; a few
hundred are too few for a network that starts from nothing. Sources as there.
"""

from gaternet_jax.config import default
from gaternet_jax.variants import apply_variant


def get_config(variant: str = ""):
    config = default()
    config.model.backbone = "resnet18"
    config.model.num_classes = 0  # as many as the folder has
    config.model.zero_init_residual = True  # [G] 5.1
    config.model.gater.extractor = "resnet18"  # assumed
    config.model.gater.bottleneck = 16  # assumed
    config.data.name = ""  # the folder's
    config.data.eval_split = ""  # test or validation
    config.data.pipeline = "stream"
    config.data.image_size = 224  # [I]
    config.data.mean = (0.485, 0.456, 0.406)  # of ImageNet's training images, as commonly used
    config.data.std = (0.229, 0.224, 0.225)
    config.data.train_crop = "random"  # [S, G]
    config.data.eval_crop = 0.875  # 224 of 256 pixels [I, G]
    config.data.crop_padding = 0
    config.loss.label_smoothing = 0.1  # [S]
    config.optimizer.learning_rate = 0.025  # 0.1 per 256 images [G] 2.1
    config.optimizer.warmup_epochs = 5.0  # [G] 2.2
    config.optimizer.schedule = "cosine"  # assumed; [G] divides by 10 at 30, 60 and 80 epochs
    config.optimizer.nesterov = True  # [G] 5.1
    config.train.batch_size = 64  # assumed
    config.train.epochs = 90.0  # [G] 5.1
    config.train.eval_batch_size = 64
    config.train.log_every_steps = 10
    config = apply_variant(config, variant)
    if config.model.backbone.startswith("inceptionv4"):
        config.model.zero_init_residual = False  # it has none
        config.data.image_size = 299  # Szegedy et al. 2017
    return config.lock()
