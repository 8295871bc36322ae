"""HarDNet's recipe on ImageNet-1K, by its authors: Nesterov momentum and a cosine, 150 epochs at batch 256.

Run:      jaxclf train configs/pingolh_hardnet.py --workdir runs/pingolh_hardnet [--model.backbone hardnet39ds]
Data:     jaxclf data prepare imagenet2012 --downloads DIR, with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
          fetched by hand from image-net.org, in DIR.
Hardware: GPUs or TPU cores; not run by us, time not measured.
Expect:   its README's top-1: HarDNet39DS 72.1 %, HarDNet68DS 74.3, HarDNet68 76.5, HarDNet85 78.0; "epochs 150 ~ 250",
          without saying which net took how many (--run.epochs 250). None for other backbones.
Source:   PingoLH/Pytorch-HarDNet@de9662f, main.py (defaults) and README.md.

The four HarDNets differ in nothing but `backbone`; dropout is the backbone's own. Weight decay is on everything; no
label smoothing. Images are RandomResizedCrop 224 (area .08 to 1, ratio 3/4 to 4/3) and mirror in training, Resize 256
and CenterCrop 224 in testing, all bilinear, pixel for pixel as torchvision on PIL makes them.

Not expressible: conv weights from a normal as Glorot's (here uniform, of variance 2 / fan in). Without
--multiprocessing-distributed its DataParallel gives each GPU's BatchNorm a part of the batch: --run.parallel pmap.
"""

from configs.imagenet_resnet18 import IMAGENET_MEAN, IMAGENET_STD
from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig


def get_config(*, backbone: str = "hardnet68", head: str = "learned") -> Config:
    """Return the recipe for any ImageNet backbone; identity rebuilds the last conv to one channel a class."""
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
        optim=OptimConfig(
            name="sgd",
            lr=0.05,
            momentum=0.9,
            nesterov=True,
            weight_decay=6e-5,
            decay="all",
            schedule="cosine",
            schedule_every="epoch",
        ),
        run=RunConfig(epochs=150),
    )
