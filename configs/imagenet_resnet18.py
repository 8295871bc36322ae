"""ResNet-18 on ImageNet-1K: the thesis's recipe (tables 4.1 to 4.3), 90 epochs of SGD at batch 256.

Run:      jaxclf train configs/imagenet_resnet18.py --workdir runs/imagenet_resnet18 [--data.classes 512]
Data:     jaxclf data prepare imagenet2012 --downloads DIR, with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
          fetched by hand from image-net.org, in DIR.
Hardware: GPUs or TPU cores; not run by us, time not measured.
Expect:   the thesis prints (table 5.2) 69.76 % top-1 learned (torchvision's published weights) and 66.48 orthogonal;
          on the first 512 classes 77.87 learned, 77.29 orthogonal, 76.33 hadamard, 77.59 identity. Table 5.4, mean of
          three seeds, learned / hadamard / identity: 8 classes 74.92 / 74.00 / 76.58, 16: 83.21 / 81.25 / 83.71,
          32: 83.64 / 81.38 / 83.50, 64: 75.51 / 72.23 / 75.63, 128: 77.98 / 73.82 / 78.36, 256: 79.03 / 77.52 / 78.54.
Source:   Z. Qian, RIT 2020, tables 4.1 to 4.3; where it is silent, pytorch/vision references/classification.

What the thesis leaves open, and what stands here:
- normalisation: torchvision's ImageNet constants, as in the weights it compares with.
- weight decay: on everything, BatchNorm and biases included (torchvision, bearpaw, pytorch/examples: SGD over
  model.parameters()). The thesis also cites Hoffer's code, which drops the decay to 0 from epoch 60; we do not.
- label smoothing, colour jitter, averaging of parameters: none, as in all three.
- images: torchvision's RandomResizedCrop 224 (area .08 to 1, ratio 3/4 to 4/3) and mirror in training, Resize 256 and
  CenterCrop 224 in testing, all bilinear. For the same box the pixels are torchvision's on PIL exactly; boxes are
  drawn from the same distribution by other random numbers.
"""

from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FEATURES = 512


def get_config(head: str = "learned", classes: int | None = None) -> Config:
    """Return the recipe on the first `classes` classes; identity takes the first features, or past 512 rebuilds."""
    wanted = classes or 1000
    return Config(
        data=DataConfig(
            dataset="imagenet2012",
            classes=classes,
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
        model=ModelConfig(
            backbone="resnet18", head=head, maps=wanted if head == "identity" and wanted > FEATURES else None
        ),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.0),
        optim=OptimConfig(
            name="sgd",
            lr=0.1,
            momentum=0.9,
            nesterov=False,
            weight_decay=1e-4,
            decay="all",
            schedule="multistep",
            milestones=(30, 60),
            gamma=0.1,
        ),
        run=RunConfig(epochs=90),
    )
