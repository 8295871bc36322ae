"""What a run is: frozen dataclasses that hash, compare, round-trip through JSON, and know nothing of JAX.

A recipe file in `configs/` returns one `Config`; the command line overrides single fields; the run directory keeps
the resolved one. Every default of the project stands here or in a recipe, never at the point of use.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from jaxclf.errors import UsageError, unknown

T = TypeVar("T")
Remat = Literal["none", "block", "stage"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, in which batches."""

    dataset: str = "digits"
    """Name of a data set (`jaxclf data list`), of any image classification set of TFDS, or folder:PATH."""
    classes: int | None = None
    """Keep only the first N classes (and their images); None keeps all."""
    data_dir: str | None = None
    """TFDS directory; None is TFDS's own default (~/tensorflow_datasets, or TFDS_DATA_DIR)."""
    batch_size: int = 128
    """Training images per step, over all devices."""
    eval_batch_size: int = 500
    """Test images per evaluation step; the last batch is padded and masked, so this never changes a result."""
    drop_last: bool = False
    """Leave out an epoch's last, smaller batch (torch DataLoader's drop_last)."""
    validation: float = 0.0
    """Carve this share of every class out of the training images and evaluate epochs on it; test only at the end."""
    image_size: int | None = None
    """Side of the images in pixels. Resident sets: resized bilinear when they are read, None keeps them as they are.
    Streamed sets: what crops are cut to, must be given."""
    mean: tuple[float, ...] | None = None
    """Normalisation mean per channel on the 0..1 scale; None is the data set's own constant."""
    std: tuple[float, ...] | None = None
    """Normalisation standard deviation per channel on the 0..1 scale; None is the data set's own constant."""
    resize: int | None = None
    """Streamed sets: short side in pixels that test images are resized to before the centre crop of image_size; None is
    8/7 of it, 256 for 224."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Streamed sets: PIL's filter, which smooths when it shrinks."""
    pixels: Literal["exact", "fast"] = "exact"
    """Streamed sets. exact: those of torchvision on PIL; fast: others, from libjpeg's scaled decoding and OpenCV's
    resizing (extra `fast`)."""
    train_split: str | None = None
    """Streamed sets: TFDS's expression for the training images, as train+validation, or a directory of folder:PATH;
    None is the data set's own."""
    test_split: str | None = None
    """Streamed sets: the same for the test images."""
    on_error: Literal["raise", "skip"] = "raise"
    """Streamed sets: what an image that cannot be read does. raise: it stops the run; skip: in training the next one
    takes its place, in evaluation it is left out, and each is named and counted."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What becomes of training images, in this order; and of test images. Zero is off throughout.

    All of it happens inside the compiled step, but for `crop` and the mirror after it, which need images of any size.
    """

    crop: Literal["none", "random_resized"] = "none"
    """Streamed sets: cut a random rectangle and resize it to data.image_size (RandomResizedCrop), or none: cut training
    images as test images are."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """crop: share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """crop: width over height."""
    pad: int = 4
    """Pad this many pixels on each side and crop back at random (torchvision RandomCrop)."""
    pad_mode: Literal["zero", "reflect"] = "zero"
    """What is padded with (torchvision's constant 0, or reflect)."""
    flip: bool = True
    """Mirror half of the training images (RandomHorizontalFlip)."""
    rand_augment: tuple[int, int] = (0, 9)
    """Operations per image and their magnitude of 31 (RandAugment)."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Ranges of brightness, contrast, saturation and hue (ColorJitter)."""
    lighting: float = 0.0
    """Standard deviation of AlexNet's shifts along the principal colour axes of ImageNet, on the 0..1 scale."""
    erasing: float = 0.0
    """Probability of erasing a random rectangle after normalisation (RandomErasing)."""
    mixup: float = 0.0
    """Mix every example with its neighbour in the batch, one share a batch drawn from Beta(mixup, mixup)."""
    cutmix: float = 0.0
    """Paste a rectangle of the neighbour, its share from Beta(cutmix, cutmix); beside mixup, each batch takes one."""
    test: Literal["none", "flip", "five_crop", "ten_crop"] = "none"
    """Average the logits of a test image over its views: mirrored, or four corners and the centre, or all ten."""
    test_crop: int | None = None
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
    maps: int | None = None
    """End the backbone in this many feature maps instead of its usual width."""
    maps_shortcut: str | None = None
    """Shortcut of the block that `maps` rebuilds, A to G (CIFAR ResNets)."""
    shortcut: str | None = None
    """Shortcut of the downsampling blocks, A or B (CIFAR ResNets)."""
    pool: Literal["average", "max", "power", "attention"] = "average"
    """From the last feature map to one vector: average, max, (mean of x^p)^(1/p), or a weighted sum."""
    pool_power: float | None = None
    """p of the power pool, above 0; None is 2."""
    pool_units: int | None = None
    """Hidden units of the attention pool; None is 32."""
    relu_before_pool: bool = False
    """Put a ReLU between the map and the pool."""
    dropout: float | None = None
    """Dropout before the head in training (VGG: after fc6 and fc7); None is the backbone's own, none with `maps`."""
    weights: str | None = None
    """Start from the backbone of this weight file (.safetensors, .pth, a directory or run of ours); None: at random."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of convolutions and head; parameters, BatchNorm, loss and optimiser are float32 in any case."""
    precision: Literal["default", "high", "highest"] = "default"
    """Of float32 products. default: TF32 on GPUs that have it (as PyTorch's convolutions), bfloat16 on TPU; high: three
    passes of those; highest: float32."""
    ghost_batch: int | None = None
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
        names = ("bias", "maps", "maps_shortcut", "shortcut", "dropout")
        names += ("pool", "pool_power", "pool_units", "relu_before_pool")
        plain = ModelConfig()
        return {name: value for name in names if (value := getattr(self, name)) != getattr(plain, name)}


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised: a loss against the labels, plus regularisers, each of which is reported apart."""

    name: Literal["cross_entropy", "binary", "mse"] = "cross_entropy"
    """Softmax cross-entropy; binary cross-entropy of each class against the rest; squared error to the one-hot."""
    label_smoothing: float = 0.0
    """Share of every label that is spread evenly over all classes (torch CrossEntropyLoss's label_smoothing)."""
    l1: float = 0.0
    """Weight of sum |p| over the parameters that optim.decay names."""
    l2: float = 0.0
    """Weight of sum p^2 / 2 over them: weight decay as a term of the loss."""
    so: float = 0.0
    """Weight of |W^T W - I|^2, W = a conv as out x (in * kh * kw); the thesis takes 0.025."""
    dso: float = 0.0
    """Weight of |W^T W - I|^2 + |W W^T - I|^2; the thesis takes 0.025."""
    orthogonalise: Literal["last", "all"] = "last"
    """so and dso: the backbone's last conv or all of them."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule, every word with PyTorch's meaning. None is the optimiser's own default."""

    name: Literal[
        "sgd", "rmsprop", "rmsprop_tf", "adam", "adamw", "adagrad", "adadelta", "adamax", "nadam", "lbfgs"
    ] = "sgd"
    """Optimiser, as in torch.optim; rmsprop_tf is TensorFlow 1's (eps in the root, rate in the buffer, start at 1)."""
    lr: float = 0.1
    """Initial learning rate."""
    momentum: float = 0.9
    """SGD, RMSProp: momentum; torch's buffers hold gradients and the learning rate is applied after them."""
    dampening: float = 0.0
    """SGD: share of a gradient that does not enter the buffer."""
    nesterov: bool = False
    """SGD: Nesterov momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam, AdamW, Adamax, NAdam: decay of the two running averages."""
    alpha: float | None = None
    """Decay of the running average of squares: RMSProp (torch .99, TensorFlow .9), Adadelta (rho, .9)."""
    eps: float | None = None
    """Added to the denominator, rmsprop_tf: under the root. Adagrad 1e-10, Adadelta 1e-6, rmsprop_tf 1, others 1e-8."""
    accumulator: float | None = None
    """Start of the accumulated squares: Adagrad 0, rmsprop 0, rmsprop_tf 1."""
    weight_decay: float = 1e-4
    """L2 coefficient, added to the gradient first; AdamW: the parameters shrink by rate times it instead."""
    decay: Literal["all", "weights", "not_depthwise"] = "all"
    """What decays: every trainable array, those with more than one axis, or those less depthwise convolutions."""
    freeze: tuple[str, ...] = ()
    """Shell patterns of parameter paths (`backbone/*`, `*/bias`) that stay as they are: no step, decay or EMA."""
    clip_norm: float | None = None
    """Scale the gradient down to this global norm (torch clip_grad_norm_)."""
    accumulate: int = 1
    """Split every batch into this many parts, one after the other, and take one step on the sum of their gradients."""
    ema: float | None = None
    """Evaluate a moving average of parameters and BatchNorm statistics with this decay, instead of the last ones."""
    ema_every: int = 1
    """Steps between two updates of the average."""
    ema_warmup: bool = False
    """TensorFlow's num_updates: decay by min(ema, (1 + n) / (10 + n)) at update n, from 0."""

    schedule: Literal["constant", "multistep", "step", "exponential", "linear", "cosine", "polynomial", "hyperrule"] = (
        "multistep"
    )
    """Learning rate over time; linear, cosine and polynomial end at zero; hyperrule is BiT's."""
    schedule_every: Literal["epoch", "step"] = "epoch"
    """Change the rate once an epoch or at every step; milestones, step_size and gamma count epochs either way."""
    milestones: tuple[int, ...] = ()
    """multistep: epoch indices (from 0) that are the first at a lower rate (torch MultiStepLR)."""
    gamma: float = 0.1
    """multistep, step: factor at each drop; exponential: factor an epoch."""
    step_size: float = 30.0
    """step: epochs between two drops; fractions need schedule_every = "step"."""
    power: float = 1.0
    """polynomial: lr * (1 - t / T)^power."""
    warmup: float = 0.0
    """Epochs of linear warm-up at the start, step by step; the schedule's own time starts after them."""
    warmup_start: float = 0.0
    """Factor of the rate at the first step of the warm-up."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How long, how often, from which seed."""

    epochs: int = 10
    """Passes over the training images."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and their augmentation."""
    eval_every: int = 1
    """Evaluate after every N epochs, and always after the last."""
    checkpoint_every: int | None = None
    """Save after every N steps; None saves at the evaluations only. The end of the run is always saved."""
    recalibrate: int = 0
    """After the last step, average BatchNorm's statistics over this many training batches (ShuffleNetV2's code)."""
    steps_per_dispatch: int | None = None
    """Training steps in one compiled call; None is 1 on CPU (a scan is slower there) and 8 elsewhere."""
    parallel: Literal["jit", "pmap"] = "jit"
    """What BatchNorm sees in training. jit: the whole batch, on however many devices; pmap: each device its own part,
    as in torch's DDP, so that the number of devices is part of the recipe."""
    replicas: int | None = None
    """pmap: devices, over all processes, that the recipe is meant for; None: those of its first start."""
    replica_statistics: Literal["average", "first"] = "average"
    """pmap: BatchNorm's running statistics, which evaluation uses. average: over the replicas; first: those of the
    first replica, which torch's DDP keeps."""
    max_loss: float | None = None
    """A training batch with a higher mean loss (nats) counts as diverged; one that is not finite does in any case."""
    rollbacks: int = 0
    """After divergence, go back to the last checkpoint this many times at most, each time with other draws from there
    on (order, augmentation, dropout); 0: stop."""


@dataclasses.dataclass(frozen=True)
class Loader:
    """What reads a streamed set; no field changes a pixel, so none of them is part of a `Config`."""

    workers: int = 0
    """Processes that read, decode and crop; 0: threads of this process, which is faster on few cores."""
    threads: int | None = None
    """Threads, in each process where there are some; None: as many as there are cores for it."""


Launcher = Literal["auto", "none", "slurm", "ompi", "tpu"]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The devices and processes of a run, which change no recipe (run.parallel says where they do)."""

    devices: int | None = None
    """Devices of each process; None: all. On CPU as many virtual ones are made."""
    launcher: Launcher = "auto"
    """Who started the processes. auto: what the environment says; none: this process is alone."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where no launcher says it; with --processes and --process."""
    processes: int | None = None
    """Processes in all."""
    process: int | None = None
    """Number of this one, from 0."""
    peer_timeout: int = 100
    """Seconds without a sign of life after which a process is taken for lost, and the others end."""


@dataclasses.dataclass(frozen=True)
class Watching:
    """What is seen of a run while it goes on; no field changes a number, so none of them is part of a `Config`."""

    heartbeat: float = 60.0
    """Seconds between two lines with speed, step times and share of time spent waiting for data, which are also in
    WORKDIR/heartbeat.json; 0: none."""
    profile: str | None = None
    """START:STOP, a trace of steps START to STOP - 1 in WORKDIR/profile; they count from 1, as in metrics.jsonl."""
    tensorboard: bool = False
    """Write event files for TensorBoard into WORKDIR/tensorboard (extra `tensorboard`)."""
    wandb: str | None = None
    """Weights & Biases project that the run is sent to (extra `wandb`)."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the config as JSON text, one field a line."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Any) -> "Config":
        """Rebuild a config; unknown fields and values of a wrong type raise `UsageError`."""
        return _build(cls, values, "")

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Inverse of `to_json`.

        >>> Config.from_json(Config().to_json()) == Config()
        True
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"the config is no JSON: {error}") from error
        return cls.from_dict(values)

    def run_id(self) -> str:
        """Return a readable name that differs wherever two configs differ.

        >>> Config().run_id()
        'digits-resnet20-learned-s0-276aea'
        """
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:6]
        return f"{self.data.dataset}-{self.model.backbone}-{self.model.head}-s{self.run.seed}-{digest}"

    def differences(self, other: "Config") -> list[str]:
        """List the fields in which two configs differ, as `section.field: mine != theirs`."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{section}.{field}: {value!r} != {theirs[section][field]!r}"
            for section, fields in mine.items()
            for field, value in fields.items()
            if value != theirs[section][field]
        ]


def _build(cls: type[T], values: Any, path: str) -> T:
    if not isinstance(values, Mapping):
        raise UsageError(f"config {path.rstrip('.') or 'as a whole'} is {values!r} but must be fields with values")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise unknown("config field", path + name, [path + hint for hint in hints])
    return cls(**{name: _convert(hints[name], value, path + name) for name, value in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Fit one JSON value to its field's type."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, path + ".")
    origin = typing.get_origin(hint)
    options = typing.get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        kind = typing.get_origin(option) or option
        if kind is Literal and value in typing.get_args(option):
            return value
        if kind is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(option)[0]
            return tuple(_convert(inner, item, f"{path}[{index}]") for index, item in enumerate(value))
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(kind, type) and type(value) is kind:
            return value
    allowed = getattr(hint, "__name__", hint)
    if origin is Literal:
        allowed = "one of " + ", ".join(map(repr, typing.get_args(hint)))
    raise UsageError(f"config field {path} is {value!r} but must be {allowed}")
