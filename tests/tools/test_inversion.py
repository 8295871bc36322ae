"""Inversion of features: the one image that there is is found; elsewhere the loss is the paper's, and falls."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from jaxclf.errors import UsageError
from jaxclf.models import taps
from jaxclf.models.backbone import Backbone
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.models.layers import conv
from jaxclf.tools.inversion import invert, invert_images
from tests.models.drawn import drawn
from tests.tools.test_activations import convolved

Network = tuple[Classifier, dict[str, Any]]


class Blocks(Backbone):
    """One convolution of 2x2 blocks that loses nothing: images [n h w 3] -> maps [n h/2 w/2 12]."""

    stem, last_conv, image_size, features = "conv1", "conv1", 8, 12

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n i j k"]:
        return conv(12, 2, stride=2, name="conv1")(images)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(4).normal(size=(2, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def tiny() -> Network:
    model = create_model("tests.tiny:Tiny", num_classes=4)
    return model, drawn(model, 8, 8, 3)


def test_an_orthogonal_layer_gives_the_image_back(images: np.ndarray) -> None:
    model = create_model(f"{__name__}:Blocks", num_classes=4)
    variables = drawn(model, 8, 8, 3)
    square, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))
    kernel = square.astype(np.float32).reshape(2, 2, 3, 12)
    variables["params"]["backbone"]["conv1"]["kernel"] = kernel
    blocks = images.reshape(2, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 4, 12)
    found = invert(
        model,
        variables,
        blocks @ square.astype(np.float32),
        "conv1",
        (8, 8, 3),
        steps=300,
        rate=0.2,
        bound=0.0,
        variation=0.0,
    )
    np.testing.assert_allclose(found.images, images, rtol=0, atol=1e-4)
    assert found.distances.max() < 1e-8


def test_the_loss_is_that_of_the_paper_with_means(tiny: Network, images: np.ndarray) -> None:
    model, variables = tiny
    kernel = variables["params"]["backbone"]["conv1"]["kernel"]
    target = np.stack([convolved(image, kernel) for image in images])
    given = {"steps": 1, "seed": 3, "bound": 40.0, "variation": 0.7}
    found = invert(model, variables, target.astype(np.float32), "conv1", (8, 8, 3), **given)
    start = np.asarray(0.1 * jax.random.normal(jax.random.key(3), (2, 8, 8, 3)), np.float64)
    for x, f0, loss in zip(start, target, found.losses[0], strict=True):
        distance = ((convolved(x, kernel) - f0) ** 2).sum() / (f0**2).sum()
        down, right = ((x[1:] - x[:-1]) ** 2).mean(), ((x[:, 1:] - x[:, :-1]) ** 2).mean()
        assert float(loss) == pytest.approx(distance + 40.0 * (x**6).mean() + 0.7 * (down + right), rel=1e-5)


@pytest.fixture(scope="module")
def features(tiny: Network, images: np.ndarray) -> Any:
    """The layers' outputs of the images."""
    tapped = jax.jit(functools.partial(taps.tap, tiny[0], paths=("bn1", taps.LAST)))
    return tapped(tiny[1], jnp.asarray(images)).outputs


@pytest.mark.parametrize("layer", ["bn1", taps.LAST])
def test_the_loss_falls_and_the_features_come_near(
    tiny: Network, images: np.ndarray, features: Any, layer: str
) -> None:
    found = invert(*tiny, features[layer], layer, (8, 8, 3), steps=150, rate=0.1, variation=1e-3)
    assert found.losses.shape == (150, 2)
    assert (found.losses[-1] < 0.05 * found.losses[0]).all()
    output = jax.jit(functools.partial(taps.tap, tiny[0], paths=(layer,)))(tiny[1], jnp.asarray(found.images))
    target, output = np.asarray(features[layer]), np.asarray(output.outputs[layer])
    distances = ((output - target) ** 2).sum((1, 2, 3)) / (target**2).sum((1, 2, 3))
    np.testing.assert_allclose(found.distances, distances, rtol=1e-3)
    assert distances.max() < 0.01


def test_the_same_seed_gives_the_same_images(tiny: Network, images: np.ndarray, features: Any) -> None:
    """Also by way of the images themselves."""
    found = invert(*tiny, features["bn1"], "bn1", (8, 8, 3), steps=10)
    np.testing.assert_array_equal(found.images, invert_images(*tiny, images, ["bn1"], steps=10)["bn1"].images)
    other = invert(*tiny, features["bn1"], "bn1", (8, 8, 3), steps=10, seed=1)
    assert np.abs(other.images - found.images).max() > 0.01


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps is 0 but must be at least 1"),
        ({"layer": "conv7"}, "unknown layer 'conv7'; did you mean 'conv"),
        (
            {"target": np.ones((1, 4, 4, 8), np.float32)},
            r"the target has the shape \(1, 4, 4, 8\), but layer 'conv1' an",
        ),
        ({"target": np.zeros((1, 8, 8, 8), np.float32)}, r"squared norms are \[0\.0\], but must be finite and above 0"),
        ({"target": np.full((1, 8, 8, 8), np.inf, np.float32)}, r"squared norms are \[inf\]"),
    ],
)
def test_what_cannot_be_inverted_is_refused(tiny: Network, given: dict[str, Any], said: str) -> None:
    given = {"target": np.ones((1, 8, 8, 8), np.float32), "layer": "conv1", "shape": (8, 8, 3)} | given
    with pytest.raises(UsageError, match=said):
        invert(*tiny, **given)
