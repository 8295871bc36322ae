"""Networks and pixels against torchvision 0.28 itself, where it is installed; it is no dependency of any extra.

pip install --no-deps torchvision==0.28.0
"""

import importlib
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxclf.data.transforms import TORCHVISION, preprocess
from jaxclf.models.classifier import create_model
from jaxclf.models.torch_weights import load_torch, to_torch
from tests.tiers import quick


@pytest.mark.parametrize("name", quick(["resnet18", "mobilenet_v2", "densenet121"], "resnet18"))
def test_answers_are_those_of_torchvisions_own_module(name: str, torchvision: Any, golden: Any) -> None:
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(0)
    module = getattr(torchvision.models, name)(weights=None).eval()
    images = golden.image((2, 3, 224, 224))
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    model = create_model(name, num_classes=1000)
    variables = load_torch(model, {key: value.numpy() for key, value in module.state_dict().items()})
    result = np.asarray(jax.jit(model.apply)(variables, images.transpose(0, 2, 3, 1)))
    assert np.abs(result - expected).max() < 1e-4 * expected.std(1).min()
    back = {key: torch.from_numpy(value) for key, value in to_torch(model, variables).items()}
    module.load_state_dict(back)
    with torch.no_grad():
        np.testing.assert_array_equal(module(torch.from_numpy(images)).numpy(), expected)


@pytest.mark.parametrize("size", [(600, 400), (301, 457), (224, 900), (256, 256), (150, 90)])
def test_the_input_of_a_network_is_torchvisions(size: tuple[int, int], torchvision: Any) -> None:
    transforms = importlib.import_module("torchvision.transforms")
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    steps.append(transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = transforms.Compose(steps)(image).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(preprocess(image, TORCHVISION), expected)
