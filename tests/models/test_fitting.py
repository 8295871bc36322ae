"""A state dict of another network: the error names the network that its keys and shapes fit."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.models.torch_weights import load_torch, transfer_torch
from tests.models.drawn import drawn
from tests.tiers import quick

GOLDEN = Path(__file__).parents[1] / "golden"
REFERENCE = json.loads((GOLDEN / "reference.json").read_text())
SIBLINGS = [
    # reference network, ours that it is, ours that is asked to load it
    ("resnet20_cifar10_A", "resnet20", "resnet44"),
    ("resnet34_tv", "resnet34", "resnet18"),
    ("resnet101_tv", "resnet101", "resnet50"),
    ("wide_resnet50_2_tv", "wide_resnet50_2", "resnet50"),
    ("resnext50_32x4d_tv", "resnext50_32x4d", "wide_resnet101_2"),
    ("resnet18_tv", "resnet18", "vgg11"),
    ("vgg16_tv", "vgg16", "vgg16_bn"),
    ("vgg16_bn_tv", "vgg16_bn", "vgg13"),
    ("densenet169_tv", "densenet169", "densenet121"),
    ("squeezenet1_0_tv", "squeezenet1_0", "squeezenet1_1"),
    ("efficientnet_b1_tv", "efficientnet_b1", "efficientnet_b0"),
    ("mobilenet_v3_small_tv", "mobilenet_v3_small", "mobilenet_v3_large"),
    ("mobilenet_v2_tonylins", "mobilenet_v2_tonylins", "mobilenet_v2"),
    ("shufflenet_v2_x1_0_tv", "shufflenet_v2_x1_0", "shufflenet_v2_x0_5"),
    ("googlenet_tv_aux", "googlenet", "googlenet_5x5"),
    ("se_resnet50_timm", "seresnet50", "se_resnet50"),
    ("lenet5_seed004", "lenet5", "lenet_like"),
]


def tensors(reference: str) -> dict[str, np.ndarray]:
    """Return a state dict of zeros with the keys and shapes of a reference network."""
    records = [REFERENCE, *(json.loads(file.read_text()) for file in sorted((GOLDEN / "zoo").glob("*.json")))]
    record = next(one[reference] for one in records if reference in one)
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in record["state_dict"]}


def refused(backbone: str, state_dict: dict[str, np.ndarray], **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load_torch(create_model(backbone, **{"num_classes": 1000, **options}), state_dict)
    return str(caught.value)


@pytest.mark.parametrize(("reference", "name", "asked"), quick(SIBLINGS, SIBLINGS[6], SIBLINGS[-1]))
def test_the_network_whose_file_it_is_is_named(reference: str, name: str, asked: str) -> None:
    assert refused(asked, tensors(reference)).endswith(f"; it fits {name}")


def test_a_file_that_fits_no_network_names_none() -> None:
    given = tensors("resnet20_cifar10_A")
    del given["layer2.1.bn1.bias"]
    text = refused("resnet8", given, num_classes=10)
    assert re.search("unexpected layer3.2.bn2.running_var|and [0-9]+ more$", text)
    assert "fits" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "options", "said"),
    [
        ("resnet20_cifar10_A", {"num_classes": 7}, "with 10 classes"),
        ("resnet20_cifar10_A", {"num_classes": 10, "maps": 10, "head": "identity"}, "without maps"),
        ("resnet20_cifar10_A", {"num_classes": 7, "maps": 7}, "with 10 classes and without maps"),
        ("resnet20_cifar10_A", {"num_classes": 10, "bias": False}, ", but the last layer is another: linear.weight"),
        ("googlenet_tv_aux", {"auxiliary": False}, "with auxiliary classifiers"),
        ("googlenet_tv", {"auxiliary": True}, "without auxiliary classifiers"),
    ],
    ids=lambda one: str(one) if isinstance(one, str) else "",
)
def test_a_file_of_the_same_network_says_what_is_otherwise(reference: str, options: dict[str, Any], said: str) -> None:
    text = refused(reference.split("_")[0], tensors(reference), **options)
    assert re.search(rf"; its backbone fits this network,? ?{re.escape(said.removeprefix(', '))}", text)


@pytest.mark.slow
def test_starting_from_another_networks_file_names_it_too() -> None:
    model = create_model("resnet18", num_classes=7)
    with pytest.raises(UsageError, match=r"does not fit the model's backbone in .*; it fits resnet34$"):
        transfer_torch(model, drawn(model, 32, 32, 3), tensors("resnet34_tv"))
