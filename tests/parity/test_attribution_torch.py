"""Grad-CAM, Grad-CAM++ and input gradients beside PyTorch's autograd, in float64."""

import importlib
from typing import Any

import jax
import numpy as np
import pytest

from jaxclf import create_model, load_torch
from jaxclf.models.attribution import attribute
from tests.parity.test_torchvision import settle
from tests.tiers import quick

CLASSES = np.array([[1, 7], [4, 0]])
LAYERS = [("resnet18", None, "layer4"), ("resnet18", "layer3_1", "layer3"), ("efficientnet_lite0", None, "last")]
LAYERS += [("efficientnet_lite0", "_blocks_8", "_blocks.8")]


def made(name: str) -> Any:
    """Return PyTorch's module of a network."""
    if name == "efficientnet_lite0":
        return importlib.import_module("tests.parity.zoo_twins").Lite0()
    return importlib.import_module("torchvision.models").resnet18(num_classes=10)


def theirs(module: Any, layer: str, images: Any, classes: np.ndarray) -> dict[str, np.ndarray]:
    """Return the maps [n t i j] of the three methods, as the papers write them."""
    torch: Any = importlib.import_module("torch")
    taken: list[Any] = []
    hook = module.get_submodule(layer).register_forward_hook(lambda _module, _given, out: taken.append(out))
    images.requires_grad_(True)
    logits = module(images)
    hook.remove()
    (outputs,) = taken
    maps: dict[str, list[Any]] = {"grad_cam": [], "grad_cam_plus_plus": [], "gradient": []}
    for chosen in classes.T:
        total = logits[torch.arange(len(chosen)), torch.from_numpy(chosen.copy())].sum()
        g, pixels = torch.autograd.grad(total, (outputs, images), retain_graph=True)
        maps["grad_cam"].append((g.mean((2, 3), keepdim=True) * outputs).sum(1).relu())
        below = 2 * g**2 + outputs.sum((2, 3), keepdim=True) * g**3
        alpha = torch.where(below == 0, 0, g**2 / torch.where(below == 0, 1, below))
        weights = (alpha * g.relu()).sum((2, 3), keepdim=True)
        maps["grad_cam_plus_plus"].append((weights * outputs).sum(1).relu())
        maps["gradient"].append(pixels.abs().amax(1))
    return {method: torch.stack(found, 1).detach().numpy() for method, found in maps.items()}


@pytest.mark.parametrize(("name", "ours", "layer"), quick(LAYERS, LAYERS[1]))
def test_maps_of_gradients_are_pytorchs(name: str, ours: str | None, layer: str, torchvision: Any, golden: Any) -> None:
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(0)
    module = made(name)
    images = golden.image((8, 3, 64, 64))
    with torch.no_grad():
        settle(module, lambda: module(torch.from_numpy(images)))
    module.eval()
    model = create_model(name, num_classes=10)
    variables = load_torch(model, {key: value.numpy().copy() for key, value in module.state_dict().items()})
    module.double()
    expected = theirs(module, layer, torch.from_numpy(images[:2]).double(), CLASSES)
    with jax.enable_x64(True):
        wide, pixels = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float64), (variables, images[:2].transpose(0, 2, 3, 1))
        )
        for method, one in expected.items():
            taken = ours if method != "gradient" else None
            found = attribute(model, wide, pixels, CLASSES, method=method, layer=taken)
            assert one.max() > 0
            assert np.abs(found - one).max() < 1e-9 * np.abs(one).max(), method
