"""`jaxclf activations`: its page and pictures, its refusals."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxclf.cli.main import main
from jaxclf.models.classifier import create_model
from jaxclf.report.channel_pictures import layer_row, reduced
from jaxclf.report.pictures import NEGATIVE, POSITIVE
from jaxclf.tools.activations import Maps
from jaxclf.training.weights import WeightRecord, Weights, write
from tests.models.drawn import drawn
from tests.tools.test_activations import PREPARED


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with weights of Tiny, two pictures, and a broken file."""
    path, random = tmp_path_factory.mktemp("given"), np.random.default_rng(3)
    model = create_model("tests.tiny:Tiny", num_classes=4)
    record = WeightRecord("tests.tiny:Tiny", 4, preprocessing=PREPARED)
    write(path / "w.safetensors", Weights(model, drawn(model, 8, 8, 3), record))
    for name in ("one", "<two>"):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path / f"{name}.png")
    (path / "broken.png").write_text("no image")
    return path


def run(given: Path, *args: str) -> int:
    return main([*args, "--weights", str(given / "w.safetensors"), "--out", str(given / "page")])


def test_the_page_shows_every_stage_and_names_what_is_broken(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(given / f"{name}.png") for name in ("one", "broken", "<two>")]
    assert run(given, "activations", *files, "--channels", "3") == 2
    out, err = capsys.readouterr()
    assert out == f"{given / 'page' / 'index.html'}\n"
    assert err == f"jaxclf: 1 of 3 files are not shown: {files[1]}\n"
    page = (given / "page" / "index.html").read_text()
    assert page.count("<svg") == 6  # two images and the filters, each in two widths
    for layer, size in (("bn1", "8 × 8"), ("last feature map", "4 × 4")):
        assert page.count(f"{layer}: 3 strongest of 8 channels") == 4
        assert page.count(f"{layer}: 3 strongest of 8 channels, {size}, full colour ±") == 2  # narrow: on two lines
    assert f"{files[1]}: no image format that PIL knows" in page
    assert "&lt;two&gt;.png" in page
    assert not re.search("<script|http|<two>", page)
    names = sorted(file.name for file in (given / "page").iterdir())
    assert names == ["01_one.png", "03_<two>.png", "filters.png", "index.html"]
    with Image.open(given / "page" / "01_one.png") as picture:
        assert picture.width == 2080


def test_what_layers_keep_is_drawn_with_its_distance(given: Path) -> None:
    files = [str(given / f"{name}.png") for name in ("broken", "one", "<two>", "one")]
    assert run(given, "activations", *files, "--layers", "conv1", "bn2", "--invert", "3", "--channels", "1") == 2
    page = (given / "page" / "index.html").read_text()
    assert page.count("what a layer keeps of it: an image found from") == 4
    distances = re.findall(r">conv1: (\d\.\d{3})<.*?>bn2: (\d\.\d{3})<", page, re.S)
    assert len(distances) == 4
    assert len(set(distances)) == 2  # of two files, each in two widths


def test_a_layer_is_drawn_on_one_scale_around_nothing() -> None:
    values = np.array([[[2.0, -1.0], [0.0, 4.0]]], np.float32)  # [1 2 2]
    row = layer_row(Maps("conv", np.array([5, 0]), values, 7))
    assert row.heading == "conv: 2 strongest of 7 channels, 1 × 2, full colour ±4"
    assert [cell.words for cell in row.cells] == ["5", "0"]
    orange, blue = np.array(POSITIVE) / 255, np.array(NEGATIVE) / 255
    np.testing.assert_allclose(row.cells[0].pixels[0, 0], [*orange, 0.5], atol=1e-7)
    assert row.cells[0].pixels[0, 1, 3] == 0
    np.testing.assert_allclose(row.cells[1].pixels[0], [[*blue, 0.25], [*orange, 1]], atol=1e-7)


def test_a_layer_of_single_positions_is_one_strip_of_all_its_channels() -> None:
    row = layer_row(Maps("", np.arange(130), np.ones((1, 1, 130), np.float32), 130))
    assert row.heading == "last feature map: all 130 channels, one position, full colour ±1"
    (cell,) = row.cells
    assert cell.pixels.shape == (4, 128, 4)  # two lines, each two pixels high
    assert cell.pixels[2:, :, 3].sum(1).tolist() == [2, 2]


def test_large_pictures_are_averaged_in_whole_blocks() -> None:
    pixels = np.arange(2 * 5, dtype=np.uint8).reshape(2, 5, 1)
    np.testing.assert_array_equal(reduced(pixels, 2)[..., 0], [[3, 5]])  # (0+1+5+6)/4 is 3, (2+3+7+8)/4 is 5
    np.testing.assert_array_equal(reduced(pixels, 5), pixels)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--layers conv9", "unknown layer 'conv9'; did you mean 'conv"),
        ("--channels 0", "channels is 0 but must be at least 1"),
        ("--invert 0", "--invert is 0 but must be at least 1"),
    ],
)
def test_bad_input_is_one_line(given: Path, args: str, said: str, capsys: pytest.CaptureFixture[Any]) -> None:
    assert run(given, "activations", str(given / "one.png"), *args.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"jaxclf: {said}")


def test_a_directory_that_cannot_be_written_is_one_line(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--weights", str(given / "w.safetensors"), "--out", "/dev/null/x", "--layers", "conv1"]
    assert main(["activations", str(given / "one.png"), *flags]) == 2
    assert capsys.readouterr().err.startswith("jaxclf: cannot write to /dev/null/x: ")
