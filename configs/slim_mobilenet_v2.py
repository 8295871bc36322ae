"""MobileNetV2 on ImageNet-1K as TensorFlow-Slim's README trains it: RMSProp with eps 1, an average of parameters.

Run:      jaxclf train configs/slim_mobilenet_v2.py --workdir runs/slim_mobilenet_v2
Data:     jaxclf data prepare imagenet2012 --downloads DIR, with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
          fetched by hand from image-net.org, in DIR.
Hardware: eight GPUs there, about 700,000 steps; not run by us, time not measured.
Expect:   its README's 72.0 % top-1 (its released checkpoint has 71.8).
Source:   tensorflow/models research/slim: nets/mobilenet/README.md, nets/mobilenet/mobilenet.py,
          train_image_classifier.py (its flags' defaults: RMSProp's eps 1, decay .9, momentum .9),
          preprocessing/inception_preprocessing.py.

The README gives everything by GPU ("clone"): 96 images and a rate of .045 on each, and 2.5 / GPUs epochs between two
drops of the rate, which are 2.5 epochs of the data on any number. The default is its eight: batch 768, rate .36.
700,000 steps of 768 images are 420 epochs, 5.5 million of 96, its other figure, 412.

Weight decay is on the kernels of convs and on the matrix, but not on depthwise kernels, BatchNorm or biases; in
TensorFlow it is a term of the loss, which before RMSProp is the same as weight_decay here. The average's decay starts
low: min(.9999, (1 + n) / (10 + n)) at update n, as slim hands it the step; it includes BatchNorm's statistics.

Training images are boxes of area .05 to 1 and ratio .75 to 1.33 there, which must cover .1 of an object. Training hands
no objects over, so the object is the whole image, and a box below .1 of its area is drawn again: the area is .1 to 1
here. In testing the middle .875 of either side is squeezed to 224x224. Resize 256 + CenterCrop 224 is the same part of
a square image (224 / .875 = 256); of others it keeps the ratio and sees less of the long side.

Not expressible yet: how boxes are distributed (there ratio and height are uniform, here area and the ratio's
logarithm); TensorFlow's bilinear resize, which does not smooth, of floats that are never rounded to bytes; the fast
colour distortion (up to 32/255 added as brightness and HSV's saturation times .5 to 1.5, brightness first in one of
four cases; augment.jitter multiplies, blends with grey, and is off here); the squeeze in testing; BatchNorm's momentum
.003 (here .1); conv weights from a truncated normal of deviation .09; BatchNorm by replica.
"""

from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig

EPOCHS = 420


def get_config(*, gpus: int = 8, head: str = "learned") -> Config:
    """Return the recipe; `gpus` scales batch and rate together, as the README does."""
    rebuilt = head == "identity"
    return Config(
        data=DataConfig(
            dataset="imagenet2012",
            batch_size=96 * gpus,
            image_size=224,
            resize=256,  # 224 / .875
            interpolation="bilinear",
            mean=(0.5, 0.5, 0.5),  # inception: from -1 to 1
            std=(0.5, 0.5, 0.5),
        ),
        augment=AugmentConfig(
            crop="random_resized",
            crop_scale=(0.1, 1.0),  # area_range .05, min_object_covered .1 of the whole image
            crop_ratio=(0.75, 1.33),
            pad=0,
            flip=True,
        ),
        model=ModelConfig(
            backbone="mobilenet_v2", head=head, maps=1000 if rebuilt else None, dropout=None if rebuilt else 0.2
        ),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.1),
        optim=OptimConfig(
            name="rmsprop_tf",
            lr=0.045 * gpus,
            momentum=0.9,
            alpha=0.9,
            eps=1.0,
            accumulator=1.0,
            weight_decay=4e-5,
            decay="not_depthwise",
            ema=0.9999,
            ema_every=1,
            ema_warmup=True,
            schedule="step",
            schedule_every="step",  # half epochs are no whole ones
            step_size=2.5,
            gamma=0.98,
        ),
        run=RunConfig(epochs=EPOCHS),
    )
