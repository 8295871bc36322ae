"""Every recipe in configs/: its header, its axes, the numbers that its source gives, and its rate over time."""

import importlib.util
import inspect
import math
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxclf import create_model
from jaxclf.cli.main import main
from jaxclf.config import Config, validate
from jaxclf.data.datasets import FOLDER
from jaxclf.data.facts import RESIDENT, STREAMED
from jaxclf.data.pipeline import step_augment
from jaxclf.data.stream import test_transform as evaluation_transform  # pytest would take it for a test
from jaxclf.data.stream import training_transform
from jaxclf.data.transforms import RandomResizedCrop, ResizeCenterCrop, pil_filter
from jaxclf.errors import UsageError
from jaxclf.training import loop
from jaxclf.training.optim import transformation
from jaxclf.training.schedules import Timeline, learning_rate
from jaxclf.training.setup import set_up

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
CLASSES = {"cars196": 196, "oxford_flowers102": 102}
"""Classes of sets that the package has no facts of."""
HEADS = ("learned", "orthogonal", "hadamard", "identity")
# values of the axes whose kind of value does not follow from their name
AXES: dict[str, dict[str, tuple[Any, ...]]] = {
    "bearpaw_cifar": {"backbone": ("resnet110", "densenet_bc_190_40"), "dataset": ("cifar100",)},
    "bit_finetune": {"dataset": ("cifar100", *CLASSES, "imagenet2012"), "backbone": ("resnet18",)},
    "cifar100_resnet32": {"classes": (64,), "maps": (100,), "maps_shortcut": (None,)},
    "digit_pairs": {"neck": (None,)},
    "fashion_mnist": {"backbone": ("lenet5",)},
    "folder": {"path": ("pictures",), "backbone": ("resnet50", "mobilenet_v2"), "maps": (12,), "image_size": (160,)},
    "imagenet_mobilenet_v2": {"classes": (100,), "form": ("torchvision", "torch", "tensorflow")},
    "imagenet_resnet18": {"classes": (8, 16, 32, 64, 100, 128, 256, 512)},
    "imagenet_shufflenet_v2_x0_5": {"classes": (100,)},
    "megvii_shufflenet_v2": {"backbone": ("shufflenet_v2_x1_0", "shufflenet_v2_x2_0")},
    "pingolh_hardnet": {"backbone": ("densenet121",)},
    "torchvision_imagenet": {"backbone": ("resnet152", "mobilenet_v2")},
    "transfer": {
        "backbone": ("resnet50", "mobilenet_v2", "shufflenet_v2_x0_5"),
        "dataset": ("oxford_flowers102",),
    },
}
COMMON = {"head": HEADS, "seed": (7,), "weights": ("my.safetensors",), "epochs": (3,), "gpus": (1,)}
REBUILT = {"cifar100_resnet32": {"maps": 100, "maps_shortcut": "A"}, "folder": {"maps": 12, "backbone": "resnet50"}}
"""Axes beside identity, where the recipe does not rebuild the network by itself."""


@cache
def recipe(file: str) -> Any:
    """Load a recipe by its path, as the command line does."""
    spec = importlib.util.spec_from_file_location(file, ROOT / "configs" / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get(file: str, **axes: Any) -> Config:
    return recipe(file).get_config(**axes)


def cases() -> list[tuple[str, dict[str, Any]]]:
    """List every recipe as it is, with each value of each axis, and under identity with each network, set, subset."""
    found: list[tuple[str, dict[str, Any]]] = [(file, {}) for file in FILES]
    for file in FILES:
        identity = {"head": "identity"} | REBUILT.get(file, {})
        for axis in inspect.signature(recipe(file).get_config).parameters:
            values = [(axis, value) for value in (COMMON | AXES.get(file, {}))[axis]]
            found += [(file, identity if value == "identity" else {axis: value}) for axis, value in values]
            if axis in ("backbone", "dataset", "classes") and file not in ("bearpaw_cifar", "folder"):
                found += [(file, {"head": "identity", axis: value}) for axis, value in values]
    return found


@pytest.mark.parametrize(("file", "axes"), cases(), ids=str)
def test_recipe_is_valid_survives_json_and_can_be_built(file: str, axes: dict[str, Any]) -> None:
    config = get(file, **axes)
    validate(config)
    assert Config.from_json(config.to_json()) == config
    data, model = config.data, config.model
    fields = vars(data) | vars(model) | vars(config.run)
    assert {axis: fields[axis] for axis in axes if axis in fields}.items() <= axes.items()
    assert data.dataset in {*RESIDENT, *STREAMED, *CLASSES} or data.dataset.startswith(FOLDER)
    known = {name: facts.num_classes for name, facts in (RESIDENT | STREAMED).items()} | CLASSES
    classes = data.classes or known.get(data.dataset) or model.maps or 12
    assert model.maps in (None, classes)
    if model.head in ("learned", "identity"):
        built = create_model(model.backbone, num_classes=classes, head=model.head, **model.options())
        assert model.head == "learned" or (built.backbone.features >= classes and built.dropout == 0)


@pytest.mark.parametrize("file", FILES)
def test_header_says_how_to_run_it_on_what_and_whence_it_is(file: str) -> None:
    header = recipe(file).__doc__
    for word in ("Run:", "Data:", "Hardware:", "Source:"):
        assert f"\n{word}" in header, word
    assert f"jaxclf train configs/{file}.py --workdir " in header
    dataset = get(file).data.dataset
    if dataset.startswith(FOLDER):
        assert f"--workdir runs/own --data.dataset {FOLDER}/path/to/images\n" in header
        assert "/path/to/images/train/CLASS/*.jpg and /path/to/images/val/CLASS/*.jpg" in header
    elif dataset not in ("digits", "digit_pairs"):  # which ship with the package
        assert f"jaxclf data prepare {dataset}" in header
    if dataset == "imagenet2012":
        assert "--downloads DIR, with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar" in header
    assert "not read yet" not in header


@pytest.mark.parametrize("file", FILES)
def test_optimiser_of_a_recipe_takes_a_step(file: str) -> None:
    config = get(file)
    tx = transformation(config.optim, Timeline(10, config.run.epochs, 1000))
    params = {"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    updates, _ = tx.update(params, tx.init(params), params)
    moved = [float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(updates)]
    assert all(map(math.isfinite, moved))
    # the warm-up of the hyperrule starts at rate 0
    assert (min(moved) > 0) is (config.optim.schedule != "hyperrule")


def test_resnet18_takes_the_first_features_up_to_512_classes_and_is_rebuilt_past_them() -> None:
    assert get("imagenet_resnet18", head="identity", classes=512).model.maps is None
    assert get("imagenet_resnet18", head="identity").model.maps == 1000
    assert get("imagenet_resnet18", head="learned").model.maps is None


@pytest.mark.parametrize(
    ("file", "axes", "given"),
    [
        ("transfer", {"backbone": "resnet34"}, "unknown backbone 'resnet34'"),
        ("transfer", {"dataset": "cifar10"}, "unknown data set 'cifar10'"),
        ("bit_finetune", {"dataset": "mnist"}, "unknown data set 'mnist'"),
        ("bearpaw_cifar", {"backbone": "vgg19_bn"}, "unknown family 'vgg19_bn'"),
        ("torchvision_imagenet", {"backbone": "vgg19_bn"}, "unknown family 'vgg19_bn'"),
    ],
)
def test_axis_without_a_number_in_its_source_is_refused(file: str, axes: dict[str, Any], given: str) -> None:
    with pytest.raises(UsageError) as error:
        get(file, **axes)
    assert str(error.value).startswith(given)


IMAGENET, CIFAR, CARS = 1_281_167, 50_000, 8_144
"""Training images."""
# recipe, axes, training images, batch, epochs, weight decay, rates at times in epochs:
# the thesis's tables 4.1 to 4.3, then the files that the headers name
SOURCES: list[tuple[str, dict[str, Any], int, int, int, float, dict[float, float]]] = [
    (
        *("cifar100_resnet32", {}, CIFAR, 128, 164, 1e-4),
        {0: 0.1, 80.99: 0.1, 81: 0.01, 121.99: 0.01, 122: 0.001, 163.99: 0.001},
    ),
    ("cifar100_densenet_bc", {}, CIFAR, 64, 300, 1e-4, {149.99: 0.1, 150: 0.01, 225: 0.001, 299.99: 0.001}),
    ("imagenet_resnet18", {}, IMAGENET, 256, 90, 1e-4, {29.99: 0.1, 30: 0.01, 60: 0.001, 89.99: 0.001}),
    (
        *("imagenet_mobilenet_v2", {}, IMAGENET, 256, 100, 4e-5),
        {0.99: 0.02, 1: 0.0196, 2: 0.019208, 99.99: 2.7065215e-3},
    ),
    (
        *("imagenet_shufflenet_v2_x0_5", {}, IMAGENET, 1024, 240, 4e-5),
        {0: 0.5, 0.99: 0.5, 1: 0.49791667, 120: 0.25, 239.99: 2.08333333e-3},
    ),
    *(
        ("transfer", {"backbone": name}, CARS, 64, 40, decay, {0: 0.01, 29.99: 0.01, 30: 0.001, 39.99: 0.001})
        for name, decay in [("resnet18", 1e-3)]
        + [(name, 1e-4) for name in ("resnet50", "mobilenet_v2", "shufflenet_v2_x0_5")]
    ),
    ("bearpaw_cifar", {}, CIFAR, 128, 164, 1e-4, {80.99: 0.1, 81: 0.01, 122: 0.001}),
    (
        *("bearpaw_cifar", {"backbone": "densenet_bc_100_12"}, CIFAR, 64, 300, 1e-4),
        {149.99: 0.1, 150: 0.01, 225: 0.001},
    ),
    (
        *("bearpaw_cifar", {"backbone": "wrn_28_10"}, CIFAR, 128, 200, 5e-4),
        {59.99: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008},
    ),
    ("torchvision_imagenet", {}, IMAGENET, 256, 90, 1e-4, {29.99: 0.1, 30: 0.01, 60: 0.001, 89.99: 0.001}),
    (
        *("torchvision_imagenet", {"backbone": "mobilenet_v2"}, IMAGENET, 256, 300, 4e-5),
        {0: 0.045, 1: 0.0441, 299.99: 1.0710485e-4},
    ),
    (
        *("megvii_shufflenet_v2", {}, IMAGENET, 1024, 240, 4e-5),
        {0: 0.5, 0.5: 0.49895833, 120: 0.25, 180: 0.125, 240: 0.0},
    ),
    (
        *("slim_mobilenet_v2", {}, IMAGENET, 768, 420, 4e-5),
        {0: 0.36, 2.49: 0.36, 2.51: 0.3528, 5.01: 0.345744, 419.9: 0.0123326709},
    ),
    (
        *("pingolh_hardnet", {}, IMAGENET, 256, 150, 6e-5),
        {0: 0.05, 0.99: 0.05, 50: 0.0375, 75: 0.025, 100: 0.0125, 149.99: 5.482913129e-6},
    ),
    ("bit_finetune", {}, CIFAR, 512, 102, 0.0, {0: 0.0}),
]
OPTIMISERS = {"imagenet_mobilenet_v2": "rmsprop", "slim_mobilenet_v2": "rmsprop_tf"}
DECAYED = {"megvii_shufflenet_v2": "weights", "slim_mobilenet_v2": "not_depthwise"}
"""Optimisers other than SGD, and parameters that decay where not all do, which is where labels are smoothed as well."""


@pytest.mark.parametrize(("file", "axes", "examples", "batch", "epochs", "decay", "rates"), SOURCES, ids=str)
def test_numbers_and_rates_are_those_of_the_source(
    file: str, axes: dict[str, Any], examples: int, batch: int, epochs: int, decay: float, rates: dict[float, float]
) -> None:
    config = get(file, **axes)
    optim = config.optim
    assert (config.data.batch_size, config.run.epochs) == (batch, epochs)
    steps = math.ceil(examples / batch)
    for time, expected in rates.items():
        rate = learning_rate(optim, Timeline(steps, epochs, examples), round(time * steps))
        assert rate == pytest.approx(expected, rel=1e-7, abs=1e-15), time
    assert (optim.name, optim.momentum) == (OPTIMISERS.get(file, "sgd"), 0.9)
    assert (optim.weight_decay, optim.decay) == (decay, DECAYED.get(file, "all"))
    assert (optim.nesterov, optim.ema) == (file == "pingolh_hardnet", 0.9999 if file == "slim_mobilenet_v2" else None)
    assert (config.loss.name, config.loss.label_smoothing) == ("cross_entropy", 0.1 if file in DECAYED else 0.0)
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
    assert config.model.weights == "weights/resnet50.safetensors"
    crops = (config.augment.crop, config.augment.pad, config.data.resize)
    assert crops == ("none", 16, None) or dataset not in RESIDENT  # whose crops stay in the step


BOXES = {"slim_mobilenet_v2": ((0.1, 1.0), (0.75, 1.33))}
"""Share of the area and ratio of training crops; slim's area is from .05, but must cover a tenth of the whole image."""
TORCHVISION_BOXES = ((0.08, 1.0), (3 / 4, 4 / 3))
OVER_STREAMS: list[tuple[str, dict[str, Any]]] = [
    (file, {}) for file in FILES if get(file).data.dataset not in RESIDENT
]
OVER_STREAMS += [("transfer", {"dataset": "oxford_flowers102"}), ("bit_finetune", {"dataset": "cars196"})]


@pytest.mark.parametrize(("file", "axes"), OVER_STREAMS, ids=str)
def test_streamed_images_are_cropped_and_resized_as_in_the_source(file: str, axes: dict[str, Any]) -> None:
    config = get(file, **axes)
    data, augment, squares = config.data, config.augment, file == "bit_finetune"
    size, resize = (480, 480) if squares else (224, 256)  # slim's middle .875 is 224 of 256
    assert (data.image_size, pil_filter(data), data.pixels) == (size, "bilinear", "exact")
    assert (data.train_split, data.test_split, augment.flip) == (None, None, True)
    test = ResizeCenterCrop(resize=resize, size=size, interpolation="bilinear", channels=3)
    scale, ratio = BOXES.get(file, TORCHVISION_BOXES)
    train = RandomResizedCrop(size, scale=scale, ratio=ratio, flip=True, interpolation="bilinear", channels=3)
    assert evaluation_transform(data, 3) == test
    # BiT's training images are the middle squares as well, which the step shifts by 16 pixels
    assert training_transform(data, augment, 3) == (test if squares else train)
    left = step_augment(augment)  # for the step: what the stream has not done
    assert (left.flip, left.pad) == ((True, 16) if squares else (False, 0))
    assert left.jitter == ((0.4, 0.4, 0.4, 0.0) if file == "megvii_shufflenet_v2" else (0.0, 0.0, 0.0, 0.0))


def test_folder_is_fine_tuned_at_another_rate_and_length() -> None:
    for weights, lr, epochs in ((None, 0.025, 90), ("my.safetensors", 0.01, 40)):
        config = get("folder", weights=weights)
        assert (config.optim.lr, config.run.epochs, config.data.batch_size) == (lr, epochs, 64)
        assert (config.optim.schedule, config.optim.weight_decay, config.optim.decay) == ("cosine", 1e-4, "all")
    assert get("folder", weights="my.safetensors", epochs=3).run.epochs == 3
    assert get("folder", path="pictures").data.dataset == "folder:pictures"


def test_folder_says_which_directory_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(ROOT / "configs" / "folder.py"), "--workdir", str(tmp_path / "run")]
    assert main([*command, "--data.dataset", f"folder:{tmp_path}/pictures"]) == 2
    assert f"there is no directory {tmp_path}/pictures" in capsys.readouterr().err


def test_folder_takes_images_of_ones_own_by_flag(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the header's command; test_streamed_runs.py trains on a folder."""
    given: list[Config] = []

    def stop(config: Config, *_: Any, **__: Any) -> None:
        given.append(config)
        raise UsageError("far enough")

    monkeypatch.setattr(loop, "train", stop)
    flags = ["--data.dataset", f"folder:{photo_folder}", "--data.image-size", "24", "--run.epochs", "1"]
    flags += ["--model.backbone", "resnet8", "--model.head", "identity"]
    assert main(["train", str(ROOT / "configs" / "folder.py"), "--workdir", str(tmp_path), *flags]) == 2
    (config,) = given
    assert (config.augment, config.optim) == (get("folder").augment, get("folder").optim)
    assert (config.model.backbone, config.model.head, config.run.epochs) == ("resnet8", "identity", 1)
    with set_up(config) as setup:
        assert setup.data.sizes == {"train": 32, "test": 12}
        assert setup.data.class_names == ("ant", "bee", "cat", "dog")
        assert setup.data.image_shape == (24, 24, 3)
        assert (setup.order.batch_size, setup.order.steps_per_epoch) == (64, 1)
        assert setup.program.mean == TORCHVISION[0]


BEARPAW = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
TORCHVISION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NORMALISED: dict[str, Any] = {
    file: constants
    for constants, files in (
        (TORCHVISION, ("imagenet_resnet18", "imagenet_mobilenet_v2", "imagenet_shufflenet_v2_x0_5")),
        (TORCHVISION, ("torchvision_imagenet", "pingolh_hardnet", "transfer")),
        (BEARPAW, ("cifar100_resnet32", "cifar100_densenet_bc", "bearpaw_cifar")),
        (HALF, ("slim_mobilenet_v2", "bit_finetune")),
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
