"""Fine-tuning from ImageNet weights on Cars-196 and Flowers-102: the thesis's recipe, 40 epochs at batch 64.

Run:      jaxclf convert resnet18.pth weights/resnet18.safetensors --model resnet18   # torchvision's file, needs torch
          jaxclf train configs/transfer.py --workdir runs/transfer [--data.dataset oxford_flowers102]
          (another net: --model.backbone resnet50 --model.weights weights/resnet50.safetensors and, for all but
          ResNet-18, --optim.weight-decay 1e-4; identity: --model.head identity --model.maps 196, on Flowers 102)
Data:     jaxclf data prepare cars196 (or oxford_flowers102); TFDS downloads both. Stanford's address of cars196 has
          answered 404 since 2023 (tensorflow/datasets#5053); from wherever you get the files, --downloads DIR takes
          cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat, by TFDS's checksums.
Hardware: one GPU or TPU core; not run by us, time not measured.
Expect:   the thesis prints (table 5.5, mean of three seeds), learned / identity, on Cars: ResNet-18 88.12 / 86.06,
          ResNet-50 89.90 / 90.35, MobileNetV2 87.68 / 86.12, ShuffleNetV2 x0.5 77.99 / 75.76; on Flowers:
          93.42 / 92.78, 95.06 / 94.64, 94.24 / 93.95, 87.75 / 86.34.
Source:   Z. Qian, RIT 2020, tables 4.1 to 4.3.

What the thesis leaves open, and what stands here:
- ShuffleNetV2's rate is illegible ("01"): .01 as for the others. If it reads .1: --optim.lr 0.1.
- what is trained: everything, at one rate; weight decay on everything, as in the thesis's other recipes.
- Flowers' training images: its official training part has 1,020, which stand here, with the validation part 2,040
  (--data.train-split train+validation); the thesis does not say which it took. Tested is its test part, 6,149. Cars
  has 8,144 and 8,041, as the thesis says.
- normalisation: that of the weights, torchvision's. Label smoothing: none.
- images: RandomResizedCrop 224 and mirror in training, Resize 256 and CenterCrop 224 in testing, pixel for pixel as
  torchvision on PIL, as in configs/imagenet_resnet18.py; the thesis does not say that transfer does the same.
"""

from configs.imagenet_resnet18 import IMAGENET_MEAN, IMAGENET_STD
from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.errors import unknown

CLASSES = {"cars196": 196, "oxford_flowers102": 102}
WEIGHT_DECAY = {"resnet18": 1e-3, "resnet50": 1e-4, "mobilenet_v2": 1e-4, "shufflenet_v2_x0_5": 1e-4}


def get_config(
    *, backbone: str = "resnet18", dataset: str = "cars196", head: str = "learned", weights: str | None = None
) -> Config:
    """Return the recipe; `weights` is the file to start from, None is weights/BACKBONE.safetensors.

    Raises `UsageError` for a backbone or a data set of which the thesis has no numbers.
    """
    if backbone not in WEIGHT_DECAY:
        raise unknown("backbone", backbone, WEIGHT_DECAY)
    if dataset not in CLASSES:
        raise unknown("data set", dataset, CLASSES)
    return Config(
        data=DataConfig(
            dataset=dataset,
            batch_size=64,
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
            backbone=backbone,
            head=head,
            maps=CLASSES[dataset] if head == "identity" else None,
            weights=weights or f"weights/{backbone}.safetensors",
        ),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.0),
        optim=OptimConfig(
            name="sgd",
            lr=0.01,
            momentum=0.9,
            nesterov=False,
            weight_decay=WEIGHT_DECAY[backbone],
            decay="all",
            schedule="multistep",
            milestones=(30,),
            gamma=0.1,
        ),
        run=RunConfig(epochs=40),
    )
