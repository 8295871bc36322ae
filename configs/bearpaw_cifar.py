"""CIFAR-10 and -100 as bearpaw/pytorch-classification trains them: the code that the thesis's CIFAR runs lean on.

Run:      jaxclf train configs/bearpaw_cifar.py --workdir runs/bearpaw_cifar [--data.dataset cifar100]
          (a DenseNet's or the WRN's line: an axis of get_config)
Data:     jaxclf data prepare cifar10 (or cifar100)
Hardware: one GPU or TPU core; not run by us, time not measured.
Expect:   its README's errors, CIFAR-10 / CIFAR-100: DenseNet-BC(100, 12) 4.54 / 22.88 %, DenseNet-BC(190, 40)
          3.32 / 17.17, WRN-28-10 with dropout .3 3.79 / 18.14. Its ResNet-110's 6.11 / 28.86 % are of 1.70 M
          parameters in bottleneck blocks, which no CIFAR ResNet here has; for basic blocks it prints nothing.
Source:   bearpaw/pytorch-classification@24f1c45, TRAINING.md, cifar.py, models/cifar/resnet.py and README.md.

Both sets are normalised by the same constants, CIFAR-10's mean and a standard deviation that is too small. Weight decay
is on everything. The ResNets' downsampling blocks have shortcut B (a learned 1x1 conv), not the thesis's A. TRAINING.md
has no line for DenseNet-BC(190, 40) nor for any DenseNet on CIFAR-100: the one of DenseNet-BC(100, 12) stands for them.

The WRN's dropout is inside its blocks, under identity there is none; its authors' own recipe is configs/wrn.py.

Not expressible: convs are drawn from a normal of variance 2 / (k k out) there, from a uniform one of 2 / fan in here.
"""

import dataclasses

from configs.cifar100_resnet32 import BEARPAW_MEAN, BEARPAW_STD
from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.errors import unknown

SGD = OptimConfig(
    name="sgd", lr=0.1, momentum=0.9, dampening=0.0, nesterov=False, decay="all", schedule="multistep", gamma=0.1
)
# how the backbone's name begins: (optimiser, batch size, epochs, dropout inside the blocks)
LINES = {
    "resnet": (dataclasses.replace(SGD, weight_decay=1e-4, milestones=(81, 122)), 128, 164, None),
    "densenet": (dataclasses.replace(SGD, weight_decay=1e-4, milestones=(150, 225)), 64, 300, None),
    "wrn": (dataclasses.replace(SGD, weight_decay=5e-4, milestones=(60, 120, 160), gamma=0.2), 128, 200, 0.3),
}


def get_config(*, backbone: str = "resnet32", dataset: str = "cifar10", head: str = "learned") -> Config:
    """Return the line of TRAINING.md for a CIFAR ResNet, DenseNet or WRN; `UsageError` for others."""
    kind = next((kind for kind in LINES if backbone.startswith(kind)), None)
    if kind is None:
        raise unknown("family", backbone, LINES)
    optim, batch_size, epochs, dropout = LINES[kind]
    return Config(
        data=DataConfig(dataset=dataset, batch_size=batch_size, mean=BEARPAW_MEAN, std=BEARPAW_STD),
        augment=AugmentConfig(pad=4, pad_mode="zero", flip=True),
        model=ModelConfig(
            backbone=backbone,
            head=head,
            shortcut="B" if kind == "resnet" else None,
            dropout=None if head == "identity" else dropout,
        ),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.0),
        optim=optim,
        run=RunConfig(epochs=epochs),
    )
