"""Networks and pixels against torchvision 0.28 itself, where it is installed; it is no dependency of any extra.

pip install --no-deps torchvision==0.28.0
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxclf.data.transforms import TORCHVISION, preprocess
from jaxclf.models.backbone import Backbone
from jaxclf.models.classifier import create_model
from jaxclf.models.torch_weights import load_torch, to_torch
from tests.tiers import quick

NETWORKS = ["resnet18", "mobilenet_v2", "densenet121", "googlenet", "efficientnet_b0"]
NETWORKS += ["resnext50_32x4d", "squeezenet1_1", "mobilenet_v3_large", "inception_v3"]
THEIRS = {name: {"init_weights": False} for name in ("googlenet", "inception_v3")}
OURS = {"squeezenet1_1": {"head": "identity", "maps": 1000}}


@pytest.mark.parametrize("name", quick(NETWORKS, "resnet18"))
def test_answers_are_those_of_torchvisions_own_module(
    name: str, torchvision: Any, golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in float64: of these random statistics PyTorch's own float32 differs by 1.5e-4 of Inception v3's spread.

    Auxiliary classifiers, which both leave out of evaluations, are made to answer here.
    """
    model = create_model(name, num_classes=1000, **OURS.get(name, {}))
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(0)
    module = getattr(torchvision.models, name)(weights=None, **THEIRS.get(name, {}))
    many = golden.image((8, 3, model.backbone.image_size, model.backbone.image_size))
    images = many[:2]

    def answers(images: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            given = module(torch.from_numpy(images).to(next(module.parameters()).dtype))
        return [one.numpy() for one in (given if isinstance(given, tuple) else (given,))]

    settle(module, lambda: answers(many))
    module.eval().training = bool(model.backbone.auxiliary)  # its parts stay in evaluation
    variables = load_torch(model, {key: value.numpy().copy() for key, value in module.state_dict().items()})
    module.double()
    expected = answers(images)
    monkeypatch.setattr(
        Backbone, "last_layers", lambda self, _: tuple(one.clone(parent=None, name=None) for one in self.auxiliary)
    )
    apply = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (variables, images.transpose(0, 2, 3, 1)))
        logits, inner = jax.device_get(apply(*wide))
    beside = [inner["intermediates"]["backbone"][one.name]["logits"][0] for one in model.backbone.auxiliary_trained]
    results = [logits, *reversed(beside)]  # the deepest first, as there
    for result, one in zip(results, expected, strict=True):
        assert np.abs(one[0] - one[1]).max() > 1e-3 * one.std(1).min()  # it depends on the image
        assert np.abs(result - one).max() < 1e-9 * one.std(1).min()
    module.load_state_dict({key: torch.from_numpy(value) for key, value in to_torch(model, variables).items()})
    for again, one in zip(answers(images), expected, strict=True):
        np.testing.assert_array_equal(again, one)


def settle(module: Any, answers: Callable[[], Any]) -> None:
    """Give BatchNorms the statistics of what they see, without which deep networks give hardly more than a bias."""
    for part in module.modules():
        if hasattr(part, "running_var"):
            part.momentum = 1.0
    module.train()
    answers()


@pytest.mark.parametrize("size", [(600, 400), (301, 457), (224, 900), (256, 256), (150, 90)])
def test_the_input_of_a_network_is_torchvisions(size: tuple[int, int], torchvision: Any) -> None:
    transforms = importlib.import_module("torchvision.transforms")
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    steps.append(transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = transforms.Compose(steps)(image).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(preprocess(image, TORCHVISION), expected)
