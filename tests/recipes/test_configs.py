"""Every recipe in configs/: its header, its axes, its numbers against its source, and its rate over time."""

import importlib.util
import inspect
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxclf import create_model, list_heads, list_models
from jaxclf.cli.main import main
from jaxclf.config import Config, validate
from jaxclf.data.datasets import FOLDER
from jaxclf.data.facts import RESIDENT, STREAMED
from jaxclf.data.pipeline import step_augment
from jaxclf.data.stream import test_transform as evaluation_transform  # pytest would take it for a test
from jaxclf.data.stream import training_transform
from jaxclf.data.transforms import RandomResizedCrop, ResizeCenterCrop
from jaxclf.errors import UsageError
from jaxclf.training import loop
from jaxclf.training.optim import transformation
from jaxclf.training.schedules import Timeline, learning_rate
from jaxclf.training.setup import set_up

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
IMAGENET = 1_281_167
"""Training images of ImageNet-1K."""
ABSENT = {"wrn_28_10"}
"""Backbones of recipes that are yet to come."""

# every file, and for each of its axes the values to try
AXES: dict[str, dict[str, tuple[Any, ...]]] = {
    "bearpaw_cifar": {
        "backbone": ("resnet110", "densenet_bc_190_40", "wrn_28_10"),
        "dataset": ("cifar100",),
        "head": ("orthogonal",),
    },
    "bit_finetune": {
        "dataset": ("cifar10", "cifar100", "cars196", "oxford_flowers102", "imagenet2012"),
        "backbone": ("resnet18",),
        "head": ("identity",),
        "weights": ("my.safetensors",),
    },
    "cifar100_densenet_bc": {"head": ("learned", "orthogonal", "hadamard", "identity")},
    "cifar100_resnet32": {
        "head": ("orthogonal", "hadamard"),
        "classes": (64,),
        "maps": (100,),
        "maps_shortcut": (None,),
    },
    "digits": {"head": ("orthogonal", "hadamard", "identity"), "seed": (0, 7)},
    "fashion_mnist": {"head": ("orthogonal", "identity"), "backbone": ("lenet5",)},
    "folder": {
        "path": ("/path/to/images",),
        "backbone": ("resnet50", "mobilenet_v2"),
        "head": ("orthogonal", "identity"),
        "maps": (12,),
        "weights": ("my.safetensors",),
        "image_size": (160,),
        "epochs": (3,),
    },
    "imagenet_mobilenet_v2": {
        "head": ("identity",),
        "classes": (100,),
        "form": ("torchvision", "torch", "tensorflow"),
    },
    "imagenet_resnet18": {
        "head": ("orthogonal", "hadamard", "identity"),
        "classes": (8, 16, 32, 64, 100, 128, 256, 512),
    },
    "imagenet_shufflenet_v2_x0_5": {"head": ("identity",), "classes": (100,)},
    "megvii_shufflenet_v2": {"backbone": ("shufflenet_v2_x1_0", "shufflenet_v2_x2_0"), "head": ("identity",)},
    "pingolh_hardnet": {"backbone": ("densenet121",), "head": ("orthogonal",)},
    "slim_mobilenet_v2": {"gpus": (1,), "head": ("identity",)},
    "torchvision_imagenet": {"backbone": ("resnet152", "mobilenet_v2"), "head": ("identity",)},
    "transfer": {
        "backbone": ("resnet18", "resnet50", "mobilenet_v2", "shufflenet_v2_x0_5"),
        "dataset": ("cars196", "oxford_flowers102"),
        "head": ("identity",),
        "weights": ("my.safetensors",),
    },
}
CASES = [(file, {}) for file in AXES] + [
    (file, {axis: value}) for file, axes in AXES.items() for axis, values in axes.items() for value in values
]


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


def test_every_recipe_and_every_axis_is_tried() -> None:
    assert sorted(AXES) == FILES
    for file, axes in AXES.items():
        assert list(inspect.signature(recipe(file).get_config).parameters) == list(axes), file


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
    elif dataset != "digits":
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


@pytest.mark.parametrize(("file", "axes"), CASES, ids=str)
def test_recipe_is_valid_survives_json_and_names_things_that_exist(file: str, axes: dict[str, Any]) -> None:
    config = get(file, **axes)
    validate(config)
    assert Config.from_json(config.to_json()) == config
    assert config.model.backbone in {*list_models(), *ABSENT}
    assert config.model.head in list_heads()
    assert config.data.dataset in {*RESIDENT, *STREAMED} or config.data.dataset.startswith(FOLDER)
    if axes:
        (axis, value), *_ = axes.items()
        sections = {"data": ("dataset", "classes", "image_size"), "run": ("seed", "epochs")}
        section = next((name for name, fields in sections.items() if axis in fields), "model")
        if axis not in ("form", "gpus", "path"):
            assert getattr(getattr(config, section), axis) == value


@pytest.mark.parametrize(
    ("file", "axes", "classes"),
    [
        ("bit_finetune", {"head": "identity"}, 10),
        ("bit_finetune", {"head": "identity", "dataset": "cars196"}, 196),
        ("cifar100_densenet_bc", {"head": "identity"}, 100),
        ("cifar100_resnet32", {"head": "identity", "maps": 100, "maps_shortcut": "A"}, 100),
        ("cifar100_resnet32", {"head": "identity", "classes": 64}, 64),
        ("digits", {"head": "identity"}, 10),
        ("folder", {"head": "identity", "backbone": "resnet50", "maps": 12}, 12),
        ("folder", {"head": "identity"}, 512),
        ("imagenet_mobilenet_v2", {"head": "identity"}, 1000),
        ("imagenet_resnet18", {"head": "identity"}, 1000),
        ("imagenet_resnet18", {"head": "identity", "classes": 512}, 512),
        ("imagenet_shufflenet_v2_x0_5", {"head": "identity", "classes": 100}, 100),
        ("megvii_shufflenet_v2", {"head": "identity"}, 1000),
        ("slim_mobilenet_v2", {"head": "identity"}, 1000),
        ("torchvision_imagenet", {"head": "identity"}, 1000),
        ("transfer", {"head": "identity"}, 196),
        ("transfer", {"head": "identity", "dataset": "oxford_flowers102", "backbone": "mobilenet_v2"}, 102),
    ],
)
def test_identity_recipe_can_be_built_for_its_classes(file: str, axes: dict[str, Any], classes: int) -> None:
    model = get(file, **axes).model
    built = create_model(model.backbone, num_classes=classes, head=model.head, **model.options())
    assert built.backbone.features >= classes
    assert model.maps in (None, classes)
    assert built.dropout == 0


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


# thesis, tables 4.1 to 4.3:
# optimiser, momentum, lr, schedule, milestones, gamma, weight decay, decayed, batch, epochs, smoothing
THESIS: dict[str, tuple[str, dict[str, Any], tuple[Any, ...]]] = {
    "ResNet-32": (
        "cifar100_resnet32",
        {},
        ("sgd", 0.9, 0.1, "multistep", (81, 122), 0.1, 1e-4, "all", 128, 164, 0.0),
    ),
    "DenseNet-BC": (
        "cifar100_densenet_bc",
        {},
        ("sgd", 0.9, 0.1, "multistep", (150, 225), 0.1, 1e-4, "all", 64, 300, 0.0),
    ),
    "ResNet-18": (
        "imagenet_resnet18",
        {},
        ("sgd", 0.9, 0.1, "multistep", (30, 60), 0.1, 1e-4, "all", 256, 90, 0.0),
    ),
    "MobileNetV2": (
        "imagenet_mobilenet_v2",
        {},
        ("rmsprop", 0.9, 0.02, "exponential", (), 0.98, 4e-5, "all", 256, 100, 0.0),
    ),
    "ShuffleNetV2": (
        "imagenet_shufflenet_v2_x0_5",
        {},
        ("sgd", 0.9, 0.5, "linear", (), 0.1, 4e-5, "all", 1024, 240, 0.0),
    ),
    **{
        f"transfer {backbone}": (
            "transfer",
            {"backbone": backbone},
            ("sgd", 0.9, 0.01, "multistep", (30,), 0.1, weight_decay, "all", 64, 40, 0.0),
        )
        for backbone, weight_decay in (
            ("resnet18", 1e-3),
            ("resnet50", 1e-4),
            ("mobilenet_v2", 1e-4),
            ("shufflenet_v2_x0_5", 1e-4),
        )
    },
}
# reference/recipes.md, sections 1 and 3, and the files that the headers name
SOURCES: dict[str, tuple[str, dict[str, Any], tuple[Any, ...]]] = {
    "bearpaw ResNet": (
        "bearpaw_cifar",
        {},
        ("sgd", 0.9, 0.1, "multistep", (81, 122), 0.1, 1e-4, "all", 128, 164, 0.0),
    ),
    "bearpaw DenseNet": (
        "bearpaw_cifar",
        {"backbone": "densenet_bc_100_12"},
        ("sgd", 0.9, 0.1, "multistep", (150, 225), 0.1, 1e-4, "all", 64, 300, 0.0),
    ),
    "bearpaw WRN": (
        "bearpaw_cifar",
        {"backbone": "wrn_28_10"},
        ("sgd", 0.9, 0.1, "multistep", (60, 120, 160), 0.2, 5e-4, "all", 128, 200, 0.0),
    ),
    "torchvision ResNet": (
        "torchvision_imagenet",
        {"backbone": "resnet50"},
        ("sgd", 0.9, 0.1, "step", (), 0.1, 1e-4, "all", 256, 90, 0.0),
    ),
    "torchvision MobileNetV2": (
        "torchvision_imagenet",
        {"backbone": "mobilenet_v2"},
        ("sgd", 0.9, 0.045, "step", (), 0.98, 4e-5, "all", 256, 300, 0.0),
    ),
    "megvii": (
        "megvii_shufflenet_v2",
        {},
        ("sgd", 0.9, 0.5, "linear", (), 0.1, 4e-5, "weights", 1024, 240, 0.1),
    ),
    "HarDNet": (
        "pingolh_hardnet",
        {},
        ("sgd", 0.9, 0.05, "cosine", (), 0.1, 6e-5, "all", 256, 150, 0.0),
    ),
    "BiT, CIFAR-10": (
        "bit_finetune",
        {},
        ("sgd", 0.9, 0.003, "hyperrule", (), 0.1, 0.0, "all", 512, 102, 0.0),
    ),
}


@pytest.mark.parametrize(("file", "axes", "numbers"), [*THESIS.values(), *SOURCES.values()], ids=[*THESIS, *SOURCES])
def test_numbers_are_those_of_the_source(file: str, axes: dict[str, Any], numbers: tuple[Any, ...]) -> None:
    config = get(file, **axes)
    optim = config.optim
    assert numbers == (
        optim.name,
        optim.momentum,
        optim.lr,
        optim.schedule,
        optim.milestones,
        optim.gamma,
        optim.weight_decay,
        optim.decay,
        config.data.batch_size,
        config.run.epochs,
        config.loss.label_smoothing,
    )
    assert optim.nesterov is (file == "pingolh_hardnet")
    assert optim.ema is None
    assert config.loss.name == "cross_entropy"
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


def test_default_form_of_rmsprop_is_torchvisions() -> None:
    assert get("imagenet_mobilenet_v2") == get("imagenet_mobilenet_v2", form="torchvision")


@pytest.mark.parametrize(("gpus", "batch", "lr"), [(8, 768, 0.36), (1, 96, 0.045)])
def test_slim_recipe(gpus: int, batch: int, lr: float) -> None:
    config = get("slim_mobilenet_v2", gpus=gpus)
    optim = config.optim
    assert (config.data.batch_size, optim.lr, config.run.epochs) == (batch, pytest.approx(lr, rel=1e-12), 420)
    assert (optim.name, optim.momentum, optim.alpha, optim.eps, optim.accumulator) == ("rmsprop_tf", 0.9, 0.9, 1.0, 1.0)
    assert (optim.weight_decay, optim.decay, optim.gamma) == (4e-5, "not_depthwise", 0.98)
    assert (optim.ema, optim.ema_every, optim.ema_warmup) == (0.9999, 1, True)
    assert (config.loss.label_smoothing, config.model.dropout) == (0.1, 0.2)
    assert (optim.schedule, optim.schedule_every, optim.step_size) == ("step", "step", 2.5)


def test_megvii_recipe_beside_its_optimiser() -> None:
    config = get("megvii_shufflenet_v2")
    assert config.optim.schedule_every == "step"
    assert config.run.recalibrate == 1250
    assert config.augment.jitter == (0.4, 0.4, 0.4, 0.0)
    assert config.model.bias is False
    assert config.model.dropout is None
    assert get("megvii_shufflenet_v2", backbone="shufflenet_v2_x2_0").model.dropout == 0.2
    assert config.data.mean == (0, 0, 0)
    assert config.data.std == (1 / 255, 1 / 255, 1 / 255)


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


RANDOM_RESIZED = ("random_resized", (0.08, 1.0), (3 / 4, 4 / 3))
"""torchvision's RandomResizedCrop: crop, crop_scale, crop_ratio."""
# recipes over streamed sets: crop, crop_scale, crop_ratio, image_size, resize, interpolation; all mirror
STREAMS: dict[str, tuple[str, dict[str, Any], tuple[Any, ...]]] = {
    "ResNet-18": ("imagenet_resnet18", {}, (*RANDOM_RESIZED, 224, 256, "bilinear")),
    "MobileNetV2": ("imagenet_mobilenet_v2", {}, (*RANDOM_RESIZED, 224, 256, "bilinear")),
    "ShuffleNetV2": ("imagenet_shufflenet_v2_x0_5", {}, (*RANDOM_RESIZED, 224, 256, "bilinear")),
    "torchvision": ("torchvision_imagenet", {}, (*RANDOM_RESIZED, 224, 256, "bilinear")),
    "HarDNet": ("pingolh_hardnet", {}, (*RANDOM_RESIZED, 224, 256, "bilinear")),
    "megvii": ("megvii_shufflenet_v2", {}, (*RANDOM_RESIZED, 224, 256, "bilinear")),
    # area from .05, but a tenth of the whole image must be covered; the middle 224 / 256 = .875 in testing
    "slim": ("slim_mobilenet_v2", {}, ("random_resized", (0.1, 1.0), (0.75, 1.33), 224, 256, "bilinear")),
    "Cars": ("transfer", {}, (*RANDOM_RESIZED, 224, 256, "bilinear")),
    "Flowers": ("transfer", {"dataset": "oxford_flowers102"}, (*RANDOM_RESIZED, 224, 256, "bilinear")),
    # in training too the middle square, which the step shifts by 16 pixels
    "BiT": ("bit_finetune", {"dataset": "cars196"}, ("none", (0.08, 1.0), (3 / 4, 4 / 3), 480, 480, "bilinear")),
    "folder": ("folder", {}, (*RANDOM_RESIZED, 224, None, "bilinear")),
}


def test_every_recipe_over_a_streamed_set_says_its_transforms() -> None:
    streamed = {file for file in FILES if get(file).data.dataset not in RESIDENT}
    assert streamed | {"bit_finetune"} == {file for file, _, _ in STREAMS.values()}


@pytest.mark.parametrize(("file", "axes", "expected"), STREAMS.values(), ids=STREAMS)
def test_streamed_images_are_cropped_and_resized_as_in_the_source(
    file: str, axes: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    config = get(file, **axes)
    data, augment = config.data, config.augment
    crop, scale, ratio, size, resize, interpolation = expected
    assert (augment.crop, augment.crop_scale, augment.crop_ratio) == (crop, scale, ratio)
    assert (data.image_size, data.resize, data.interpolation, data.pixels) == (size, resize, interpolation, "exact")
    assert (data.train_split, data.test_split, augment.flip) == (None, None, True)
    validate(config)
    test = ResizeCenterCrop(resize=resize or 256, size=size, interpolation=interpolation, channels=3)
    train = RandomResizedCrop(size, scale=scale, ratio=ratio, flip=True, interpolation=interpolation, channels=3)
    assert evaluation_transform(data, 3) == test
    assert training_transform(data, augment, 3) == (test if crop == "none" else train)
    left = step_augment(augment)  # for the step: what the stream has not done
    assert (left.flip, left.pad) == ((True, 16) if crop == "none" else (False, 0))
    assert left.jitter == ((0.4, 0.4, 0.4, 0.0) if file == "megvii_shufflenet_v2" else (0.0, 0.0, 0.0, 0.0))


def test_crops_of_resident_sets_stay_in_the_step() -> None:
    for dataset in ("cifar10", "cifar100"):
        config = get("bit_finetune", dataset=dataset)
        assert (config.augment.crop, config.data.image_size, config.data.resize) == ("none", 128, None)


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


def own_images(photo_folder: Path, workdir: Path) -> list[str]:
    """The command that the header gives, on tiny images."""
    command = ["train", str(ROOT / "configs" / "folder.py"), "--workdir", str(workdir)]
    command += ["--data.dataset", f"folder:{photo_folder}", "--data.image-size", "24", "--run.epochs", "1"]
    return [*command, "--model.backbone", "resnet8", "--model.head", "identity"]


def test_folder_takes_images_of_ones_own_by_flag(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Config] = []

    def stop(config: Config, *_: Any, **__: Any) -> None:
        given.append(config)
        raise UsageError("far enough")

    monkeypatch.setattr(loop, "train", stop)
    assert main(own_images(photo_folder, tmp_path)) == 2
    (config,) = given
    assert config.augment == get("folder").augment
    assert config.optim == get("folder").optim
    with set_up(config) as setup:
        assert setup.data.sizes == {"train": 32, "test": 12}
        assert setup.data.class_names == ("ant", "bee", "cat", "dog")
        assert setup.data.image_shape == (24, 24, 3)
        assert (setup.order.batch_size, setup.order.steps_per_epoch) == (64, 1)
        assert setup.program.mean == TORCHVISION[0]


@pytest.mark.slow
def test_folder_trains_on_images_of_ones_own(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(own_images(photo_folder, tmp_path)) == 0
    assert "test top-1 " in capsys.readouterr().out
    config = Config.from_json((tmp_path / "config.json").read_text())
    assert (config.data.dataset, config.data.image_size) == (f"folder:{photo_folder}", 24)
    assert (config.model.backbone, config.model.head, config.run.epochs) == ("resnet8", "identity", 1)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["step"], len(result["per_class"])) == (1, 4)


BEARPAW = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
TORCHVISION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("file", "constants", "size", "pad"),
    [
        ("cifar100_resnet32", BEARPAW, None, 4),
        ("cifar100_densenet_bc", BEARPAW, None, 4),
        ("bearpaw_cifar", BEARPAW, None, 4),
        ("imagenet_resnet18", TORCHVISION, 224, 0),
        ("imagenet_mobilenet_v2", TORCHVISION, 224, 0),
        ("imagenet_shufflenet_v2_x0_5", TORCHVISION, 224, 0),
        ("torchvision_imagenet", TORCHVISION, 224, 0),
        ("pingolh_hardnet", TORCHVISION, 224, 0),
        ("transfer", TORCHVISION, 224, 0),
        ("folder", (None, None), 224, 0),  # the set's own, which are torchvision's
        ("slim_mobilenet_v2", HALF, 224, 0),
        ("bit_finetune", HALF, 128, 16),
    ],
)
def test_images_are_normalised_and_cropped_as_in_the_source(
    file: str, constants: tuple[Any, Any], size: int | None, pad: int
) -> None:
    config = get(file)
    assert (config.data.mean, config.data.std) == constants
    assert (config.data.image_size, config.augment.pad) == (size, pad)


def rate(config: Config, examples: int, epoch: float) -> float:
    """Return the rate at the step nearest to a time in epochs."""
    steps = math.ceil(examples / config.data.batch_size)
    return learning_rate(config.optim, Timeline(steps, config.run.epochs, examples), round(epoch * steps))


@pytest.mark.parametrize(
    ("file", "axes", "examples", "rates"),
    [
        ("cifar100_resnet32", {}, 50_000, {0: 0.1, 80.99: 0.1, 81: 0.01, 121.99: 0.01, 122: 0.001, 163.99: 0.001}),
        ("cifar100_densenet_bc", {}, 50_000, {149.99: 0.1, 150: 0.01, 225: 0.001, 299.99: 0.001}),
        ("imagenet_resnet18", {}, IMAGENET, {29.99: 0.1, 30: 0.01, 60: 0.001, 89.99: 0.001}),
        ("imagenet_mobilenet_v2", {}, IMAGENET, {0.99: 0.02, 1: 0.0196, 2: 0.019208, 99.99: 2.7065215e-3}),
        (
            "imagenet_shufflenet_v2_x0_5",
            {},
            IMAGENET,
            {0: 0.5, 0.99: 0.5, 1: 0.49791667, 120: 0.25, 239.99: 2.08333333e-3},
        ),
        ("transfer", {}, 8_144, {0: 0.01, 29.99: 0.01, 30: 0.001, 39.99: 0.001}),
        ("bearpaw_cifar", {}, 50_000, {80.99: 0.1, 81: 0.01, 122: 0.001}),
        ("bearpaw_cifar", {"backbone": "wrn_28_10"}, 50_000, {59.99: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008}),
        ("torchvision_imagenet", {}, IMAGENET, {29.99: 0.1, 30: 0.01, 60: 0.001, 89.99: 0.001}),
        ("torchvision_imagenet", {"backbone": "mobilenet_v2"}, IMAGENET, {0: 0.045, 1: 0.0441, 299.99: 1.0710485e-4}),
        ("megvii_shufflenet_v2", {}, IMAGENET, {0: 0.5, 0.5: 0.49895833, 120: 0.25, 180: 0.125, 240: 0.0}),
        ("slim_mobilenet_v2", {}, IMAGENET, {0: 0.36, 2.49: 0.36, 2.51: 0.3528, 5.01: 0.345744, 419.9: 0.0123326709}),
        (
            "pingolh_hardnet",
            {},
            IMAGENET,
            {0: 0.05, 0.99: 0.05, 50: 0.0375, 75: 0.025, 100: 0.0125, 149.99: 5.482913129e-6},
        ),
    ],
    ids=str,
)
def test_rate_at_times_in_epochs(file: str, axes: dict[str, Any], examples: int, rates: dict[float, float]) -> None:
    config = get(file, **axes)
    for epoch, expected in rates.items():
        assert rate(config, examples, epoch) == pytest.approx(expected, rel=1e-7, abs=1e-15), epoch


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
