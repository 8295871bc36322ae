"""ResNet-32 on CIFAR-100: the thesis's recipe (table 4.1), 164 epochs of SGD at batch 128.

Run:      jaxclf train configs/cifar100_resnet32.py --workdir runs/cifar100_resnet32 [--model.head orthogonal]
Data:     jaxclf data prepare cifar100
Hardware: one GPU or TPU core; not run by us yet, so no time is given.
Expect:   the thesis prints 69.46 % top-1 (learned), 70.23 % with 100 channels, 69.98 % identity.

What the thesis leaves open, and what stands here:
- normalisation: bearpaw/pytorch-classification's constants, which the thesis builds on. They are CIFAR-10's mean and a
  standard deviation that is too small; that is what its numbers were made with.
- weight decay: on everything, as there (SGD over model.parameters()); shortcut: A; initialisation: uniform He.
"""

from jaxclf.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig

BEARPAW_MEAN = (0.4914, 0.4822, 0.4465)
BEARPAW_STD = (0.2023, 0.1994, 0.2010)


def get_config(
    head: str = "learned", classes: int | None = None, maps: int | None = None, maps_shortcut: str | None = None
) -> Config:
    """Return the recipe; `classes` keeps the first N classes, `maps` rebuilds the last block to that many channels."""
    return Config(
        data=DataConfig(
            dataset="cifar100", classes=classes, batch_size=128, pad=4, flip=True, mean=BEARPAW_MEAN, std=BEARPAW_STD
        ),
        model=ModelConfig(backbone="resnet32", head=head, maps=maps, maps_shortcut=maps_shortcut),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="multistep", milestones=(81, 122)),
        run=RunConfig(epochs=164),
    )
