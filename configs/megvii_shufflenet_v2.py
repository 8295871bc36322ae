"""ShuffleNetV2 on ImageNet-1K as its authors' PyTorch code trains it: 300,000 steps of SGD at batch 1024.

Run:      jaxclf train configs/megvii_shufflenet_v2.py --workdir runs/megvii_shufflenet_v2
          (another width: --model.backbone shufflenet_v2_x1_0; x2.0 also wants --model.dropout 0.2)
Data:     jaxclf data prepare imagenet2012 --downloads DIR, with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
          fetched by hand from image-net.org, in DIR.
Hardware: GPUs or TPU cores; not run by us, time not measured.
Expect:   its README's top-1 errors: x0.5 38.9 %, x1.0 30.6, x1.5 27.4, x2.0 25.0. (torchvision's x0.5 weights, the
          thesis's 60.55 %, are others, by ericsun99.)
Source:   megvii-model/ShuffleNet-Series@aa91feb, ShuffleNetV2/train.py, utils.py, network.py and README.md.

Weight decay is on arrays with more than one axis; the learned matrix has no bias. Images are 0 to 255 and not
normalised: mean 0 and deviation 1/255. They are BGR there and RGB here, which for a net that starts at random is the
same problem. After the last step BatchNorm's statistics are averaged over 1,250 training batches. 240 epochs are
300,480 steps here, since a run is whole epochs. The rate falls at every step; there the scheduler moves before the
update, so its rates are those of one step later, from .5 (1 - 1/300,000) to 0.

Training images are RandomResizedCrop 224 with torchvision's ranges (area .08 to 1, ratio 3/4 to 4/3), ColorJitter .4 of
brightness, contrast and saturation, and the mirror. Here the mirror comes before the colours, which makes no
difference to a pixel: for the same draws they are torchvision's on PIL exactly.

Not expressible yet: OpenCV's bilinear resize of the short side to 256 in testing, which does not smooth; here it is
PIL's, which does, before the same CenterCrop 224. (data.pixels "fast" is near OpenCV's for short sides below 512, but
changes the training images too.) BGR, for weights of theirs. The initialisation (first conv N(0, .01), others
N(0, 1 / channels in), BatchNorm's bias 1e-4, matrix N(0, .01)).
"""

from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig


def get_config(*, backbone: str = "shufflenet_v2_x0_5", head: str = "learned") -> Config:
    """Return the recipe of a ShuffleNetV2; identity rebuilds the last conv to one channel a class."""
    rebuilt = head == "identity"
    return Config(
        data=DataConfig(
            dataset="imagenet2012",
            batch_size=1024,
            image_size=224,
            resize=256,
            interpolation="bilinear",
            mean=(0.0, 0.0, 0.0),
            std=(1 / 255,) * 3,
        ),
        augment=AugmentConfig(
            crop="random_resized",
            crop_scale=(0.08, 1.0),
            crop_ratio=(3 / 4, 4 / 3),
            pad=0,
            flip=True,
            jitter=(0.4, 0.4, 0.4, 0.0),
            lighting=0.0,
        ),
        model=ModelConfig(
            backbone=backbone,
            head=head,
            bias=False,
            maps=1000 if rebuilt else None,
            dropout=0.2 if backbone == "shufflenet_v2_x2_0" and not rebuilt else None,
        ),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.1),
        optim=OptimConfig(
            name="sgd",
            lr=0.5,
            momentum=0.9,
            nesterov=False,
            weight_decay=4e-5,
            decay="weights",
            schedule="linear",
            schedule_every="step",
        ),
        run=RunConfig(epochs=240, recalibrate=1250),
    )
