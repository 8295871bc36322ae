"""EfficientNet B0 to B7 on ImageNet-1K as the paper and its TPU code train them: RMSProp, 350 epochs at batch 4096.

Run:      jaxclf train configs/efficientnet.py --workdir runs/efficientnet
          (another size: an axis of get_config, since its images and their resizing follow from it)
Data:     jaxclf data prepare imagenet2012 --downloads DIR, with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
          fetched by hand from image-net.org, in DIR.
Hardware: TPU pods there; not run by us, time not measured.
Expect:   its README's top-1 with this preprocessing: B0 76.8 %, B1 78.8, B2 79.8, B3 81.0, B4 82.6, B5 83.2. (With
          AutoAugment: 77.3, 79.2, 80.3, 81.7, 83.0, 83.7, B6 84.2, B7 84.5.)
Source:   Tan and Le 2019, arXiv:1905.11946, section 5.2; tensorflow/tpu, models/official/efficientnet: main.py (flags),
          utils.py, efficientnet_builder.py; preprocessing.py and README.md as of 2019 (@b3293eb, @f59154b). torchvision
          published no recipe: its EfficientNet weights are others' ports of these.

The paper gives optimiser, rate, decays and dropout; batch, 350 epochs, warm-up, eps .001, smoothing .1 and the average
are the code's. The rate is .016 for 256 images, so .256 at batch 4096; the axis `batch_size` scales it. Dropout (.2 for
B0 to .5 for B7) and stochastic depth (.2) are the backbone's own. TensorFlow's decay is a term of the loss, which
before RMSProp is the same. The average's decay starts low, min(.9999, (1 + n) / (10 + n)) at update n, and the average
includes BatchNorm's statistics.

The rate drops every 2.4 epochs, counted there from the first step and here from the end of the warm-up. So the warm-up
ends here after 4.8 epochs, at .256 times .97 twice: from epoch 5 on the rates are the source's, before it 2 to 6 %
lower.

Images are RandomResizedCrop (area .08 to 1, ratio 3/4 to 4/3) and mirror in training, and in testing the middle square
of size / (size + 32) of the short side, all bicubic. Here, as PIL does, the filter smooths where it shrinks.

The paper's published numbers are with AutoAugment, which the library lacks (RandAugment is torchvision's, augment.
rand_augment, and is off). Other differences: biases decay there, too, and only BatchNorm does not. BatchNorm's momentum
is .01 and its eps .001 in B5 to B7 and in efficientnet_b0_lukemelas, which pads as TensorFlow does, but .1 and 1e-5
in torchvision's B0 to B4; it sees groups of replicas there. Convs start there from a normal of variance
2 / (k k out). The paper stopped early by 25,000 training images that it held out.
"""

from configs.imagenet_resnet18 import IMAGENET_MEAN, IMAGENET_STD
from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.errors import unknown

SIDES = {
    **{"efficientnet_b0": 224, "efficientnet_b1": 240, "efficientnet_b2": 260, "efficientnet_b3": 300},
    **{"efficientnet_b4": 380, "efficientnet_b5": 456, "efficientnet_b6": 528, "efficientnet_b7": 600},
    "efficientnet_b0_lukemelas": 224,
}
"""Side of the images, by backbone."""
PADDING = 32
"""Pixels around the centre crop of test images."""


def get_config(*, backbone: str = "efficientnet_b0", head: str = "learned", batch_size: int = 4096) -> Config:
    """Return the recipe of a size; `batch_size` scales the rate with it. Other backbones raise `UsageError`."""
    if backbone not in SIDES:
        raise unknown("backbone", backbone, SIDES)
    return Config(
        data=DataConfig(
            dataset="imagenet2012",
            batch_size=batch_size,
            image_size=SIDES[backbone],
            resize=SIDES[backbone] + PADDING,
            interpolation="bicubic",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        augment=AugmentConfig(
            crop="random_resized", crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), pad=0, flip=True
        ),
        model=ModelConfig(backbone=backbone, head=head, maps=1000 if head == "identity" else None),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.1),
        optim=OptimConfig(
            name="rmsprop_tf",
            lr=0.016 * batch_size / 256 * 0.97**2,  # two drops fall into the warm-up
            momentum=0.9,
            alpha=0.9,
            eps=1e-3,
            accumulator=1.0,
            weight_decay=1e-5,
            decay="weights",
            ema=0.9999,
            ema_every=1,
            ema_warmup=True,
            schedule="step",
            schedule_every="step",  # 2.4 epochs are no whole ones
            step_size=2.4,
            gamma=0.97,
            warmup=4.8,
            warmup_start=0.0,
        ),
        run=RunConfig(epochs=350),
    )
