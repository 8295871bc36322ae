"""MobileNetV2 on ImageNet-1K: the thesis's recipe (tables 4.1 to 4.3), 100 epochs of RMSProp at batch 256.

Run:      jaxclf train configs/imagenet_mobilenet_v2.py --workdir runs/imagenet_mobilenet_v2
          (identity: --model.head identity --model.maps 1000)
Data:     jaxclf data prepare imagenet2012 --downloads DIR, with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
          fetched by hand from image-net.org, in DIR.
Hardware: GPUs or TPU cores; not run by us, time not measured.
Expect:   the thesis prints (table 5.3) 71.88 % top-1 learned (torchvision's published weights, which were trained as in
          configs/torchvision_imagenet.py) and 71.03 identity.
Source:   Z. Qian, RIT 2020, tables 4.1 to 4.3; RMSProp's open constants from pytorch/vision,
          references/classification/train.py.

What the thesis leaves open, and what stands here:
- the form of RMSProp, the axis `form`. "torchvision", the default: PyTorch's (squares start at 0, eps outside the
  root, the rate applied after the buffer) with alpha .9 and eps .0316 = sqrt(.001). The thesis trained in PyTorch, and
  these are PyTorch's own constants for this kind of network, whose rate for MobileNetV3 (.064 at batch 1024) is .016 at
  batch 256, near the thesis's .02. "torch": torch.optim's defaults, alpha .99 and eps 1e-8; a gradient of any size then
  makes a step of about the rate, and .02 with momentum .9 is implausibly large. "tensorflow": TensorFlow 1's (squares
  start at 1, eps 1 inside the root, the rate in the buffer), as configs/slim_mobilenet_v2.py. For a gradient of
  standard deviation .001 the three steps are as .03, 1 and .001: the choice matters more than the rate.
- weight decay: on everything, as every optimiser over model.parameters() has it; slim spares BatchNorm,
  biases and depthwise kernels.
- label smoothing, averaging of parameters: none, as in torchvision; slim has both.
- dropout before the learned matrix: the backbone's own, .2; identity has none (thesis, rebuilt last conv).
- normalisation: torchvision's ImageNet constants.
- images: RandomResizedCrop 224, Resize 256 and CenterCrop 224, as in configs/imagenet_resnet18.py and, pixel for pixel,
  in torchvision; slim's crop and colours are in configs/slim_mobilenet_v2.py.
"""

import dataclasses
from typing import Literal

from configs.imagenet_resnet18 import IMAGENET_MEAN, IMAGENET_STD
from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig

FORMS = {
    "torchvision": OptimConfig(name="rmsprop", alpha=0.9, eps=0.0316, accumulator=0.0),
    "torch": OptimConfig(name="rmsprop", alpha=0.99, eps=1e-8, accumulator=0.0),
    "tensorflow": OptimConfig(name="rmsprop_tf", alpha=0.9, eps=1.0, accumulator=1.0),
}


def get_config(
    head: str = "learned",
    classes: int | None = None,
    form: Literal["torchvision", "torch", "tensorflow"] = "torchvision",
) -> Config:
    """Return the recipe; `form` chooses among three optimisers that are all called RMSProp."""
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
        model=ModelConfig(backbone="mobilenet_v2", head=head, maps=(classes or 1000) if head == "identity" else None),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.0),
        optim=dataclasses.replace(
            FORMS[form],
            lr=0.02,
            momentum=0.9,
            weight_decay=4e-5,
            decay="all",
            schedule="exponential",
            schedule_every="epoch",
            gamma=0.98,
        ),
        run=RunConfig(epochs=100),
    )
