"""AlexNet and VGG slid over larger images, against torchvision's own networks, whose last layers are linear."""

import functools
import importlib
from typing import Any

import jax
import numpy as np
import pytest

from jaxclf.models.classifier import create_model
from jaxclf.models.dense import convolutionise
from jaxclf.models.torch_weights import load_torch

CLOSE = 1e-5
"""Of the spread of the logits: ours are float32, torchvision's float64."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("alexnet", 6), ("vgg11", 7)])
def test_linear_layers_slide_as_convolutions(name: str, side: int, torchvision: Any) -> None:
    """At 224 pixels the answer is the network's own; on a larger image that of every side x side part of its last map.

    It is not that of every crop of 224 pixels: the convolutions pad crops with zeros.
    """
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(0)
    module = getattr(torchvision.models, name)(weights=None).eval()
    for value in module.parameters():
        if value.ndim > 1:  # torch's own start gives hardly more than the biases
            torch.nn.init.kaiming_uniform_(value, nonlinearity="relu")
    module.double()
    image = torch.randn(1, 3, 288, 320).double()
    with torch.no_grad():
        features = module.features(image)
        turned = convolutions(module.classifier, side)(features).permute(0, 2, 3, 1).numpy()
        parts = by_part(lambda part: module.classifier(part.flatten(1)), features, side, 1)
        crops = by_part(module, image, 224, 64)
    model = create_model(name, num_classes=1000)
    state_dict = {key: value.float().numpy() for key, value in module.state_dict().items()}
    variables, images = load_torch(model, state_dict), image.float().permute(0, 2, 3, 1).numpy()
    answer = jax.jit(functools.partial(convolutionise(model).apply, method="class_maps"))
    maps, one = (np.asarray(answer(variables, part)) for part in (images, images[:, :224, :224]))
    spread = turned.std()
    assert maps.shape == (1, 3, 4, 1000)
    assert np.abs(turned[0, 0, 0] - turned[0, 1, 1]).max() > 0.1 * spread  # it depends on the window
    assert np.abs(maps - turned).max() < CLOSE * spread
    assert np.abs(maps - parts).max() < CLOSE * spread
    assert np.abs(one[0, 0, 0] - crops[0, 0, 0]).max() < CLOSE * spread
    assert np.abs(maps[:, ::2, ::2] - crops).max() > 0.1 * spread


def convolutions(classifier: Any, side: int) -> Any:
    """Return the layers with each Linear as a convolution, the first of side x side positions, all others of one."""
    nn: Any = importlib.import_module("torch.nn")
    layers = []
    for layer in classifier:
        if isinstance(layer, nn.Linear):
            conv = nn.Conv2d(layer.in_features // side**2, layer.out_features, side)
            conv.weight.data = layer.weight.data.reshape(conv.weight.shape)
            conv.bias.data = layer.bias.data
            layer, side = conv, 1
        layers.append(layer)
    return nn.Sequential(*layers).eval()


def by_part(answer: Any, whole: Any, side: int, step: int) -> np.ndarray:
    """Return the answers to every part of side x side positions [n y x k], one at a time."""
    tops, lefts = (range(0, length - side + 1, step) for length in whole.shape[2:])
    rows = [[answer(whole[:, :, y : y + side, x : x + side]).numpy() for x in lefts] for y in tops]
    return np.array(rows).transpose(2, 0, 1, 3)
