"""Activations of image files: which layers and channels, and the numbers against a convolution written out."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxclf.data.transforms import Preprocessing
from jaxclf.errors import UsageError
from jaxclf.models import taps
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.tools.activations import activations, filters, pixels, require_maps, stages
from tests.models.drawn import drawn

PREPARED = Preprocessing(8, 8, None, "bilinear", (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def shapes(name: str, side: int, channels: int = 3) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the layers of a network, of which nothing is computed."""
    return taps.layers(create_model(name, num_classes=10), (1, side, side, channels))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (("lenet5", 28, 1), "features_0 features_3 classifier_0 -"),
        (("resnet8", 32), "layer1_0 layer2_0 -"),
        (("alexnet", 224), "features_0 features_3 features_10 classifier_1 -"),
        (("vgg11", 224), "features_0 features_3 features_8 features_13 features_18 classifier_0 -"),
        (("squeezenet1_1", 224), "features_0 features_4 features_7 -"),
    ],
)
def test_stages_are_the_last_layers_at_each_size_and_the_linear_ones(network: tuple[Any, ...], expected: str) -> None:
    assert stages(shapes(*network)) == expected.replace("-", taps.LAST).split(" ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "bn1 layer1_1 layer2_1 layer3_1 -"),
        ("efficientnet_lite0", "_blocks_0 _blocks_2 _blocks_4 _blocks_10 -"),
        ("densenet121", "features/norm0 features/denseblock1 features/denseblock2 features/denseblock3 -"),
    ],
)
def test_stages_of_deeper_networks(name: str, expected: str) -> None:
    assert stages(shapes(name, 224)) == expected.replace("-", taps.LAST).split(" ")


@pytest.fixture(scope="module")
def network() -> tuple[Classifier, dict[str, Any]]:
    model = create_model("tests.tiny:Tiny", num_classes=5)
    return model, drawn(model, 8, 8, 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pictures, and between them a broken file."""
    path, random = tmp_path_factory.mktemp("images"), np.random.default_rng(3)
    for name in ("a", "c"):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path / f"{name}.png")
    (path / "b.png").write_text("no image")
    return [path / f"{name}.png" for name in "abc"]


def convolved(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return a 3x3 convolution with padding 1, in float64."""
    padded = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))  # [h w c k l]
    return np.einsum("hwckl,klcd->hwd", windows, kernel.astype(np.float64))


def test_the_strongest_channels_come_first_and_a_broken_file_is_named(
    network: tuple[Classifier, dict[str, Any]], files: list[Path]
) -> None:
    model, variables = network
    first, broken, last = activations(model, variables, PREPARED, files, ["conv1"], channels=3)
    assert (broken.file, broken.image, broken.layers) == (str(files[1]), None, ())
    assert broken.error == "no image format that PIL knows"
    assert (first.error, last.error) == (None, None)
    for file, found in ((files[0], first), (files[2], last)):
        assert found.image is not None
        np.testing.assert_array_equal(pixels(found.image, PREPARED), np.asarray(Image.open(file)))
        expected = convolved(found.image, variables["params"]["backbone"]["conv1"]["kernel"])
        (maps,) = found.layers
        assert (maps.path, maps.of, maps.values.shape) == ("conv1", 8, (8, 8, 3))
        assert maps.channels.tolist() == np.argsort(-expected.mean((0, 1)))[:3].tolist()
        np.testing.assert_allclose(maps.values, expected[..., maps.channels], rtol=0, atol=1e-6)


def test_a_layer_without_more_channels_has_them_in_their_order(
    network: tuple[Classifier, dict[str, Any]], files: list[Path]
) -> None:
    (found,) = activations(*network, PREPARED, files[:1], channels=8)
    assert [(maps.path, maps.channels.tolist()) for maps in found.layers] == [("bn1", [*range(8)]), ("", [*range(8)])]


def test_outputs_that_are_not_finite_are_no_picture(
    network: tuple[Classifier, dict[str, Any]], files: list[Path]
) -> None:
    model, variables = network
    broken = jax.tree.map(lambda leaf: leaf, variables)
    broken["params"]["backbone"]["conv1"]["kernel"] = np.full((3, 3, 3, 8), np.nan, np.float32)
    (found,) = activations(model, broken, PREPARED, files[:1], ["conv1"])
    assert (found.error, found.layers) == ("outputs of conv1 are not finite", ())


def test_filters_share_one_scale_around_grey(network: tuple[Classifier, dict[str, Any]]) -> None:
    model, variables = network
    kernel = variables["params"]["backbone"]["conv1"]["kernel"]  # [3 3 3 8]
    drawn_filters = filters(model, variables)
    assert (drawn_filters.shape, drawn_filters.dtype) == ((8, 3, 3, 3), np.uint8)
    y, x, c, d = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    assert drawn_filters[d, y, x, c] == (255 if kernel[y, x, c, d] > 0 else 0)
    expected = 127.5 + 127.5 * kernel[1, 2, :, 4] / np.abs(kernel).max()
    np.testing.assert_allclose(drawn_filters[4, 1, 2], expected, rtol=0, atol=0.51)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"channels": 0}, "channels is 0 but must be at least 1"),
        ({"layers": ["conv3"]}, "unknown layer 'conv3'; did you mean 'conv"),
        ({"preprocessing": Preprocessing(8, 8, None, "bilinear", (0.5,), (0.5,))}, "the model takes images of 3 chan"),
    ],
)
def test_what_cannot_be_is_refused(
    network: tuple[Classifier, dict[str, Any]], files: list[Path], given: dict[str, Any], said: str
) -> None:
    given = {"preprocessing": PREPARED, "files": files} | given
    with pytest.raises(UsageError, match=said):
        activations(*network, **given)


def test_a_layer_that_is_no_map_is_refused() -> None:
    with pytest.raises(UsageError, match=r"layer 'fc' answers with the shape \(1, 5\), but must with a map"):
        require_maps({"fc": jax.ShapeDtypeStruct((1, 5), jnp.float32)}, ["fc"])


def test_pictures_too_small_for_the_network_are_said_before_anything_is_compiled(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, small = create_model("lenet5", num_classes=10), Preprocessing(None, 20, None, "bilinear", (0.5,), (0.5,))
    variables = drawn(model, 28, 28, 1)
    monkeypatch.setattr(jax, "jit", None)  # a call of it would be a TypeError
    with pytest.raises(UsageError, match="lenet5 takes images of 28x28 and larger; got 20x20"):
        activations(model, variables, small, files)
