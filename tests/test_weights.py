"""Weights: PyTorch state dicts both ways, transfer to another head, weight files, published weights, torchvision."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util

from jaxclf.backbones import list_models
from jaxclf.classifier import Classifier, create_model
from jaxclf.config import UsageError
from jaxclf.matrices import matrix
from jaxclf.torch_weights import load_torch, to_torch, transfer_torch

StateDict = dict[str, np.ndarray]
LENETS = {"lenet5_seed001": "lenet5_sigmoid", "lenet5_seed004": "lenet5", "lenetlike_seed004": "lenet_like"}
SHORTCUTS = {"c": "hadamard", "d": "orthoplex", "e": "signed_identity", "f": "hypercube", "g": "hypercube_random"}
QUICK = [
    *LENETS,
    *("resnet20_cifar10_A", "resnet20_cifar100_B", "rn32_cf100_exa_fixed_eye_no_bias", "rn32_cf100_exb"),
    *(f"rn32_cf100_ex{letter}" for letter in SHORTCUTS),
    *("densenetbc100_12_cifar10", "resnet18_tv", "mobilenet_v2_tv", "shufflenet_v2_x0_5_tv"),
    "efficientnet_lite0_mlill",
]
"""One reference network of each structure that costs seconds; the others are in the slow tier."""


@functools.cache
def model_of(name: str) -> Classifier:
    """The classifier whose parameters a reference network has."""
    if name in LENETS:
        return create_model(LENETS[name], num_classes=10)
    if match := re.fullmatch(r"(resnet\d+)_cifar(10+)_(.)", name):
        return create_model(match[1], num_classes=int(match[2]), shortcut=match[3])
    if match := re.fullmatch(r"densenetbc(\d+)_(\d+)_cifar(10+)", name):
        return create_model(f"densenet_bc_{match[1]}_{match[2]}", num_classes=int(match[3]))
    if match := re.match("rn32_cf100_ex(.)", name):
        head, bias = "identity" if "eye" in name else "learned", "no_bias" not in name
        return create_model("resnet32", num_classes=100, head=head, bias=bias, maps=100, maps_shortcut=match[1].upper())
    return create_model(name.removesuffix("_tv").removesuffix("_mlill"), num_classes=1000)


def frozen(name: str) -> StateDict:
    """The tensors of a reference network that nobody trains."""
    found = {"fc.weight": np.eye(100, dtype=np.float32)} if "eye" in name else {}
    if match := re.match("rn32_cf100_ex([c-g])", name):
        rows = matrix(SHORTCUTS[match[1]], 100, 64, 7).astype(np.float32)
        found["layer3.4.shortcut.0.weight"] = rows[:, :, None, None]
    return found


@pytest.fixture(scope="module")
def state_dict(golden: Any, reference: dict[str, Any]) -> Callable[[str], StateDict]:
    def fill(name: str) -> StateDict:
        if name not in reference:
            pytest.skip(f"golden/reference.json has no {name}")
        return golden.state_dict(reference[name]["state_dict"]) | frozen(name)

    return fill


def check_round_trip(name: str, given: StateDict) -> None:
    model = model_of(name)
    variables = load_torch(model, given)
    result = to_torch(model, variables)
    expected = {key: value for key, value in given.items() if not ("eye" in name and key == "fc.weight")}
    assert set(result) == set(expected)
    for key, value in expected.items():
        assert (result[key].dtype, result[key].shape) == (value.dtype, value.shape), key
        assert result[key].tobytes() == value.tobytes(), key
        assert result[key].flags.c_contiguous, key
    again = traverse_util.flatten_dict(load_torch(model, result))
    for path, value in traverse_util.flatten_dict(variables).items():
        np.testing.assert_array_equal(again[path], value)


@pytest.mark.parametrize("name", QUICK)
def test_a_state_dict_comes_back_to_the_bit(name: str, state_dict: Callable[[str], StateDict]) -> None:
    check_round_trip(name, state_dict(name))


@pytest.mark.slow
def test_every_state_dict_comes_back_to_the_bit(
    state_dict: Callable[[str], StateDict], reference: dict[str, Any]
) -> None:
    names = [name for name in reference if name not in QUICK]
    assert len(names) >= 40
    for name in names:
        check_round_trip(name, state_dict(name))
