"""Every recipe in configs/: its header and axes; it can be built and takes a step. test_sources.py: its numbers."""

import inspect
import math
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
from jaxclf.errors import UsageError
from jaxclf.training import loop
from jaxclf.training.optim import transformation
from jaxclf.training.schedules import Timeline
from jaxclf.training.setup import set_up
from tests.recipes.files import FILES, ROOT, get, recipe

CLASSES = {"cars196": 196, "oxford_flowers102": 102}
"""Classes of sets that the package has no facts of."""
HEADS = ("learned", "orthogonal", "hadamard", "identity")
# values of the axes whose kind of value does not follow from their name
AXES: dict[str, dict[str, tuple[Any, ...]]] = {
    "bearpaw_cifar": {"backbone": ("resnet110", "densenet_bc_190_40", "wrn28_10"), "dataset": ("cifar100",)},
    "bit_finetune": {"dataset": ("cifar100", *CLASSES, "imagenet2012"), "backbone": ("bit_r152x4", "resnet18")},
    "cifar100_resnet32": {"classes": (64,), "maps": (100,), "maps_shortcut": (None,)},
    "digit_pairs": {"neck": (None,)},
    "efficientnet": {
        "backbone": ("efficientnet_b0_lukemelas", *(f"efficientnet_b{number}" for number in range(1, 8))),
        "batch_size": (256,),
    },
    "fashion_mnist": {"backbone": ("lenet5",)},
    "folder": {"path": ("pictures",), "backbone": ("resnet50", "mobilenet_v2"), "maps": (12,), "image_size": (160,)},
    "googlenet": {"backbone": ("googlenet", "googlenet_5x5"), "form": ("paper", "quick")},
    "imagenet_mobilenet_v2": {"classes": (100,), "form": ("torchvision", "torch", "tensorflow")},
    "imagenet_resnet18": {"classes": (8, 16, 32, 64, 100, 128, 256, 512)},
    "imagenet_shufflenet_v2_x0_5": {"classes": (100,)},
    "megvii_shufflenet_v2": {"backbone": ("shufflenet_v2_x1_0", "shufflenet_v2_x2_0")},
    "mobilenet_v1": {"form": ("wjc", "slim")},
    "once_for_all": {
        "backbone": ("ofa_mbv3_w1_2",),
        "phase": ("kernel", "depth_1", "depth_2", "width_1", "width_2"),
    },
    "pingolh_hardnet": {"backbone": ("hardnet39ds", "hardnet68ds", "hardnet85")},
    "torchvision_imagenet": {"backbone": ("resnet152", "mobilenet_v2")},
    "transfer": {
        "backbone": ("resnet50", "mobilenet_v2", "shufflenet_v2_x0_5"),
        "dataset": ("oxford_flowers102",),
    },
    "wrn": {"backbone": ("wrn40_2",), "dataset": ("cifar100",), "form": ("authors", "xternalz")},
}
COMMON = {"head": HEADS, "seed": (7,), "weights": ("my.safetensors",), "epochs": (3,), "gpus": (1,)}
REBUILT = {"cifar100_resnet32": {"maps": 100, "maps_shortcut": "A"}, "folder": {"maps": 12, "backbone": "resnet50"}}
"""Axes beside identity, where the recipe does not rebuild the network by itself."""


def cases() -> list[tuple[str, dict[str, Any]]]:
    """List every recipe as it is, with each value of each axis, and under identity with each network, set, subset."""
    found: list[tuple[str, dict[str, Any]]] = [(file, {}) for file in FILES]
    for file in FILES:
        identity = {"head": "identity"} | REBUILT.get(file, {})
        for axis in inspect.signature(recipe(file).get_config).parameters:
            values = [(axis, value) for value in (COMMON | AXES.get(file, {}))[axis]]
            found += [(file, identity if value == "identity" else {axis: value}) for axis, value in values]
            if axis in ("backbone", "dataset", "classes", "form") and file not in ("bearpaw_cifar", "folder"):
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
    elif dataset not in ("digits", "digit_pairs", "digit_scenes"):  # which ship with the package
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
    # a warm-up, and the hyperrule has its own, starts at rate 0
    assert (min(moved) > 0) is (config.optim.schedule != "hyperrule" and not config.optim.warmup)


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
        ("efficientnet", {"backbone": "resnet50"}, "unknown backbone 'resnet50'"),
        ("wrn", {"dataset": "mnist"}, "unknown data set 'mnist'"),
        ("bearpaw_cifar", {"backbone": "vgg19_bn"}, "unknown family 'vgg19_bn'"),
        ("torchvision_imagenet", {"backbone": "vgg19_bn"}, "unknown family 'vgg19_bn'"),
    ],
)
def test_axis_without_a_number_in_its_source_is_refused(file: str, axes: dict[str, Any], given: str) -> None:
    with pytest.raises(UsageError) as error:
        get(file, **axes)
    assert str(error.value).startswith(given)


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
        assert setup.program.mean == (0.485, 0.456, 0.406)  # torchvision's
