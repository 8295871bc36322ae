"""The strongest images of a channel, against a sort of all outputs at once; the command and its page."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxclf.cli.main import main
from jaxclf.config import DataConfig
from jaxclf.errors import UsageError
from jaxclf.models import taps
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.report.channel_pictures import crop
from jaxclf.tools.strongest import look_up, strongest
from jaxclf.training.weights import WeightRecord, Weights, write
from tests.models.drawn import drawn
from tests.tools.test_activations import PREPARED

TINY = "tests.tiny:Tiny"
CHANNELS = (6, 0, 3)


@pytest.fixture(scope="module")
def network() -> tuple[Classifier, dict[str, Any]]:
    model = create_model(TINY, num_classes=4)
    return model, drawn(model, 8, 8, 3)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Ten images, of which 2, 5 and 7 are the same."""
    images = np.random.default_rng(2).normal(size=(10, 8, 8, 3)).astype(np.float32)
    images[[5, 7]] = images[2]
    return images


def batches(images: np.ndarray, size: int = 4) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches of one size; ones, which some channel would take for its strongest, fill up the last."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        filled = np.concatenate([part, np.full((size - len(part), 8, 8, 3), 50, np.float32)])
        yield filled, np.zeros(len(part), np.int32)


def answers(model: Classifier, variables: dict[str, Any], images: np.ndarray) -> np.ndarray:
    """Return all outputs of conv2."""
    tapped = jax.jit(taps.tap, static_argnums=(0, 3))(model, variables, images, ("conv2",))
    return np.asarray(tapped.outputs["conv2"])


@pytest.mark.parametrize("top", [3, 10])
def test_the_largest_outputs_are_found_and_ties_go_to_the_lower_number(
    network: tuple[Classifier, dict[str, Any]], images: np.ndarray, top: int
) -> None:
    outputs = answers(*network, images)
    found = strongest(*network, batches(images), "conv2", CHANNELS, top=top)
    assert found.values.shape == (3, top)
    for m, channel in enumerate(CHANNELS):
        flat = outputs[..., channel].reshape(10, 16)
        order = np.argsort(-flat.max(1), kind="stable")[:top]
        assert found.images[m].tolist() == order.tolist()
        assert found.positions[m].tolist() == [[flat[n].argmax() // 4, flat[n].argmax() % 4] for n in order]
        np.testing.assert_allclose(found.values[m], flat.max(1)[order], rtol=0, atol=1e-6)
        same = [number for number in found.images[m].tolist() if number in (2, 5, 7)]
        assert same == sorted(same)


def test_of_equal_positions_the_first_is_taken(network: tuple[Classifier, dict[str, Any]]) -> None:
    """Equal images everywhere: all positions away from the edge are equal, and so are the edge's among themselves."""
    found = strongest(*network, batches(np.ones((2, 8, 8, 3), np.float32)), "conv2", (1, 4))
    assert found.images.tolist() == [[0, 1]] * 2  # two images in all: no more are made up
    outputs = answers(*network, np.ones((4, 8, 8, 3), np.float32))[0]
    for channel, places in zip((1, 4), found.positions, strict=True):
        first = np.unravel_index(outputs[..., channel].argmax(), (4, 4))
        assert places.tolist() == [[*first], [*first]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"top": 0}, "top is 0 but must be at least 1"),
        ({"layer": "conv9"}, "unknown layer 'conv9'; did you mean 'conv"),
        ({"channels": (0, 8, -1)}, r"channels \[-1, 8\] given, but layer 'conv2' has 0 to 7"),
        ({"batches": ()}, "there is no image to choose from"),
        (
            {"batches": [(np.full((1, 8, 8, 3), np.nan, np.float32), np.zeros(1, np.int32))]},
            "outputs of layer 'conv2' are",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    network: tuple[Classifier, dict[str, Any]], images: np.ndarray, given: dict[str, Any], said: str
) -> None:
    given = {"batches": batches(images), "layer": "conv2", "channels": CHANNELS} | given
    with pytest.raises(UsageError, match=said):
        strongest(*network, **given)


@pytest.fixture(scope="module")
def weights(network: tuple[Classifier, dict[str, Any]]) -> Weights:
    return Weights(*network, WeightRecord(TINY, 4, preprocessing=PREPARED))


def test_what_is_looked_up_are_the_images_of_the_set(photo_folder: Path, weights: Weights) -> None:
    """The answer of each image, asked alone, is the value that was found; fields and projections lie around it."""
    looked = look_up(weights, DataConfig(f"folder:{photo_folder}"), "conv2", (5, 1), top=4, deconvolved=True)
    assert looked.inputs.shape == (2, 4, 8, 8, 3)
    assert looked.projected is not None
    for m, channel in enumerate((5, 1)):
        outputs = answers(weights.model, weights.variables, looked.inputs[m])
        np.testing.assert_allclose(outputs[..., channel].max((1, 2)), looked.found.values[m], rtol=0, atol=1e-6)
        for (y, x), (y0, x0, y1, x1), share, back in zip(
            looked.found.positions[m], looked.boxes[m], looked.shares[m], looked.projected[m], strict=True
        ):
            assert [y0, x0, y1, x1] == [max(0, 2 * y - 2), max(0, 2 * x - 2), min(8, 2 * y + 3), min(8, 2 * x + 3)]
            assert share.tolist() == [(y + 0.5) / 4, (x + 0.5) / 4]
            assert np.count_nonzero(back[y0:y1, x0:x1]) == np.count_nonzero(back) > 0


def test_crops_are_moved_into_the_image() -> None:
    image = np.arange(36, dtype=np.uint8).reshape(6, 6, 1)
    np.testing.assert_array_equal(crop(image, np.array([0, 2, 3, 6]), 4, 4), image[:4, 2:])
    np.testing.assert_array_equal(crop(image, np.array([4, 3, 6, 6]), 4, 4), image[2:, 2:])


def test_the_command_writes_page_and_picture(
    tmp_path: Path, photo_folder: Path, weights: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "w.safetensors", weights)
    given = ["strongest", "--weights", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "page")]
    data = ["--data.dataset", f"folder:{photo_folder}"]
    assert main([*given, *data, "--layer", "conv1", "--top", "5", "--deconvolve", "--channels", "2", "7"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page' / 'index.html'}\n"
    page = (tmp_path / "page" / "index.html").read_text()
    assert re.findall(r"channel \d[^<]*", page) == 2 * [
        *("channel 2", "channel 2, projected back to the pixels"),
        *("channel 7", "channel 7, projected back to the pixels"),
    ]
    assert not re.search("<script|http", page)
    assert len(re.findall("<image", page)) == 40  # five crops and five projections of two channels, in two widths
    with Image.open(tmp_path / "page" / "strongest.png") as picture:
        assert picture.width == 2080
    assert main([*given, *data, "--split", "train", "--channels", "8"]) == 2
    assert "channels [8] given, but layer '' has 0 to 7" in capsys.readouterr().err
    assert main(given) == 2
    assert "w.safetensors is no run, whose data set would be own; give --data.dataset" in capsys.readouterr().err
