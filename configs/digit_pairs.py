"""ResNet-8 on pairs of digits: a hundred classes on 64 features, without a download.

Run:      jaxclf train configs/digit_pairs.py --workdir runs/digit_pairs
Data:     ships with the package.
Hardware: any; one CPU core is enough.
Source:   ours; the thesis's table 5.1 asks the same of ResNet-32 and CIFAR-100: what becomes of a head whose matrix has
          fewer distinct rows, or columns, than there are classes.

The identity head ends the backbone in one map per class (`maps`), through a learned shortcut (B).
"""

from jaxclf.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, RunConfig


def get_config(head: str = "learned", neck: int | None = None, seed: int = 0) -> Config:
    """Return the recipe with the head `head`; `neck` learns a matrix to so many features before a fixed one."""
    rebuilt = {"maps": 100, "maps_shortcut": "B"} if head == "identity" else {}
    return Config(
        data=DataConfig(dataset="digit_pairs", batch_size=100, drop_last=True),
        augment=AugmentConfig(pad=2, flip=False),
        model=ModelConfig(backbone="resnet8", head=head, head_neck=neck, **rebuilt),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="multistep", milestones=(6, 9)),
        run=RunConfig(epochs=10, seed=seed, eval_every=2, checkpoint_every=None),
    )
