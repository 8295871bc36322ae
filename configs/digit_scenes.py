"""ResNet-8 on scenes of digits: where in the image is what it recognises? Without a download.

Run:      jaxclf train configs/digit_scenes.py --workdir runs/digit_scenes
Data:     ships with the package.
Hardware: any; one CPU core is enough.
Source:   ours, no published result.

The identity head ends the backbone in one map per class (`maps`), through a learned shortcut (B).
"""

from jaxclf.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, RunConfig


def get_config(head: str = "learned", seed: int = 0) -> Config:
    """Return the recipe with the head `head`."""
    rebuilt = {"maps": 10, "maps_shortcut": "B"} if head == "identity" else {}
    return Config(
        data=DataConfig(dataset="digit_scenes", batch_size=64, drop_last=True),
        augment=AugmentConfig(pad=0, flip=False),
        model=ModelConfig(backbone="resnet8", head=head, **rebuilt),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine", schedule_every="step"),
        run=RunConfig(epochs=6, seed=seed, eval_every=2, checkpoint_every=None),
    )
