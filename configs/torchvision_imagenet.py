"""ResNets and MobileNetV2 on ImageNet-1K as torchvision trained its weights: the thesis's "learned" rows.

Run:      jaxclf train configs/torchvision_imagenet.py --workdir runs/torchvision_imagenet [--model.backbone resnet50]
          (MobileNetV2 has another optimiser: get_config(backbone="mobilenet_v2"))
Data:     jaxclf data prepare imagenet2012 --downloads DIR, with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
          fetched by hand from image-net.org, in DIR.
Hardware: eight V100 there; not run by us, time not measured.
Expect:   its IMAGENET1K_V1 weights: ResNet-18 69.758 % top-1, -34 73.314, -50 76.130, -101 77.374, -152 78.312,
          MobileNetV2 71.878.
Source:   pytorch/vision references/classification, README.md and the defaults of train.py.

Batches are 32 images on each of 8 GPUs, here one of 256; each GPU's BatchNorm sees its own 32 there. Weight decay is on
everything, BatchNorm and biases included. No label smoothing, no average of parameters. Dropout before MobileNetV2's
matrix is the backbone's own, .2. Images are RandomResizedCrop 224 (area .08 to 1, ratio 3/4 to 4/3) and mirror in
training, Resize 256 and CenterCrop 224 in testing, all bilinear, pixel for pixel as torchvision on PIL makes them.

Not expressible yet: BatchNorm by replica.
"""

import dataclasses

from configs.imagenet_resnet18 import IMAGENET_MEAN, IMAGENET_STD
from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.errors import unknown

SGD = OptimConfig(name="sgd", momentum=0.9, nesterov=False, decay="all", schedule="step", schedule_every="epoch")
# how the backbone's name begins: (optimiser, epochs)
LINES = {
    "resnet": (dataclasses.replace(SGD, lr=0.1, weight_decay=1e-4, step_size=30, gamma=0.1), 90),
    "mobilenet_v2": (dataclasses.replace(SGD, lr=0.045, weight_decay=4e-5, step_size=1, gamma=0.98), 300),
}


def get_config(*, backbone: str = "resnet18", head: str = "learned") -> Config:
    """Return the recipe of a ResNet or of MobileNetV2; other backbones raise `UsageError`."""
    kind = next((kind for kind in LINES if backbone.startswith(kind)), None)
    if kind is None:
        raise unknown("family", backbone, LINES)
    optim, epochs = LINES[kind]
    return Config(
        data=DataConfig(
            dataset="imagenet2012",
            batch_size=256,
            image_size=224,
            resize=256,
            interpolation="bilinear",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        augment=AugmentConfig(
            crop="random_resized", crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), pad=0, flip=True
        ),
        model=ModelConfig(backbone=backbone, head=head, maps=1000 if head == "identity" else None),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.0),
        optim=optim,
        run=RunConfig(epochs=epochs),
    )
