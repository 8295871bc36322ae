"""Projections of an activation to the pixels, against the paper's steps in numpy and against perturbed images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.models import taps
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.models.projection import deconvolve, receptive_field
from tests.models.drawn import drawn
from tests.tiers import quick

Network = tuple[Classifier, Any, Any]

tapping = jax.jit(taps.tap, static_argnums=(0, 3))


@pytest.fixture(scope="module")
def lenet() -> Network:
    """LeNet-5, variables that tell channels from each other, two images of noise."""
    model = create_model("lenet5", num_classes=4)
    images = np.random.default_rng(1).normal(size=(2, 28, 28, 1)).astype(np.float32)
    return model, drawn(model, 28, 28, 1), images


def convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return a convolution without padding of [h w c], in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (0, 1))  # [i j c k l]
    return np.einsum("ijckl,klcd->ijd", windows, kernel) + bias


def transposed(signal: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return what a convolution's filters put under each place of a signal [i j d]."""
    (i, j, _), (side, _, c, _) = signal.shape, kernel.shape
    pixels = np.zeros((i + side - 1, j + side - 1, c))
    for y, x in np.ndindex(i, j):
        pixels[y : y + side, x : x + side] += kernel @ signal[y, x]
    return pixels


def unpooled(signal: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return a signal [i j d] at the places of the maxima of 2x2 windows of `before`, the switches."""
    placed = np.zeros_like(before)
    for y, x, d in np.ndindex(*signal.shape):
        window = before[2 * y : 2 * y + 2, 2 * x : 2 * x + 2, d]
        row, column = np.unravel_index(window.argmax(), (2, 2))
        placed[2 * y + row, 2 * x + column, d] = signal[y, x, d]
    return placed


def test_an_activation_projects_as_the_paper_says(lenet: Network) -> None:
    """Filter, unpool, rectify, filter; the signal of the activation itself is not rectified, nor is the result."""
    model, variables, images = lenet
    layers = {
        name: {key: np.asarray(value, np.float64) for key, value in variables["params"]["backbone"][name].items()}
        for name in ("features_0", "features_3")
    }
    channels, positions = np.array([3, 11], np.int32), np.array([[0, 7], [4, 2]], np.int32)
    found = deconvolve(model, variables, images, "features_3", channels, positions)
    for image, channel, (y, x), one in zip(images.astype(np.float64), channels, positions, found, strict=True):
        first = np.maximum(convolved(image, **layers["features_0"]), 0)
        pooled = first.reshape(12, 2, 12, 2, 6).max((1, 3))
        second = convolved(pooled, **layers["features_3"])
        signal = np.zeros_like(second)
        signal[y, x, channel] = second[y, x, channel]
        rectified = np.maximum(unpooled(transposed(signal, layers["features_3"]["kernel"]), first), 0)
        expected = transposed(rectified, layers["features_0"]["kernel"])
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_it_is_not_the_gradient(lenet: Network) -> None:
    """The gradient passes where the activation was positive, whatever the sign of what comes back."""
    model, variables, images = lenet
    channels, positions = np.array([3, 3], np.int32), np.array([[5, 5], [5, 5]], np.int32)

    @jax.jit
    def gradient(images: jax.Array) -> jax.Array:
        output, pull = jax.vjp(lambda x: taps.tap(model, variables, x, ("features_3",)).outputs["features_3"], images)
        return pull(jnp.zeros_like(output).at[:, 5, 5, 3].set(output[:, 5, 5, 3]))[0]

    found = deconvolve(model, variables, images, "features_3", channels, positions)
    plain = gradient(images)
    assert float(np.abs(found - plain).max()) > 0.1 * float(np.abs(plain).max())


@pytest.mark.parametrize(
    ("name", "layer", "positions", "boxes"),
    [
        # A 5x5 convolution, a 2x2 pool, a 5x5 convolution: 5 + 1 + 4 * 2 pixels, in steps of 2.
        ("lenet5", "features_3", [[0, 0], [3, 4], [7, 7]], [[0, 0, 14, 14], [6, 8, 20, 22], [14, 14, 28, 28]]),
        ("lenet5", "classifier_2", [[0, 0]], [[0, 0, 28, 28]]),
        # 3x3 with padding 1, then 3x3 with padding 1 and stride 2: 5 pixels around the pixel 2 y.
        ("tests.tiny:Tiny", "conv2", [[0, 3], [2, 1]], [[0, 4, 3, 8], [2, 0, 7, 5]]),
        ("tests.tiny:Tiny", "", [[2, 1]], [[2, 0, 7, 5]]),
    ],
)
def test_receptive_fields_are_those_of_the_arithmetic(
    name: str, layer: str, positions: list[list[int]], boxes: list[list[int]]
) -> None:
    side = 28 if name == "lenet5" else 8
    model = create_model(name, num_classes=4)
    found = receptive_field(model, drawn(model, side, side, 1), (side, side, 1), layer, np.array(positions))
    assert found.tolist() == boxes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "box"),
    [
        # Araujo et al. 2019, "Computing receptive fields of convolutional neural networks": 7 after the stem, 11 after
        # its pool in steps of 4, and 8 more for each 3x3 convolution.
        ("resnet18", "layer1_0", [19, 19, 46, 46]),
        # Squeeze-and-excitation looks at the whole image.
        ("mobilenet_v3_small", "features_1", [0, 0, 64, 64]),
    ],
)
def test_receptive_fields_of_residual_and_squeezing_networks(name: str, layer: str, box: list[int]) -> None:
    model = create_model(name, num_classes=4)
    found = receptive_field(model, drawn(model, 64, 64, 3), (64, 64, 3), layer, np.array([[8, 8]]))
    assert found.tolist() == [box]


@pytest.mark.parametrize("name", quick(("lenet5", "tests.tiny:Tiny"), "tests.tiny:Tiny"))
def test_a_position_answers_to_no_pixel_outside_of_its_field(name: str) -> None:
    side, layer = (28, "features_3") if name == "lenet5" else (8, "conv2")
    model = create_model(name, num_classes=4)
    variables = drawn(model, side, side, 1)
    at = np.array([[1, 2], [3, 0]])
    random = np.random.default_rng(5)
    image = random.normal(size=(1, side, side, 1)).astype(np.float32)
    for (y, x), (y0, x0, y1, x1) in zip(at, receptive_field(model, variables, (side, side, 1), layer, at), strict=True):
        outside = random.normal(size=(1, side, side, 1)).astype(np.float32)
        outside[:, y0:y1, x0:x1] = image[:, y0:y1, x0:x1]
        inside = image.copy()
        inside[:, y0] += 9  # its first row, which the largest box must have
        before, same, other = (
            np.asarray(tapping(model, variables, one, (layer,)).outputs[layer])[0, y, x]
            for one in (image, outside, inside)
        )
        np.testing.assert_allclose(same, before, rtol=0, atol=1e-6 * np.abs(before).max())
        assert np.abs(other - before).max() > 1e-3 * np.abs(before).max()
