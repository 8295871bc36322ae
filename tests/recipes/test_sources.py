"""The numbers of every recipe are those that its source gives: sizes, optimiser, rates over time, images."""

import math
from typing import Any, NamedTuple

import pytest

from jaxclf import create_model
from jaxclf.data.facts import RESIDENT
from jaxclf.data.pipeline import step_augment
from jaxclf.data.stream import test_transform as evaluation_transform  # pytest would take it for a test
from jaxclf.data.stream import training_transform
from jaxclf.data.transforms import RandomResizedCrop, ResizeCenterCrop, pil_filter
from jaxclf.training.schedules import Timeline, learning_rate
from tests.recipes.files import FILES, get

IMAGENET, CIFAR, CARS = 1_281_167, 50_000, 8_144
"""Training images."""
Axes = dict[str, Any]


class Numbers(NamedTuple):
    """What a source gives; the defaults are what most give."""

    examples: int
    batch: int
    epochs: int
    decay: float
    rates: dict[float, float]
    """By time in epochs."""
    name: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    decayed: str = "all"
    smoothing: float = 0.0
    average: float | None = None
    drop_last: bool = False


# The thesis's tables 4.1 to 4.3, then the files that the headers name.
SOURCES: list[tuple[str, Axes, Numbers]] = [
    (
        *("cifar100_resnet32", {}),
        Numbers(CIFAR, 128, 164, 1e-4, {0: 0.1, 80.99: 0.1, 81: 0.01, 121.99: 0.01, 122: 0.001, 163.99: 0.001}),
    ),
    (
        *("cifar100_densenet_bc", {}),
        Numbers(CIFAR, 64, 300, 1e-4, {149.99: 0.1, 150: 0.01, 225: 0.001, 299.99: 0.001}),
    ),
    ("imagenet_resnet18", {}, Numbers(IMAGENET, 256, 90, 1e-4, {29.99: 0.1, 30: 0.01, 60: 0.001, 89.99: 0.001})),
    (
        *("imagenet_mobilenet_v2", {}),
        Numbers(IMAGENET, 256, 100, 4e-5, {0.99: 0.02, 1: 0.0196, 2: 0.019208, 99.99: 2.7065215e-3}, "rmsprop"),
    ),
    (
        *("imagenet_shufflenet_v2_x0_5", {}),
        Numbers(IMAGENET, 1024, 240, 4e-5, {0: 0.5, 0.99: 0.5, 1: 0.49791667, 120: 0.25, 239.99: 2.08333333e-3}),
    ),
    *(
        *(
            (
                *("transfer", {"backbone": name}),
                Numbers(CARS, 64, 40, decay, {0: 0.01, 29.99: 0.01, 30: 0.001, 39.99: 0.001}),
            )
            for name, decay in [("resnet18", 1e-3)]
            + [(name, 1e-4) for name in ("resnet50", "mobilenet_v2", "shufflenet_v2_x0_5")]
        ),
    ),
    ("bearpaw_cifar", {}, Numbers(CIFAR, 128, 164, 1e-4, {80.99: 0.1, 81: 0.01, 122: 0.001})),
    (
        *("bearpaw_cifar", {"backbone": "densenet_bc_100_12"}),
        Numbers(CIFAR, 64, 300, 1e-4, {149.99: 0.1, 150: 0.01, 225: 0.001}),
    ),
    (
        *("bearpaw_cifar", {"backbone": "wrn28_10"}),
        Numbers(CIFAR, 128, 200, 5e-4, {59.99: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008}),
    ),
    (
        *("wrn", {}),
        Numbers(
            *(CIFAR, 128, 200, 5e-4, {58.99: 0.1, 59: 0.02, 119: 0.004, 158.99: 0.004, 159: 0.0008}),
            nesterov=True,
            drop_last=True,
        ),
    ),
    (
        *("wrn", {"form": "xternalz"}),
        Numbers(CIFAR, 128, 200, 5e-4, {0: 0.1, 100: 0.05, 150: 0.0146446609, 200: 0.0}, nesterov=True),
    ),
    ("torchvision_imagenet", {}, Numbers(IMAGENET, 256, 90, 1e-4, {29.99: 0.1, 30: 0.01, 60: 0.001, 89.99: 0.001})),
    (
        *("torchvision_imagenet", {"backbone": "mobilenet_v2"}),
        Numbers(IMAGENET, 256, 300, 4e-5, {0: 0.045, 1: 0.0441, 299.99: 1.0710485e-4}),
    ),
    (
        *("megvii_shufflenet_v2", {}),
        Numbers(
            *(IMAGENET, 1024, 240, 4e-5, {0: 0.5, 0.5: 0.49895833, 120: 0.25, 180: 0.125, 240: 0.0}),
            **{"decayed": "weights", "smoothing": 0.1},
        ),
    ),
    (
        *("slim_mobilenet_v2", {}),
        Numbers(
            *(IMAGENET, 768, 420, 4e-5, {0: 0.36, 2.49: 0.36, 2.51: 0.3528, 5.01: 0.345744, 419.9: 0.0123326709}),
            **{"name": "rmsprop_tf", "decayed": "not_depthwise", "smoothing": 0.1, "average": 0.9999},
        ),
    ),
    (
        *("pingolh_hardnet", {}),
        Numbers(*(IMAGENET, 256, 150, 6e-5, {0: 0.05, 0.99: 0.05, 50: 0.0375, 75: 0.025, 100: 0.0125}), nesterov=True),
    ),
    (
        *("once_for_all", {}),
        Numbers(
            *(IMAGENET, 2048, 180, 3e-5, {0.0: 2.6, 90.0: 1.3, 180.0: 0.0}),
            nesterov=True,
            decayed="weights",
            smoothing=0.1,
            drop_last=True,
        ),
    ),
    *(
        (
            *("once_for_all", {"phase": phase}),
            Numbers(
                *(IMAGENET, 2048, 125, 3e-5, {0.0: rate / 32, 5.0: rate, 65.0: rate / 2, 125.0: 0.0}),
                nesterov=True,
                decayed="weights",
                smoothing=0.1,
                drop_last=True,
            ),
        )
        for phase, rate in (("kernel", 0.96), ("depth_2", 0.24), ("width_2", 0.24))
    ),
    ("bit_finetune", {}, Numbers(CIFAR, 512, 102, 0.0, {0: 0.0})),
    (
        *("efficientnet", {}),
        Numbers(
            # .256 by .97 for every whole 2.4 epochs from the first step on
            *(
                IMAGENET,
                4096,
                350,
                1e-5,
                {0: 0.0, 5: 0.2408704, 7.1: 0.2408704, 7.3: 0.233644288, 349.9: 0.00309130199},
            ),
            **{"name": "rmsprop_tf", "decayed": "weights", "smoothing": 0.1, "average": 0.9999},
        ),
    ),
    (
        *("googlenet", {}),
        Numbers(
            *(IMAGENET, 32, 250, 2e-4, {0: 0.01, 7.99: 0.01, 8: 0.0096, 16: 0.009216, 249.99: 0.00282103338}),
            **{"decayed": "weights", "average": 0.9999},
        ),
    ),
    (
        *("googlenet", {"form": "quick"}),
        Numbers(IMAGENET, 32, 60, 2e-4, {0: 0.01, 30: 7.0710678e-3, 45: 0.005, 60: 0.0}, decayed="weights"),
    ),
    (
        *("mobilenet_v1", {}),
        Numbers(IMAGENET, 64, 90, 1e-4, {29.99: 0.1, 30: 0.01, 60: 0.001, 89.99: 0.001}),
    ),
    (
        *("mobilenet_v1", {"form": "slim"}),
        Numbers(
            *(IMAGENET, 64, 100, 4e-5, {2.49: 0.045, 2.51: 0.0423, 5.01: 0.039762, 99.9: 0.00402901426}),
            **{"momentum": 0.0, "decayed": "not_depthwise"},
        ),
    ),
]


@pytest.mark.parametrize(("file", "axes", "numbers"), SOURCES, ids=lambda value: str(value)[:60])
def test_numbers_and_rates_are_those_of_the_source(file: str, axes: Axes, numbers: Numbers) -> None:
    config = get(file, **axes)
    optim, data, loss = config.optim, config.data, config.loss
    assert (data.batch_size, data.drop_last, config.run.epochs) == (numbers.batch, numbers.drop_last, numbers.epochs)
    steps = numbers.examples // numbers.batch if numbers.drop_last else math.ceil(numbers.examples / numbers.batch)
    for time, expected in numbers.rates.items():
        rate = learning_rate(optim, Timeline(steps, numbers.epochs, numbers.examples), round(time * steps))
        assert rate == pytest.approx(expected, rel=1e-7, abs=1e-15), time
    assert (optim.name, optim.momentum, optim.nesterov) == (numbers.name, numbers.momentum, numbers.nesterov)
    assert (optim.weight_decay, optim.decay, optim.ema) == (numbers.decay, numbers.decayed, numbers.average)
    assert (loss.name, loss.label_smoothing) == ("cross_entropy", numbers.smoothing)
    assert config.augment.flip


@pytest.mark.parametrize(
    ("form", "constants"),
    [
        ("torchvision", ("rmsprop", 0.9, 0.0316, 0.0)),
        ("torch", ("rmsprop", 0.99, 1e-8, 0.0)),
        ("tensorflow", ("rmsprop_tf", 0.9, 1.0, 1.0)),
    ],
)
def test_thesis_rmsprop_has_three_forms(form: str, constants: tuple[Any, ...]) -> None:
    optim = get("imagenet_mobilenet_v2", form=form).optim
    assert (optim.name, optim.alpha, optim.eps, optim.accumulator) == constants
    assert (optim.lr, optim.momentum, optim.weight_decay, optim.gamma) == (0.02, 0.9, 4e-5, 0.98)
    assert (get("imagenet_mobilenet_v2").optim == optim) is (form == "torchvision")


@pytest.mark.parametrize(("gpus", "batch", "lr"), [(8, 768, 0.36), (1, 96, 0.045)])
def test_slim_recipe(gpus: int, batch: int, lr: float) -> None:
    config = get("slim_mobilenet_v2", gpus=gpus)
    optim = config.optim
    assert (config.data.batch_size, optim.lr, config.model.dropout) == (batch, pytest.approx(lr, rel=1e-12), 0.2)
    assert (optim.alpha, optim.eps, optim.accumulator, optim.gamma) == (0.9, 1.0, 1.0, 0.98)
    assert (optim.ema, optim.ema_every, optim.ema_warmup) == (0.9999, 1, True)
    assert (optim.schedule, optim.schedule_every, optim.step_size) == ("step", "step", 2.5)


def test_megvii_recipe_beside_its_optimiser() -> None:
    config = get("megvii_shufflenet_v2")
    data, model = config.data, config.model
    assert (config.optim.schedule_every, config.run.recalibrate) == ("step", 1250)
    assert (config.augment.jitter, model.bias, model.dropout) == ((0.4, 0.4, 0.4, 0.0), False, None)
    assert get("megvii_shufflenet_v2", backbone="shufflenet_v2_x2_0").model.dropout == 0.2
    assert (data.mean, data.std) == ((0, 0, 0), (1 / 255, 1 / 255, 1 / 255))


def test_weights_of_bit_are_its_own_files_and_those_of_others_ours() -> None:
    given = {name: get("bit_finetune", backbone=name).model.weights for name in ("bit_r152x4", "resnet50")}
    assert given == {"bit_r152x4": "weights/BiT-M-R152x4.npz", "resnet50": "weights/resnet50.safetensors"}
    assert get("bit_finetune", weights="my.npz").model.weights == "my.npz"


@pytest.mark.parametrize(
    ("dataset", "epochs", "mixup", "size"),
    [
        ("cifar10", 102, 0.1, 128),  # 10,000 steps, 98 an epoch
        ("cifar100", 102, 0.1, 128),
        ("cars196", 31, 0.0, 480),  # 500 steps, 16 an epoch
        ("oxford_flowers102", 250, 0.0, 480),  # 500 steps, 2 an epoch
        ("imagenet2012", 8, 0.1, 480),  # 20,000 steps, 2,503 an epoch
    ],
)
def test_hyperrule_follows_from_the_data_set(dataset: str, epochs: int, mixup: float, size: int) -> None:
    config = get("bit_finetune", dataset=dataset)
    assert (config.run.epochs, config.augment.mixup, config.data.image_size) == (epochs, mixup, size)
    assert config.model.weights == "weights/BiT-M-R50x1.npz"
    crops = (config.augment.crop, config.augment.pad, config.data.resize)
    assert crops == ("none", 16, None) or dataset not in RESIDENT  # whose crops stay in the step


TORCHVISION_BOX, SLIM_BOX = ((0.08, 1.0), (3 / 4, 4 / 3)), ((0.1, 1.0), (0.75, 1.33))
"""Share of the area and ratio of training crops; slim's area is from .05, but must cover a tenth of the whole image."""


class Pixels(NamedTuple):
    """How a source cuts its images; the defaults are torchvision's. slim's middle .875 is 224 of 256, too."""

    side: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    box: Any = TORCHVISION_BOX
    """None: training images are the test images' squares, which the step shifts by 16 pixels."""
    jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)


OTHER_PIXELS: list[tuple[str, Axes, Pixels]] = [
    ("slim_mobilenet_v2", {}, Pixels(box=SLIM_BOX)),
    ("mobilenet_v1", {"form": "slim"}, Pixels(box=SLIM_BOX)),
    ("megvii_shufflenet_v2", {}, Pixels(jitter=(0.4, 0.4, 0.4, 0.0))),
    ("bit_finetune", {"dataset": "cars196"}, Pixels(480, 480, box=None)),
    ("googlenet", {"form": "quick"}, Pixels(box=None)),
    ("once_for_all", {}, Pixels(jitter=(32 / 255, 0.0, 0.5, 0.0))),
    ("efficientnet", {}, Pixels(interpolation="bicubic")),
    ("efficientnet", {"backbone": "efficientnet_b3"}, Pixels(300, 332, "bicubic")),
    ("efficientnet", {"backbone": "efficientnet_b7"}, Pixels(600, 632, "bicubic")),
    ("transfer", {"dataset": "oxford_flowers102"}, Pixels()),
]
OTHERS = [(file, axes) for file, axes, _ in OTHER_PIXELS]
OVER_STREAMS = OTHER_PIXELS + [
    (file, {}, Pixels()) for file in FILES if get(file).data.dataset not in RESIDENT and (file, {}) not in OTHERS
]


@pytest.mark.parametrize(("file", "axes", "pixels"), OVER_STREAMS, ids=lambda value: str(value)[:60])
def test_streamed_images_are_cropped_and_resized_as_in_the_source(file: str, axes: Axes, pixels: Pixels) -> None:
    config = get(file, **axes)
    data, augment = config.data, config.augment
    side, given = pixels.side, {"interpolation": pixels.interpolation, "channels": 3}
    assert (data.image_size, pil_filter(data), data.pixels) == (side, pixels.interpolation, "exact")
    assert (data.train_split, data.test_split, augment.flip) == (None, None, True)
    test: Any = ResizeCenterCrop(resize=pixels.resize, size=side, **given)
    assert evaluation_transform(data, 3) == test
    left = step_augment(augment)  # for the step: what the stream has not done
    if pixels.box is None:
        assert training_transform(data, augment, 3) == test
        assert (left.flip, left.pad, left.pad_mode) == (True, 16, "reflect")
    else:
        scale, ratio = pixels.box
        train: Any = RandomResizedCrop(side, scale=scale, ratio=ratio, flip=True, **given)
        assert training_transform(data, augment, 3) == train
        assert (left.flip, left.pad) == (False, 0)
    assert left.jitter == pixels.jitter


BEARPAW = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
TORCHVISION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
XTERNALZ = ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))
CAFFE = ((123 / 255, 117 / 255, 104 / 255), (1 / 255, 1 / 255, 1 / 255))
NORMALISED: dict[str, Any] = {
    file: constants
    for constants, files in (
        (TORCHVISION, ("imagenet_resnet18", "imagenet_mobilenet_v2", "imagenet_shufflenet_v2_x0_5")),
        (TORCHVISION, ("torchvision_imagenet", "pingolh_hardnet", "transfer", "efficientnet", "mobilenet_v1")),
        (BEARPAW, ("cifar100_resnet32", "cifar100_densenet_bc", "bearpaw_cifar")),
        (HALF, ("slim_mobilenet_v2", "bit_finetune")),
        (XTERNALZ, ("wrn",)),
        (CAFFE, ("googlenet",)),
    )
    for file in files
}


@pytest.mark.parametrize("file", [*NORMALISED, "folder"])
def test_images_are_normalised_as_in_the_source(file: str) -> None:
    config = get(file)
    # a folder's own constants are torchvision's
    assert (config.data.mean, config.data.std) == NORMALISED.get(file, (None, None))
    if config.data.dataset in RESIDENT and file != "bit_finetune":
        assert (config.data.image_size, config.augment.pad) == (None, 4)


def test_cifar_is_padded_with_zeros_or_as_wide_resnets_authors_pad() -> None:
    modes = {file: get(file).augment.pad_mode for file in ("cifar100_resnet32", "bearpaw_cifar", "wrn")}
    assert modes == {"cifar100_resnet32": "zero", "bearpaw_cifar": "zero", "wrn": "reflect"}


@pytest.mark.parametrize(
    ("file", "axes", "dropout"),
    [
        ("wrn", {}, 0.3),
        ("wrn", {"backbone": "wrn40_2"}, 0.0),
        ("wrn", {"form": "xternalz"}, 0.0),
        ("bearpaw_cifar", {"backbone": "wrn28_10"}, 0.3),
    ],
    ids=str,
)
def test_wide_resnets_drop_inside_their_blocks(file: str, axes: Axes, dropout: float) -> None:
    model = get(file, **axes).model
    built: Any = create_model(model.backbone, num_classes=10, **model.options())
    assert (built.backbone.dropout, built.dropout) == (dropout, 0.0)


# tensorflow/tpu, efficientnet_builder.py: side and dropout; torchvision has the same
EFFICIENTNETS = {
    **{"b0": (224, 0.2), "b1": (240, 0.2), "b2": (260, 0.3), "b3": (300, 0.3)},
    **{"b4": (380, 0.4), "b5": (456, 0.4), "b6": (528, 0.5), "b7": (600, 0.5)},
}


@pytest.mark.parametrize(("size", "expected"), EFFICIENTNETS.items())
def test_images_and_dropout_of_efficientnets_grow(size: str, expected: tuple[int, float]) -> None:
    config = get("efficientnet", backbone=f"efficientnet_{size}")
    built: Any = create_model(config.model.backbone, num_classes=1000, **config.model.options())
    assert (config.data.image_size, built.dropout) == expected
    assert (config.data.resize, built.backbone.stochastic_depth) == (expected[0] + 32, 0.2)


def test_rates_of_efficientnet_are_its_code_s_from_epoch_5_on_and_scale_with_the_batch() -> None:
    for batch in (4096, 2048):
        config = get("efficientnet", batch_size=batch)
        steps = math.ceil(IMAGENET / batch)
        timeline = Timeline(steps, 350, IMAGENET)
        for drops in range(2, 146):
            rate = learning_rate(config.optim, timeline, round((drops + 0.5) * 2.4 * steps))
            assert rate == pytest.approx(0.016 * batch / 256 * 0.97**drops, rel=1e-9)
        for epoch in range(5):
            rate = learning_rate(config.optim, timeline, epoch * steps)
            assert rate == pytest.approx(0.016 * batch / 256 * epoch / 5, rel=0.021)
        optim = config.optim
        assert (optim.alpha, optim.eps, optim.accumulator) == (0.9, 1e-3, 1.0)
        assert (optim.ema_every, optim.ema_warmup) == (1, True)


def test_forms_of_googlenet_train_the_auxiliary_classifiers_of_the_paper() -> None:
    for form in ("paper", "quick"):
        model = get("googlenet", form=form).model
        built = create_model(model.backbone, num_classes=1000, **model.options())
        assert [one.weight for one in built.backbone.auxiliary_trained] == [0.3, 0.3]
        assert built.dropout == 0.4


def test_slim_s_mobilenet_v1_has_relu6_and_almost_no_dropout() -> None:
    models = [get("mobilenet_v1", form=form).model for form in ("wjc", "slim")]
    assert [(model.backbone, model.dropout) for model in models] == [
        ("mobilenet_v1", None),
        ("mobilenet_v1_timm", 0.001),
    ]


def test_rate_of_the_hyperrule_at_steps() -> None:
    config = get("bit_finetune", dataset="cars196")
    timeline = Timeline(16, config.run.epochs, 8_144)
    steps = {0: 0.0, 50: 0.0015, 100: 0.003, 200: 0.003, 201: 3e-4, 301: 3e-5, 401: 3e-6, 495: 3e-6, 500: 0.0}
    for step, expected in steps.items():
        assert learning_rate(config.optim, timeline, step) == pytest.approx(expected, rel=1e-9, abs=1e-15), step


def test_rate_of_megvii_at_its_first_and_last_step() -> None:
    config = get("megvii_shufflenet_v2")
    timeline = Timeline(1252, config.run.epochs, IMAGENET)
    assert timeline.steps == 300_480
    assert learning_rate(config.optim, timeline, 1) == pytest.approx(0.5 * (1 - 1 / 300_480), rel=1e-12)
    assert learning_rate(config.optim, timeline, 300_479) == pytest.approx(0.5 / 300_480, rel=1e-6)
