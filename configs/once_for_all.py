"""Once-for-all's MobileNetV3 on ImageNet by progressive shrinking: six phases, each from the weights of the last.

Run:      jaxclf train configs/once_for_all.py --workdir runs/ofa/full
          then the phases kernel, depth_1, depth_2, width_1 and width_2, an axis of get_config: a file kernel.py with
          get_config = functools.partial(configs.once_for_all.get_config, "kernel"), and
          jaxclf train kernel.py --workdir runs/ofa/kernel --model.weights runs/ofa/full
          ... and at the end jaxclf search runs/ofa/width_2 --macs 230000000
Data:     jaxclf data prepare imagenet2012 --downloads DIR, with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
          fetched by hand from image-net.org, in DIR.
Hardware: the paper took 1,200 hours of V100 GPUs; not run here.
Source:   Cai et al. 2020, arXiv 1908.09791, section 4.1, and mit-han-lab/once-for-all at f03b267, train_ofa_net.py,
          whose rates are for 64 images a GPU, here times 32 for batches of 2,048; those of the full network are the
          paper's. 1 % of the training images is held out for the search, about the source's 10,000.

What differs: each step trains the largest and the smallest network beside the random ones (the sandwich rule), and the
largest one of the moment teaches, instead of a frozen copy. Colours are jittered as
torchvision does. Images are cropped to 224 and resized to the drawn size, where the source crops to it.
"""

import dataclasses

from jaxclf.config import (
    AugmentConfig,
    Config,
    DataConfig,
    ElasticConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)
from jaxclf.errors import unknown

PHASES: dict[str, tuple[float, int, int, ElasticConfig]] = {
    "full": (2.6, 180, 0, ElasticConfig()),
    "kernel": (0.96, 125, 5, ElasticConfig(kernels=(0, 0), random=1)),
    "depth_1": (0.08, 25, 0, ElasticConfig(kernels=(0, 0), depths=(0,), random=2)),
    "depth_2": (0.24, 125, 5, ElasticConfig(kernels=(0, 0), depths=(0, 0), random=2)),
    "width_1": (0.08, 25, 0, ElasticConfig(kernels=(0, 0), depths=(0, 0), expansions=(0,), random=4)),
    "width_2": (0.24, 125, 5, ElasticConfig(kernels=(0, 0), depths=(0, 0), expansions=(0, 0), random=4)),
}
"""Learning rate, epochs and of them warm-up, smaller settings."""
SIZES = tuple(range(128, 225, 4))


def get_config(phase: str = "full", *, backbone: str = "ofa_mbv3_w1_0", head: str = "learned") -> Config:
    """Return the recipe of a phase; identity ends the backbone in one map a class. Other phases raise `UsageError`."""
    if phase not in PHASES:
        raise unknown("phase", phase, PHASES)
    rate, epochs, warmup, elastic = PHASES[phase]
    return Config(
        data=DataConfig(dataset="imagenet2012", batch_size=2048, image_size=224, validation=0.01, drop_last=True),
        augment=AugmentConfig(crop="random_resized", pad=0, jitter=(32 / 255, 0.0, 0.5, 0.0)),
        model=ModelConfig(backbone=backbone, head=head, maps=1000 if head == "identity" else None),
        loss=LossConfig(label_smoothing=0.1),
        elastic=dataclasses.replace(elastic, sizes=SIZES),
        optim=OptimConfig(
            lr=rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=3e-5,
            decay="weights",
            schedule="cosine",
            schedule_every="step",
            warmup=warmup,
            warmup_start=1 / 32 if warmup else 0.0,
        ),
        run=RunConfig(epochs=epochs, recalibrate=50),
    )
