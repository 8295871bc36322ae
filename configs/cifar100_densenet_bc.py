"""DenseNet-BC(100, 12) on CIFAR-100: the thesis's recipe (table 4.1), 300 epochs of SGD at batch 64.

Run:      jaxclf train configs/cifar100_densenet_bc.py --workdir runs/cifar100_densenet_bc [--model.head identity]
Data:     jaxclf data prepare cifar100
Hardware: one GPU or TPU core; not run by us yet, so no time is given.
Expect:   the thesis prints 77.61 % top-1 (learned), 76.68 (orthogonal), 75.84 (hadamard), 76.90 (identity).

Open in the thesis and chosen here as in configs/cifar100_resnet32.py; no dropout (bearpaw's default). The identity
head takes the first 100 of the 342 features.
"""

from configs.cifar100_resnet32 import BEARPAW_MEAN, BEARPAW_STD
from jaxclf.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig


def get_config(head: str = "learned") -> Config:
    """Return the recipe."""
    return Config(
        data=DataConfig(dataset="cifar100", batch_size=64, pad=4, flip=True, mean=BEARPAW_MEAN, std=BEARPAW_STD),
        model=ModelConfig(backbone="densenet_bc_100_12", head=head),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="multistep", milestones=(150, 225)),
        run=RunConfig(epochs=300),
    )
