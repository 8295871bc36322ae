"""The sections of a config: every field with its type, bounds, default and meaning, which stand nowhere else."""

import dataclasses
import math
from typing import Annotated, Any, Literal

from jaxclf.config.fields import Bound, Count, Natural, Positive, Probability, Share, Weight, at_least

Remat = Literal["none", "block", "stage"]
AreaRange = Annotated[
    tuple[float, float],
    Bound(
        lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= 1,
        "two shares of the area, above 0 to 1, the smaller first",
    ),
]
RatioRange = Annotated[
    tuple[float, float],
    Bound(
        lambda value: len(value) == 2 and 0 < value[0] <= value[1] < math.inf,
        "two ratios of width to height, above 0, the smaller first",
    ),
]
RandAugment = Annotated[
    tuple[int, int],
    Bound(
        lambda value: len(value) == 2 and value[0] >= 0 and 0 <= value[1] <= 30,
        "operations, at least 0, and a magnitude from 0 to 30",
    ),
]
Jitter = Annotated[
    tuple[float, float, float, float],
    Bound(
        lambda value: len(value) == 4 and min(value) >= 0 and value[3] <= 0.5,
        "brightness, contrast, saturation and hue, at least 0, hue at most 0.5",
    ),
]
Betas = Annotated[
    tuple[float, float],
    Bound(lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value), "two numbers from 0 to below 1"),
]
Milestones = Annotated[
    tuple[int, ...],
    Bound(
        lambda value: list(value) == sorted(set(value)) and min(value, default=1) > 0,
        "strictly increasing, from 1",
    ),
]
Starts = Annotated[
    tuple[int, ...],
    Bound(lambda value: list(value) == sorted(value) and min(value, default=0) >= 0, "epochs from 0, in order"),
]
Numbers = Annotated[tuple[int, ...], Bound(lambda value: min(value, default=1) > 0, "numbers from 1")]
Seed = Annotated[int, Bound(lambda value: 0 <= value < 2**32, "from 0 to 2**32 - 1")]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images and their batches."""

    dataset: str = "digits"
    """Name of a data set (`jaxclf data list`), of any image classification set of TFDS, folder:PATH (which may be
    gs://BUCKET/PATH or s3://BUCKET/PATH, extras `gcs` and `s3`), or package.module:Name of a class of yours."""
    classes: Annotated[int, at_least(2)] | None = None
    """Keep only the first N classes (and their images); None keeps all."""
    data_dir: str | None = None
    """TFDS directory, also gs://BUCKET/PATH; None is TFDS's own default (~/tensorflow_datasets, or TFDS_DATA_DIR)."""
    batch_size: Count = 128
    """Training images per step, over all devices."""
    eval_batch_size: Count = 500
    """Test images per evaluation step; the last batch is padded and masked, so this never changes a result."""
    drop_last: bool = False
    """Leave out an epoch's last, smaller batch (torch DataLoader's drop_last)."""
    validation: Share = 0.0
    """Carve this share of every class out of the training images and evaluate epochs on it; test only at the end."""
    image_size: Count | None = None
    """Side of the images in pixels. Resident sets: resized bilinear when they are read, None keeps them as they are.
    Streamed sets: what crops are cut to, must be given."""
    mean: tuple[float, ...] | None = None
    """Normalisation mean per channel on the 0..1 scale; None is that of model.weights, else the data set's constant."""
    std: tuple[float, ...] | None = None
    """Normalisation standard deviation per channel on the 0..1 scale; None as for the mean."""
    resize: Count | None = None
    """Streamed sets: short side in pixels that test images are resized to before the centre crop of image_size; None is
    in proportion what model.weights want, else 8/7 of it, 256 for 224."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Streamed sets: PIL's filter, which smooths when it shrinks; None is that of model.weights, else bilinear."""
    pixels: Literal["exact", "fast"] = "exact"
    """Streamed sets. exact: those of torchvision on PIL; fast: others, from libjpeg's scaled decoding and OpenCV's
    resizing (extra `fast`)."""
    train_split: str | None = None
    """Sets of TFDS and folders: TFDS's expression for the training images, as train[:20%] or train+validation, or a
    directory of folder:PATH; None is the data set's own."""
    test_split: str | None = None
    """The same for the test images."""
    on_error: Literal["raise", "skip"] = "raise"
    """Streamed sets: what an image that cannot be read does. raise: it stops the run; skip: in training the next one
    takes its place, in evaluation it is left out, and each is named and counted."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """The augmentation of training images, in this order, and of test images. Zero is off throughout.

    All of it happens inside the compiled step, but for `crop` and the mirror after it, which need images of any size.
    """

    crop: Literal["none", "random_resized"] = "none"
    """Streamed sets: cut a random rectangle and resize it to data.image_size (RandomResizedCrop), or none: cut training
    images as test images are."""
    crop_scale: AreaRange = (0.08, 1.0)
    """crop: share of the image's area."""
    crop_ratio: RatioRange = (3 / 4, 4 / 3)
    """crop: width over height."""
    pad: Natural = 4
    """Pad this many pixels on each side and crop back at random (torchvision RandomCrop)."""
    pad_mode: Literal["zero", "reflect"] = "zero"
    """Values of the padding: torchvision's constant 0, or the image reflected."""
    flip: bool = True
    """Mirror half of the training images (RandomHorizontalFlip)."""
    rand_augment: RandAugment = (0, 9)
    """Operations per image and their magnitude of 31 (RandAugment)."""
    jitter: Jitter = (0.0, 0.0, 0.0, 0.0)
    """Ranges of brightness, contrast, saturation and hue (ColorJitter)."""
    lighting: Weight = 0.0
    """Standard deviation of AlexNet's shifts along the principal colour axes of ImageNet, on the 0..1 scale."""
    erasing: Probability = 0.0
    """Probability of erasing a random rectangle after normalisation (RandomErasing)."""
    mixup: Weight = 0.0
    """Mix every example with its neighbour in the batch, one share a batch drawn from Beta(mixup, mixup)."""
    cutmix: Weight = 0.0
    """Paste a rectangle of the neighbour, its share from Beta(cutmix, cutmix); beside mixup, each batch takes one."""
    test: Literal["none", "flip", "five_crop", "ten_crop"] = "none"
    """Average the logits of a test image over its views: mirrored, or four corners and the centre, or all ten."""
    test_crop: Count | None = None
    """Side of the five and ten crops in pixels; None is 7/8 of the image (AlexNet's 224 of 256)."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Backbone, pool and head. Options that are None are left to the backbone, the pool or the head."""

    backbone: str = "resnet20"
    """Name of a backbone; `jaxclf.list_models()` shows them all."""
    head: str = "learned"
    """Name of a head; `jaxclf.list_heads()` shows them all."""
    bias: bool | None = None
    """Learn a bias in the head; None is the head's own habit (identity: no, all others: yes)."""
    head_seed: int | None = None
    """Seed of random fixed matrices; None is run.seed, so that repeated runs repeat the draw too."""
    head_normalise: Literal["none", "features", "both"] | None = None
    """Linear heads: divide the features by their norm, or these and the rows of the matrix; None is its habit."""
    head_scale: Positive | None = None
    """Linear heads: factor of the logits, or its start where the head learns it; None is the head's habit."""
    head_neck: Count | None = None
    """Fixed heads: learn a matrix from the features to this many, and put the fixed one behind it."""
    head_embed: Literal["zero", "repeat", "rotate"] = "zero"
    """Fixed heads whose matrix has fewer columns than there are features: leave zeros, repeat it, or turn it by a
    random rotation of all features."""
    head_shuffle: bool = False
    """Fixed heads: give the classes the rows of the matrix in an order drawn from head_seed."""
    head_assign: Literal["index", "hungarian"] = "index"
    """Fixed heads: hungarian: train the first epoch with row c for class c; then give the classes the rows that lie
    nearest to their mean features in that epoch, one each, and go on, with the optimiser's state as it is."""
    head_momentum: Share | None = None
    """class_mean: share of the class means that stays in a training step; None is the head's habit, 0.9."""
    head_apply: Literal["dense", "gather", "transform"] | None = None
    """Fixed heads: a product with the matrix, or the same without one: gather of features and their negatives, or fast
    Walsh-Hadamard transform; None is the head's habit (identity: gather, all others: dense)."""
    maps: int | None = None
    """End the backbone in this many feature maps instead of its usual width."""
    # Options of one family, here because config.json and run_id of every run are made of these names.
    maps_shortcut: str | None = None
    """Shortcut of the block that `maps` rebuilds, A to G (CIFAR ResNets)."""
    shortcut: str | None = None
    """Shortcut of the downsampling blocks, A or B (CIFAR ResNets)."""
    kernels: Numbers = ()
    """Once-for-all: an ordinary network with depthwise convolutions of this side, one for all blocks or one for each,
    those that `depths` leaves out among them; none of the three: the elastic network."""
    expansions: Numbers = ()
    """Once-for-all: an ordinary network whose blocks are inside this many times as wide, the same way."""
    depths: Numbers = ()
    """Once-for-all: an ordinary network of this many blocks a stage, one number for all stages or one for each."""
    pool: Literal["average", "max", "power", "attention"] = "average"
    """From the last feature map to one vector: average, max, (mean of x^p)^(1/p), or a weighted sum."""
    pool_power: Positive | None = None
    """p of the power pool, above 0; None is 2."""
    pool_units: Count | None = None
    """Hidden units of the attention pool; None is 32."""
    relu_before_pool: bool = False
    """Put a ReLU between the map and the pool."""
    dropout: Share | None = None
    """Dropout before the head in training (VGG: after fc6 and fc7); None is the backbone's own, none with `maps`."""
    stochastic_depth: Share | None = None
    """Share of the images that pass the last block by its shortcut alone in training, less in those before it
    (EfficientNets, NFNets); None is the backbone's own."""
    weights: str | None = None
    """Start from the backbone of this weight file (.safetensors, .pth, a directory or run of ours); None: at random."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of convolutions and head; parameters, BatchNorm, loss and optimiser are float32 in any case."""
    precision: Literal["default", "high", "highest"] = "default"
    """Precision of float32 products. default: TF32 on GPUs that have it (as PyTorch's convolutions), bfloat16 on TPU;
    high: three passes of those; highest: float32."""
    freeze_statistics: bool = False
    """BatchNorm in training uses its running statistics and leaves them (Keras trainable=False); what optim.freeze
    names is its weight and bias. Dropout inside the backbone (VGG, DenseNet) is off then."""
    auxiliary: bool | None = None
    """Train the classifiers on inner maps that the backbone's reference has (GoogLeNet .3 each, Inception v3 .4),
    which evaluation leaves out; None: where there are such, and freeze_statistics is off."""
    ghost_batch: Count | None = None
    """BatchNorm in training sees groups of this many consecutive images of a batch, whatever the number of devices;
    None: all that run.parallel shows it."""
    remat: Remat = "none"
    """Compute what is inside the backbone's blocks, or inside its stages, again in the backward pass instead of storing
    it: the same numbers, less memory, about a third more operations. Stages store less between the passes, and more
    while one is computed again. XLA undoes it on CPU. Every backbone but LeNets."""
    init: Literal["he_uniform", "orthogonal_last", "orthogonal"] = "he_uniform"
    """Draw convs as the modules do, or the last one or all semi-orthogonal, seen as out x (in * kh * kw)."""

    def options(self) -> dict[str, Any]:
        """Return the options that are not at their defaults, as `create_model` takes them, but for `remat`.

        They say what is computed, and weight files keep them; how much of it is stored in training is no part of that.
        """
        names = ("bias", "maps", "maps_shortcut", "shortcut", "dropout", "stochastic_depth", "auxiliary")
        names += ("kernels", "expansions", "depths")
        names += ("pool", "pool_power", "pool_units", "relu_before_pool")
        names += ("head_normalise", "head_scale", "head_neck", "head_embed", "head_shuffle")
        names += ("head_assign", "head_momentum", "head_apply")
        plain = ModelConfig()
        return {name: value for name in names if (value := getattr(self, name)) != getattr(plain, name)}


UNSMOOTHED = ("mse", "dot_regression", "cosine")
"""Losses that label smoothing has no meaning for."""
MARGINS = {"cosface": 0.35, "arcface": 0.5}
"""Losses with a margin, and that of their paper: Wang et al. (2018), Deng et al. (2019)."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The minimised sum: a loss against the labels, plus regularisers, each of which is reported apart."""

    name: Literal["cross_entropy", "binary", "mse", "dot_regression", "cosine", "cosface", "arcface"] = "cross_entropy"
    """Softmax cross-entropy; binary cross-entropy of each class against the rest; squared error to the one-hot;
    dot_regression: half the squared error of the label's own logit to 1, under a fixed matrix and features of norm 1
    (the head etf_dr); cosine: the squared error of the label's own cosine to 1, where rows have norm 1, too; cosface
    and arcface: cross-entropy with a margin on the label's cosine or angle, for the heads of these names."""
    margin: Probability | None = None
    """cosface: how much the label's cosine is lowered, arcface: by how many radians its angle is widened; None is what
    their papers take, 0.35 and 0.5."""
    label_smoothing: Share = 0.0
    """Share of every label that is spread evenly over all classes (torch CrossEntropyLoss's label_smoothing)."""
    l1: Weight = 0.0
    """Weight of sum |p| over the parameters that optim.decay names."""
    l2: Weight = 0.0
    """Weight of sum p^2 / 2 over them: weight decay as a term of the loss."""
    so: Weight = 0.0
    """Weight of |W^T W - I|^2, W = a conv as out x (in * kh * kw); the thesis takes 0.025."""
    dso: Weight = 0.0
    """Weight of |W^T W - I|^2 + |W W^T - I|^2; the thesis takes 0.025."""
    orthogonalise: Literal["last", "all"] = "last"
    """so and dso: the backbone's last conv or all of them."""


@dataclasses.dataclass(frozen=True)
class ElasticConfig:
    """Training of an elastic network (once-for-all): progressive shrinking, by smaller settings beside the largest.

    From the first of the epochs below on, each step trains the largest network and, by what it answers and by the
    labels, the smallest one so far and random ones (the sandwich rule); the sum of all gradients is one step.
    """

    kernels: Starts = ()
    """Epochs (from 0) from which the next smaller kernel is trained, too: (0, 0) all of 7, 5 and 3 from the start."""
    depths: Starts = ()
    """The same of the blocks of a stage."""
    expansions: Starts = ()
    """The same of the expansions of the blocks; at each of these epochs their channels are sorted by importance."""
    random: Natural = 2
    """Settings that each step draws, a function of (run.seed, step), beside the largest and the smallest."""
    distil: Weight = 1.0
    """Weight of the cross-entropy of a smaller network to what the largest one answers, beside that to the labels."""
    sizes: Numbers = ()
    """Sides of the images in pixels, of which each step draws one, a function of (run.seed, step); none: all of them as
    they are."""

    @property
    def start(self) -> int | None:
        """The first epoch with smaller settings; None: there is none."""
        return min((*self.kernels, *self.depths, *self.expansions), default=None)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule, every word with PyTorch's meaning. None is the optimiser's own default."""

    name: Literal[
        "sgd", "rmsprop", "rmsprop_tf", "adam", "adamw", "adagrad", "adadelta", "adamax", "nadam", "lbfgs"
    ] = "sgd"
    """Optimiser, as in torch.optim; rmsprop_tf is TensorFlow 1's (eps in the root, rate in the buffer, start at 1)."""
    lr: Positive = 0.1
    """Initial learning rate."""
    momentum: Share = 0.9
    """SGD, RMSProp: momentum; torch's buffers hold gradients and the learning rate is applied after them."""
    dampening: Probability = 0.0
    """SGD: share of a gradient that does not enter the buffer."""
    nesterov: bool = False
    """SGD: Nesterov momentum."""
    betas: Betas = (0.9, 0.999)
    """Adam, AdamW, Adamax, NAdam: decay of the two running averages."""
    alpha: Share | None = None
    """Decay of the running average of squares: RMSProp (torch .99, TensorFlow .9), Adadelta (rho, .9)."""
    eps: Weight | None = None
    """Added to the denominator, rmsprop_tf: under the root. Adagrad 1e-10, Adadelta 1e-6, rmsprop_tf 1, others 1e-8."""
    accumulator: Weight | None = None
    """Start of the accumulated squares: Adagrad 0, rmsprop 0, rmsprop_tf 1."""
    weight_decay: Weight = 1e-4
    """L2 coefficient, added to the gradient first; AdamW: the parameters shrink by rate times it instead."""
    decay: Literal["all", "weights", "not_depthwise"] = "all"
    """Arrays that decay: every trainable one, those with more than one axis, or those less depthwise convolutions."""
    freeze: tuple[str, ...] = ()
    """Shell patterns of parameter paths (`backbone/*`, `*/bias`) that stay as they are: no step, decay or EMA."""
    clip_norm: Positive | None = None
    """Scale the gradient down to this global norm (torch clip_grad_norm_)."""
    accumulate: Count = 1
    """Split every batch into this many parts, one after the other, and take one step on the sum of their gradients."""
    ema: Share | None = None
    """Evaluate a moving average of parameters and BatchNorm statistics with this decay, instead of the last ones."""
    ema_every: Count = 1
    """Steps between two updates of the average."""
    ema_warmup: bool = False
    """TensorFlow's num_updates: decay by min(ema, (1 + n) / (10 + n)) at update n, from 0."""

    schedule: Literal["constant", "multistep", "step", "exponential", "linear", "cosine", "polynomial", "hyperrule"] = (
        "multistep"
    )
    """Learning rate over time; linear, cosine and polynomial end at zero; hyperrule is BiT's."""
    schedule_every: Literal["epoch", "step"] = "epoch"
    """Change the rate once an epoch or at every step; milestones, step_size and gamma count epochs either way."""
    milestones: Milestones = ()
    """multistep: epoch indices (from 0) that are the first at a lower rate (torch MultiStepLR)."""
    gamma: Weight = 0.1
    """multistep, step: factor at each drop; exponential: factor an epoch."""
    step_size: Positive = 30.0
    """step: epochs between two drops; fractions need schedule_every = "step"."""
    power: Positive = 1.0
    """polynomial: lr * (1 - t / T)^power."""
    warmup: Weight = 0.0
    """Epochs of linear warm-up at the start, step by step; the schedule's own time starts after them."""
    warmup_start: Probability = 0.0
    """Factor of the rate at the first step of the warm-up."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Length and seed of a run, its evaluations, checkpoints and devices."""

    epochs: Natural = 10
    """Passes over the training images; 0: evaluate what model.weights gives, after run.recalibrate."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the images and their augmentation."""
    eval_every: Count = 1
    """Evaluate after every N epochs, and always after the last."""
    collapse: bool = False
    """Measure neural collapse and the geometry of the features at each evaluation of an epoch, in two more passes over
    its images and over the training images, as a test shows them: columns nc1, cdnv, nc2_norm, nc2_angle, nc3, nc4,
    effective_rank and dead, each of both. No other number changes."""
    checkpoint_every: Count | None = None
    """Save after every N steps; None saves at the evaluations only. The end of the run is always saved."""
    recalibrate: Natural = 0
    """After the last step, average BatchNorm's statistics over this many training batches (ShuffleNetV2's code)."""
    steps_per_dispatch: Count | None = None
    """Training steps in one compiled call; None is 1 on CPU (a scan is slower there) and 8 elsewhere."""
    parallel: Literal["jit", "pmap"] = "jit"
    """BatchNorm's batch in training. jit: the whole batch, on however many devices; pmap: each device its own part,
    as in torch's DDP, so that the number of devices is part of the recipe."""
    replicas: Count | None = None
    """pmap: devices, over all processes, that the recipe is meant for; None: those of its first start."""
    replica_statistics: Literal["average", "first"] = "average"
    """pmap: BatchNorm's running statistics, which evaluation uses. average: over the replicas; first: those of the
    first replica, which torch's DDP keeps."""
    max_loss: Positive | None = None
    """A training batch with a higher mean loss (nats) counts as diverged; one that is not finite does in any case."""
    rollbacks: Natural = 0
    """After divergence, go back to the last checkpoint this many times at most, each time with other draws from there
    on (order, augmentation, dropout); 0: stop."""
