"""MobileNetV1 on ImageNet-1K as wjc852456's PyTorch code trains it, or as TensorFlow-Slim's script does.

Run:      jaxclf train configs/mobilenet_v1.py --workdir runs/mobilenet_v1   (slim's: get_config(form="slim"))
Data:     jaxclf data prepare imagenet2012 --downloads DIR, with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
          fetched by hand from image-net.org, in DIR.
Hardware: GPUs or TPU cores; not run by us, time not measured.
Expect:   wjc852456's README 68.848 % top-1 (its RMSProp from the start: 0.1). Slim's page 70.9 for its checkpoint,
          without saying that this script made it; the paper 70.6.
Source:   wjc852456/pytorch-mobilenet-v1@8b3bde3, main.py (defaults) and README.md; tensorflow/models research/slim:
          nets/mobilenet_v1_train.py, nets/mobilenet_v1.py, nets/mobilenet_v1.md; Howard et al. 2017,
          arXiv:1704.04861, section 3.2.

The axis `form`: "wjc", a ResNet's recipe at batch 64, decay on everything, torchvision's crops, ReLU. "slim": SGD
without momentum, .045 times .94 every 2.5 epochs, decay on kernels but not on depthwise ones, dropout .001, ReLU6 (the
backbone mobilenet_v1_timm), images as in configs/slim_mobilenet_v2.py, whose header says how they differ. Its script
sets no end: 100 epochs are our choice.

The paper itself has RMSProp with asynchronous steps as Inception v3, smaller distortions of images than that, no label
smoothing and "very little or no" decay on depthwise kernels; it gives no rate, batch or length.

Not expressible: slim's BatchNorm (decay .9997, eps .001; here .9 and 1e-5) and its convs from a truncated normal of
deviation .09; its asynchronous steps.
"""

import dataclasses
from typing import Literal

from configs import slim_mobilenet_v2, torchvision_imagenet
from jaxclf.config import Config, LossConfig, ModelConfig, OptimConfig, RunConfig

BATCH = 64
SGD = OptimConfig(name="sgd", nesterov=False, schedule="step")
WJC = dataclasses.replace(
    SGD, lr=0.1, momentum=0.9, weight_decay=1e-4, decay="all", step_size=30, gamma=0.1, schedule_every="epoch"
)
SLIM = dataclasses.replace(
    SGD,
    lr=0.045,
    momentum=0.0,
    weight_decay=4e-5,
    decay="not_depthwise",
    step_size=2.5,
    gamma=0.94,
    schedule_every="step",  # half epochs are no whole ones
)
# form: (backbone, dropout, optimiser, epochs, recipe with the same images)
FORMS = {
    "wjc": ("mobilenet_v1", None, WJC, 90, torchvision_imagenet.get_config()),
    "slim": ("mobilenet_v1_timm", 0.001, SLIM, 100, slim_mobilenet_v2.get_config()),
}


def get_config(*, head: str = "learned", form: Literal["wjc", "slim"] = "wjc") -> Config:
    """Return one of the two recipes; identity rebuilds the last conv and drops nothing."""
    backbone, dropout, optim, epochs, images = FORMS[form]
    rebuilt = head == "identity"
    return Config(
        data=dataclasses.replace(images.data, batch_size=BATCH),
        augment=images.augment,
        model=ModelConfig(
            backbone=backbone, head=head, maps=1000 if rebuilt else None, dropout=None if rebuilt else dropout
        ),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.0),
        optim=optim,
        run=RunConfig(epochs=epochs),
    )
