"""GoogLeNet on ImageNet-1K as its paper trains it, or in a quarter of the epochs as Caffe's replication does.

Run:      jaxclf train configs/googlenet.py --workdir runs/googlenet
          (Caffe's: get_config(form="quick"); with BatchNorm: --model.backbone googlenet)
Data:     jaxclf data prepare imagenet2012 --downloads DIR, with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
          fetched by hand from image-net.org, in DIR.
Hardware: CPUs there (DistBelief), one GPU (Caffe); not run by us, time not measured.
Expect:   the paper prints 10.07 % top-5 error for one network and one crop, and no top-1; Caffe's readme 68.7 % top-1
          and 88.9 % top-5 for "quick". torchvision's weights are TensorFlow's, of yet another recipe.
Source:   Szegedy et al. 2014, arXiv:1409.4842, sections 5 to 7; BVLC/caffe, models/bvlc_googlenet: readme.md,
          solver.prototxt, quick_solver.prototxt, train_val.prototxt.

The paper gives momentum .9, a rate that falls by 4 % every 8 epochs, Polyak averaging, auxiliary losses of weight .3,
dropout .4 before the matrix and .7 in the auxiliary classifiers (all three the backbone's own), images less their mean,
and crops of area .08 to 1 and ratio 3/4 to 4/3. It leaves out the first rate, batch, epochs, weight decay,
initialisation, and over what it averages. Caffe's solver has the same staircase with .01, batch 32, 10 million steps
(250 epochs) and decay 2e-4, but not on biases: these stand here, as do Caffe's means. The average's decay, .9999 at
each step and low at first, is TensorFlow's habit and our choice.

The axis `form`: "paper" as above. "quick" is Caffe's quick_solver: .01 times the root of the share of the steps to go,
60 epochs, no average; squeezed images of 256x256, a random crop of 224 and the mirror. Here the short side becomes 256,
and the middle 224x224 are shifted by up to 16 pixels each way, with reflected borders: the ends of a long side are not
seen.

Not expressible: the paper's photometric distortions (after Howard 2013, without ranges; augment.jitter is off) and its
random choice of interpolation; asynchronous steps; a Polyak average with equal weights; Caffe's double rate of biases,
its Glorot-uniform convs and biases that start at .2.
"""

import dataclasses
from typing import Literal

from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig

SGD = OptimConfig(name="sgd", lr=0.01, momentum=0.9, nesterov=False, weight_decay=2e-4, decay="weights")
# form: (optimiser, epochs, images)
FORMS = {
    "paper": (
        dataclasses.replace(
            SGD, schedule="step", step_size=8, gamma=0.96, schedule_every="epoch", ema=0.9999, ema_warmup=True
        ),
        250,
        AugmentConfig(crop="random_resized", crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), pad=0, flip=True),
    ),
    "quick": (
        dataclasses.replace(SGD, schedule="polynomial", power=0.5, schedule_every="step"),
        60,
        AugmentConfig(crop="none", pad=16, pad_mode="reflect", flip=True),
    ),
}


def get_config(
    *, backbone: str = "googlenet_paper", head: str = "learned", form: Literal["paper", "quick"] = "paper"
) -> Config:
    """Return the paper's recipe or Caffe's quick one, for any GoogLeNet."""
    optim, epochs, augment = FORMS[form]
    return Config(
        data=DataConfig(
            dataset="imagenet2012",
            batch_size=32,
            image_size=224,
            resize=256,
            interpolation="bilinear",
            mean=(123 / 255, 117 / 255, 104 / 255),
            std=(1 / 255,) * 3,  # pixels of 0 to 255 less their mean
        ),
        augment=augment,
        model=ModelConfig(backbone=backbone, head=head, maps=1000 if head == "identity" else None),
        loss=LossConfig(name="cross_entropy", label_smoothing=0.0),
        optim=optim,
        run=RunConfig(epochs=epochs),
    )
