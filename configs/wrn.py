"""Wide ResNets on CIFAR-10 and -100 as their authors train them, or as xternalz's PyTorch code does.

Run:      jaxclf train configs/wrn.py --workdir runs/wrn [--model.backbone wrn40_2 --model.dropout 0]
          (CIFAR-100 and xternalz's form: axes of get_config)
Data:     jaxclf data prepare cifar10 (or cifar100)
Hardware: one GPU or TPU core ("about a day" on a Titan X there for WRN-28-10); not run by us, time not measured.
Expect:   their README's median errors of five runs, CIFAR-10 / CIFAR-100: WRN-28-10 with dropout 3.89 / 18.85 %,
          without 4.00 / 19.25. None for WRN-40-2; xternalz prints none.
Source:   Zagoruyko and Komodakis 2016, arXiv:1605.07146; szagoruyko/wide-residual-networks: train.lua,
          scripts/train_cifar.sh, pytorch/main.py, README.md; xternalz/WideResNet-pytorch@1171f93, train.py.

The axis `form`: "authors" drops the rate to a fifth at 60, 120 and 160 of 200 epochs. Its code counts epochs from 1 and
drops before it trains, so 59, 119 and 159 are the first (from 0) at a lower rate. It leaves out the last 80 images of
an epoch, and has dropout .3 inside the blocks of WRN-28-10 (under identity, which rebuilds the last block, none).
"xternalz": a cosine over all steps, and no dropout. In both, decay 5e-4 on everything, Nesterov momentum, 4 reflected
pixels around the crop, and one normalisation for both sets: CIFAR-10's constants, as in both PyTorch codes. bearpaw's
line, with zeros, without Nesterov and with other constants, is in configs/bearpaw_cifar.py.

Not expressible: the authors' mirror of exactly half of each batch; convs from a normal of variance 2 / (k k out), which
are uniform here, of variance 2 / fan in.
"""

import dataclasses
from typing import Literal

from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.errors import unknown

CLASSES = {"cifar10": 10, "cifar100": 100}
DROPOUT = {"wrn28_10": 0.3}
"""The authors' rate inside the blocks."""
SGD = OptimConfig(name="sgd", lr=0.1, momentum=0.9, dampening=0.0, nesterov=True, weight_decay=5e-4, decay="all")
FORMS = {
    "authors": dataclasses.replace(SGD, schedule="multistep", milestones=(59, 119, 159), gamma=0.2),
    "xternalz": dataclasses.replace(SGD, schedule="cosine", schedule_every="step"),
}


def get_config(
    *,
    backbone: str = "wrn28_10",
    dataset: str = "cifar10",
    head: str = "learned",
    form: Literal["authors", "xternalz"] = "authors",
) -> Config:
    """Return the recipe of a wide ResNet; data sets other than CIFAR raise `UsageError`."""
    if dataset not in CLASSES:
        raise unknown("data set", dataset, CLASSES)
    rebuilt = head == "identity"
    return Config(
        data=DataConfig(
            dataset=dataset,
            batch_size=128,
            drop_last=form == "authors",
            mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
            std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
        ),
        augment=AugmentConfig(pad=4, pad_mode="reflect", flip=True),
        model=ModelConfig(
            backbone=backbone,
            head=head,
            maps=CLASSES[dataset] if rebuilt else None,
            dropout=DROPOUT.get(backbone) if form == "authors" and not rebuilt else None,
        ),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.0),
        optim=FORMS[form],
        run=RunConfig(epochs=200),
    )
