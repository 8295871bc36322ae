"""Fine-tuning by BiT's HyperRule: rate, length, mixup and resolution follow from the data set alone.

Run:      jaxclf train configs/bit_finetune.py --workdir runs/bit_finetune
          (another data set or backbone has another length, mixup, size or file: axes of get_config)
Data:     weights/BiT-M-R50x1.npz, from https://storage.googleapis.com/bit_models/BiT-M-R50x1.npz; and
          jaxclf data prepare cifar10 (or cifar100, oxford_flowers102; cars196 as configs/transfer.py says, imagenet2012
          as configs/imagenet_resnet18.py says)
Hardware: eight V100 or TPU cores there, where R50x1 at 480 pixels wanted its batch split in four (--optim.accumulate
          4); not run by us, time not measured.
Expect:   its README's top-1 of BiT-M by its PyTorch code. CIFAR-10 / CIFAR-100, at batch 128 and rate .001 in place of
          512 and .003: R50x1 97.4 / 86.6 %, R101x3 98.6 / 91.2, R152x2 98.5 / 91.3. ImageNet: R50x1 80.68, R152x2
          85.15.
Source:   google-research/big_transfer@140de6e, bit_hyperrule.py, bit_pytorch/train.py and README.md; Kolesnikov et al.,
          arXiv:1912.11370.

SGD at .003, momentum .9, no weight decay, batch 512. By number of training images, below 20,000, below 500,000, above:
500, 10,000, 20,000 steps with a warm-up of 100, 500, 500 and a tenth after each of three drops; mixup .1 from 20,000
images on. A run is whole epochs, the nearest number of them; steps past the rule's end have rate 0.

Images whose area is below 96x96 are squeezed there to 160x160 and cropped to 128 at random, others to 512x512 and 480,
and in testing squeezed to the crop's side. Here training images have the crop's side at once and are shifted by as much
as there, 16 pixels each way, with reflected borders. CIFAR's test images are torchvision's exactly, the training images
20 % smaller than BiT's. Of the others the short side is resized to 480 and the middle square kept: they are not
squeezed, the ends of the long side are not seen, and the training images' short side is 6 % smaller than BiT's.

The BiT networks have GroupNorm, so that neither the batch's parts nor devices matter. `backbone` may be any other, too;
its weights are expected in weights/BACKBONE.safetensors (jaxclf convert makes one).

Not expressible: a head that starts at zero, as there. The squeeze, and the crop from a larger image: augment.crop is no
way to them, since its boxes have a ratio of their own, not the image's.
"""

from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.errors import unknown

BATCH = 512
# training images, classes, height and width (of sets whose images differ, 224x224 as in bit_hyperrule.py)
SETS = {
    "cifar10": (50_000, 10, (32, 32)),
    "cifar100": (50_000, 100, (32, 32)),
    "cars196": (8_144, 196, (224, 224)),
    "oxford_flowers102": (1_020, 102, (224, 224)),
    "imagenet2012": (1_281_167, 1000, (224, 224)),
}


def get_config(
    *, dataset: str = "cifar10", backbone: str = "bit_r50x1", head: str = "learned", weights: str | None = None
) -> Config:
    """Return the rule for a data set; `weights` is the file to start from, None is that of the header.

    Raises `UsageError` for a data set whose size is not in the table.
    """
    if dataset not in SETS:
        raise unknown("data set", dataset, SETS)
    examples, classes, (height, width) = SETS[dataset]
    small = height * width < 96 * 96
    steps = 500 if examples < 20_000 else 10_000 if examples < 500_000 else 20_000
    bit = backbone.removeprefix("bit_r")
    file = f"{backbone}.safetensors" if bit == backbone else f"BiT-M-R{bit}.npz"
    return Config(
        data=DataConfig(
            dataset=dataset,
            batch_size=BATCH,
            image_size=128 if small else 480,
            resize=None if small else 480,
            interpolation="bilinear",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        augment=AugmentConfig(
            crop="none", pad=16, pad_mode="reflect", flip=True, mixup=0.0 if examples < 20_000 else 0.1
        ),
        model=ModelConfig(
            backbone=backbone,
            head=head,
            maps=classes if head == "identity" else None,
            weights=weights or f"weights/{file}",
        ),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.0),
        optim=OptimConfig(
            name="sgd",
            lr=0.003,
            momentum=0.9,
            nesterov=False,
            weight_decay=0.0,
            decay="all",
            schedule="hyperrule",
            schedule_every="step",
        ),
        run=RunConfig(epochs=round(steps / -(-examples // BATCH))),
    )
