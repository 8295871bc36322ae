"""The dense evaluation of weights is that of every window of every image, each image counted once."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxclf.cli.main import main
from jaxclf.config import DataConfig
from jaxclf.data.transforms import Preprocessing
from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.tools import dense
from jaxclf.tools.accuracy import accuracy
from jaxclf.tools.dense import dense_accuracy
from jaxclf.training.weights import WeightRecord, Weights, write
from tests.models.drawn import drawn
from tests.models.unpadded import UNPADDED

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CROPPED = Preprocessing(None, 48, 6, "bicubic", MEAN, STD)
CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def weights() -> Weights:
    """A network without padding for four classes of RGB images, drawn: windows of 48 pixels, 12 apart."""
    model = create_model(UNPADDED, num_classes=4)
    variables = jax.tree.map(lambda leaf: 3 * leaf, drawn(model, 48, 48, 3))  # classes that differ between images
    return Weights(model, variables, WeightRecord(UNPADDED, 4, preprocessing=CROPPED))


@pytest.fixture(scope="module")
def folder(photo_folder: Path) -> DataConfig:
    return DataConfig(f"folder:{photo_folder}")


def windows(file: Path, size: int, step: int) -> np.ndarray:
    """Return the inputs of every window of an image whose short side is `size`, by PIL and numpy alone."""
    image = Image.open(file)
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float64) / 255
    inputs, begins = ((pixels - MEAN) / STD).astype(np.float32), []
    for length in (height, width):
        margin = (length - 48) % 12
        begins.append(range(margin // 2, margin // 2 + length - margin - 47, step))
    return np.stack([inputs[y : y + 48, x : x + 48] for y in begins[0] for x in begins[1]])


@pytest.mark.parametrize(
    ("sizes", "step", "way", "mirrored"),
    [((48, 65), None, "mean", False), ((60,), 6, "mean", False), ((48, 60), 6, "max", True)],
)
def test_it_is_the_mean_or_the_largest_over_every_window_of_every_view_of_every_image(
    *,
    sizes: tuple[int, ...],
    step: int | None,
    way: str,
    mirrored: bool,
    photo_folder: Path,
    folder: DataConfig,
    weights: Weights,
) -> None:
    files = sorted((photo_folder / "val").rglob("*.png"))
    labels = np.array([CLASSES.index(file.parent.name) for file in files])
    turns = (1, -1) if mirrored else (1,)
    inputs = [windows(file, size, step or 12)[:, :, ::turn] for file in files for size in sizes for turn in turns]
    logits = np.asarray(jax.jit(weights.model.apply)(weights.variables, np.concatenate(inputs)), np.float64)
    bounds = np.cumsum([0, *map(len, inputs)])
    over = {"mean": np.mean, "max": np.max}[way]
    answers = np.stack([over(logits[low:high], 0) for low, high in itertools.pairwise(bounds)])
    each = np.exp(answers) / np.exp(answers).sum(1, keepdims=True)
    probabilities = each.reshape(len(files), len(sizes) * len(turns), 4).mean(1)

    found = dense_accuracy(weights, folder, sizes=sizes, step=step, windows=way, mirrored=mirrored)
    assert (len(files), found.accuracy.images) == (12, 12)
    assert found.accuracy.loss == pytest.approx(-np.log(probabilities[range(12), labels]).mean(), rel=1e-5)
    assert found.accuracy.top1 == pytest.approx(100 * (probabilities.argmax(1) == labels).mean())
    assert 0 < found.accuracy.top1 < 100
    assert (found.sizes, found.side, found.step) == (sizes, 48, step or 12)


def test_images_of_the_windows_own_size_have_the_ordinary_accuracy() -> None:
    """445 images of one shape, eight at a time; no size given."""
    model = create_model("tests.tiny:Tiny", num_classes=10)
    tiny = Weights(model, drawn(model, 8, 8, 1), WeightRecord("tests.tiny:Tiny", 10))
    found, plain = dense_accuracy(tiny, DataConfig("digits")), accuracy(tiny, DataConfig("digits"))
    assert (found.sizes, found.side, found.step, found.shapes) == ((8,), 8, 2, 1)
    assert found.accuracy._replace(loss=0) == plain._replace(loss=0)
    assert found.accuracy.loss == pytest.approx(plain.loss, rel=1e-6)


def test_many_shapes_are_warned_of_once(folder: DataConfig, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "MANY", 1)
    with pytest.warns(UserWarning, match="the images have more than 1 shapes, and each takes a compilation") as told:
        found = dense_accuracy(weights, folder, sizes=(60,))
    assert (len(told), found.shapes) == (1, 5)


def test_what_cannot_be_evaluated_is_one_line(folder: DataConfig, weights: Weights) -> None:
    with pytest.raises(UsageError, match="sizes has 30, 47 but must be 48, the side of a window, or larger"):
        dense_accuracy(weights, folder, sizes=(48, 30, 47))
    with pytest.raises(UsageError, match="step is 5 but must divide the stride of the network, 12 pixels"):
        dense_accuracy(weights, folder, step=5)
    with pytest.raises(UsageError, match="unknown windows 'most'"):
        dense_accuracy(weights, folder, windows="most")
    with pytest.raises(UsageError, match="there is no split 'validation'"):
        dense_accuracy(weights, folder, split="validation")


def test_the_command_evaluates_densely(
    folder: DataConfig, weights: Weights, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "unpadded.safetensors"
    write(file, weights)
    command = ["eval", "--weights", str(file), "--data.dataset", folder.dataset]
    found = dense_accuracy(weights, folder, sizes=(48, 65))
    assert main([*command, "--dense", "--sizes", "48", "65"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"mean of windows of 48 pixels, 12 apart; short sides 48, 65; {found.shapes} shapes",
        f"test top-1 {found.accuracy.top1:.2f} %  top-5 100.00 %  loss {found.accuracy.loss:.4f}"
        "  per class 0.00 to 100.00 %",
    ]
    assert main([*command, "--dense", "--windows", "max", "--mirrored"]) == 0
    assert capsys.readouterr().out.startswith(
        "max of windows of 48 pixels, 12 apart; short sides 48, mirrored as well; "
    )
    assert main([*command, "--sizes", "48", "--step", "6", "--mirrored"]) == 2
    assert capsys.readouterr().err == "jaxclf: eval without --dense does not use --sizes, --step, --mirrored\n"
    assert main([*command, "--dense", "--sizes", "47"]) == 2
    assert capsys.readouterr().err == "jaxclf: sizes has 47 but must be 48, the side of a window, or larger\n"
    assert main(["eval", "--workdir", str(tmp_path), "--dense"]) == 2
    assert capsys.readouterr().err == "jaxclf: eval --workdir does not use --dense\n"
