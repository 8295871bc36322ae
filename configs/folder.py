"""Your own images, in folders: an ImageNet network from scratch, or fine-tuned from ImageNet weights.

Run:      jaxclf train configs/folder.py --workdir runs/own --data.dataset folder:/path/to/images
          (fine-tuned: --model.weights weights/resnet18.safetensors --optim.lr 0.01 --run.epochs 40, the file as in
          configs/transfer.py; another net: --model.backbone resnet50; other images: --data.image-size 320)
Data:     /path/to/images/train/CLASS/*.jpg and /path/to/images/val/CLASS/*.jpg, a directory for every class, as
          torchvision's ImageFolder reads them; where there is a directory test, it is taken instead of val. Nothing has
          to be prepared; `jaxclf data info folder:/path/to/images` counts the images, `jaxclf data verify
          folder:/path/to/images` names the broken ones.
Hardware: one GPU or TPU core; not run by us beyond a test of 44 tiny images, time not measured.
Source:   ours, of others' numbers; no published result. From scratch: pytorch/vision references/classification, SGD
          at .1 for a batch of 256, hence .025 for 64, and 90 epochs. Fine-tuned: the thesis's .01 and 40 epochs at
          batch 64 (configs/transfer.py). The rate follows a cosine to 0, so --run.epochs alone changes a run's length.

Without a classifier layer: --model.head identity --model.maps K, where K is the number of classes: the network ends in
one map per class. ResNet-18 and -34 take the first K of their 512 features without --model.maps.

Training images are RandomResizedCrop and mirror, test images Resize to 8/7 of image_size (256 for 224) and CenterCrop:
torchvision's on PIL, pixel for pixel. They are normalised by torchvision's ImageNet constants, which its weights want.
The images of val are evaluated after every epoch and again at the end; --data.validation 0.1 holds a tenth of the
training images out for the former. --data.on-error skip goes on past broken files and names them.
"""

from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig


def get_config(
    path: str = "images",
    *,
    backbone: str = "resnet18",
    head: str = "learned",
    maps: int | None = None,
    weights: str | None = None,
    image_size: int = 224,
    epochs: int | None = None,
) -> Config:
    """Return the recipe for the images in `path`; with `weights`, a file to start from, fine-tuning's rate and length.

    `maps` ends the backbone in that many feature maps: the number of classes, for the head identity.
    """
    return Config(
        data=DataConfig(dataset=f"folder:{path}", batch_size=64, eval_batch_size=128, image_size=image_size),
        augment=AugmentConfig(
            crop="random_resized", crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), pad=0, flip=True
        ),
        model=ModelConfig(backbone=backbone, head=head, maps=maps, weights=weights),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.0),
        optim=OptimConfig(
            name="sgd",
            lr=0.01 if weights else 0.025,
            momentum=0.9,
            nesterov=False,
            weight_decay=1e-4,
            decay="all",
            schedule="cosine",
            schedule_every="step",
        ),
        run=RunConfig(epochs=epochs or (40 if weights else 90)),
    )
