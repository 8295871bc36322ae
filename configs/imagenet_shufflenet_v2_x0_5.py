"""ShuffleNetV2 x0.5 on ImageNet-1K: the thesis's recipe (tables 4.1 to 4.3), 240 epochs of SGD at batch 1024.

Run:      jaxclf train configs/imagenet_shufflenet_v2_x0_5.py --workdir runs/imagenet_shufflenet_v2_x0_5
          (identity: --model.head identity --model.maps 1000)
Data:     jaxclf data prepare imagenet2012 --downloads DIR, with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
          fetched by hand from image-net.org, in DIR.
Hardware: GPUs or TPU cores; not run by us, time not measured.
Expect:   the thesis prints (table 5.3) 60.55 % top-1 learned (torchvision's published weights) and 53.06 identity; on
          the first 100 classes 72.94 learned, 74.42 identity.
Source:   Z. Qian, RIT 2020, tables 4.1 to 4.3. Its numbers are megvii-model/ShuffleNet-Series@aa91feb's, which
          configs/megvii_shufflenet_v2.py follows to the letter.

What the thesis leaves open, and what stands here:
- when the rate falls: once an epoch, as the thesis's main.py steps every schedule; megvii's falls at every step.
- label smoothing, colour jitter, recalibration of BatchNorm: none, because the thesis names none; megvii has all three.
- weight decay: on everything, as in the thesis's other recipes; megvii spares BatchNorm and biases.
- normalisation: torchvision's ImageNet constants; megvii feeds BGR from 0 to 255.
- images: RandomResizedCrop 224, Resize 256 and CenterCrop 224, as in configs/imagenet_resnet18.py and, pixel for pixel,
  in torchvision; megvii resizes test images by OpenCV.
"""

from configs.imagenet_resnet18 import IMAGENET_MEAN, IMAGENET_STD
from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig


def get_config(head: str = "learned", classes: int | None = None) -> Config:
    """Return the recipe on the first `classes` classes; identity rebuilds the last conv to one channel a class."""
    return Config(
        data=DataConfig(
            dataset="imagenet2012",
            classes=classes,
            batch_size=1024,
            image_size=224,
            resize=256,
            interpolation="bilinear",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        augment=AugmentConfig(
            crop="random_resized",
            crop_scale=(0.08, 1.0),
            crop_ratio=(3 / 4, 4 / 3),
            pad=0,
            flip=True,
            jitter=(0.0, 0.0, 0.0, 0.0),
        ),
        model=ModelConfig(
            backbone="shufflenet_v2_x0_5", head=head, maps=(classes or 1000) if head == "identity" else None
        ),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.0),
        optim=OptimConfig(
            name="sgd",
            lr=0.5,
            momentum=0.9,
            nesterov=False,
            weight_decay=4e-5,
            decay="all",
            schedule="linear",
            schedule_every="epoch",
        ),
        run=RunConfig(epochs=240, recalibrate=0),
    )
