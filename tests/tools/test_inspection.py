"""`jaxclf data info` prints facts of the tables, and sizes, classes, mean and deviation of the images."""

import io
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxclf.cli.main import main
from jaxclf.data.datasets import FOLDER
from jaxclf.data.sources import Encoded, Folder, Records
from jaxclf.errors import UsageError
from jaxclf.tools import inspection
from jaxclf.tools.inspection import describe, inspect, measure_images
from tests.data.streamed import inside, without_split

Given = tuple[str, str | None]
"""Name and data_dir."""


@pytest.fixture(params=["folder", "records"])
def given(request: pytest.FixtureRequest) -> Given:
    """A set of images in folders, and one that TFDS prepared, whose records no run has indexed."""
    if request.param == "folder":
        return f"folder:{request.getfixturevalue('photo_folder')}", None
    return "synthetic_imagenet", str(request.getfixturevalue("own_imagenet"))


def training_images(given: Given) -> list[Encoded]:
    name, data_dir = given
    if data_dir is None:
        source = Folder(Path(name.removeprefix(FOLDER)) / "train")
    else:
        source = Records(str(inside(Path(data_dir))), "train")
    return [source[index] for index in range(len(source))]


def as_rgb(encoded: Encoded) -> np.ndarray:
    with Image.open(io.BytesIO(encoded.data)) as image:
        return np.asarray(image.convert("RGB"))


def pixels_of(images: list[Encoded]) -> np.ndarray:
    """Return all pixels in one row, float64 [n 3], 0..1."""
    return np.concatenate([as_rgb(one).reshape(-1, 3) for one in images]) / 255


def lines_of(given: Given, **options: Any) -> dict[str, str]:
    """Return what is printed, by label; lines without one join the line before."""
    lines: dict[str, str] = {}
    label = ""
    for line in describe(inspect(given[0], data_dir=given[1], **options)):
        label = line[:10].strip() or label
        lines[label] = f"{lines[label]}; {line[12:]}" if label in lines else line[12:]
    return lines


# What is measured


def test_digits_measure_what_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", "digits"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[2:] == [
        "images      1,352 train, 445 test",
        "classes     10: 0, 1, 2, 3, 4, ...",
        "class size  131 (8) to 138 (3) training images",
        "image size  8 x 8 pixels, grey",
        "constants   mean 0.3049  std 0.3756",
        "measured    mean 0.3049  std 0.3756  on 1,352 of 1,352 training images",
    ]


def test_mean_and_deviation_are_those_of_all_decoded_pixels(given: Given) -> None:
    facts, images = inspect(given[0], data_dir=given[1]), training_images(given)
    pixels = pixels_of(images)
    assert facts.measured is not None
    np.testing.assert_allclose(facts.measured.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(facts.measured.std, pixels.std(axis=0), rtol=1e-12)
    assert (facts.measured.images, facts.measured.of, facts.measured.broken) == (len(images), len(images), 0)
    sides = [as_rgb(one).shape[:2] for one in images]
    assert [*zip(facts.measured.heights, facts.measured.widths, strict=True)] == sides
    assert facts.measured.labels.tolist() == [one.label for one in images]


def test_grey_images_have_one_mean(photo_folder: Path) -> None:
    found = measure_images(Folder(photo_folder / "val"), 1)
    files = sorted(photo_folder.glob("val/*/*.png"))
    pixels = np.concatenate([np.asarray(Image.open(file).convert("L")).ravel() for file in files]) / 255
    np.testing.assert_allclose([*found.mean, *found.std], [pixels.mean(), pixels.std()], rtol=1e-12)


def test_one_colour_deviates_by_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (31, 17), (77, 3, 254)).save(tmp_path / name / "1.png")
    found = measure_images(Folder(tmp_path), 3)
    assert found.std == (0, 0, 0)
    assert found.mean == (77 / 255, 3 / 255, 254 / 255)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [(5, [0, 12, 25, 38, 51]), (1, [0]), (63, [*range(63)]), (64, [*range(64)]), (99, [*range(64)]), (0, [*range(64)])],
)
def test_a_sample_is_evenly_spread(
    sample: int, expected: list[int], tiny_imagenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, read = Records(str(inside(tiny_imagenet)), "train"), []
    whole = Records.__getitem__

    def note(self: Records, index: int) -> Encoded:
        read.append(index)
        return whole(self, index)

    monkeypatch.setattr(Records, "__getitem__", note)
    found = measure_images(source, 3, sample)
    assert sorted(read) == expected
    assert (found.images, found.of) == (len(expected), 64)
    monkeypatch.undo()
    np.testing.assert_allclose(found.mean, pixels_of([source[index] for index in expected]).mean(axis=0), rtol=1e-12)


def test_progress_is_told(tiny_imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "SLICE", 10)
    told: list[tuple[str, int, int]] = []
    inspect("synthetic_imagenet", data_dir=str(tiny_imagenet), sample=25, report=lambda *args: told.append(args))
    assert told == [("measuring the training images", done, 25) for done in (0, 10, 20)]


def test_broken_images_are_counted_and_left_out(photo_folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(photo_folder, tmp_path / "set")
    expected = pixels_of([one for one in training_images((f"folder:{root}", None)) if "bee/" not in one.name])
    for file in root.glob("train/bee/*"):
        file.write_bytes(b"no image")
    lines = lines_of((f"folder:{root}", None))
    assert "on 24 of 32 training images; 8 more cannot be read; `jaxclf data verify folder:/" in lines["measured"]
    assert lines["measured"].startswith(f"mean {' '.join(f'{mean:.4f}' for mean in expected.mean(axis=0))}  std ")
    assert lines["class size"] == "8 training images each"  # there they are


def test_a_set_without_a_readable_image_is_an_error(photo_folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(photo_folder, tmp_path / "set")
    for file in root.glob("train/*/*"):
        file.write_bytes(b"")
    with pytest.raises(UsageError, match=r"none of 32 training images can be read; the first is /.*train/ant/0.jpg$"):
        inspect(f"folder:{root}")


# What is said of the set


def test_a_folder_is_described(photo_folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(photo_folder, tmp_path / "set")
    for image in ("1.jpg", "2.jpg"):
        (root / "train" / "cat" / image).unlink()
    shutil.copytree(root / "val", root / "test")
    lines = lines_of((f"folder:{root}", None))
    assert lines["images"] == "30 train, 12 test, 12 val"
    assert lines["classes"] == "4: ant, bee, cat, dog"
    assert lines["class size"] == "6 (cat) to 8 (ant) training images"
    assert re.fullmatch(
        r"width 2\d to 5\d \(median \d\d\), height 2\d to 5\d \(median \d\d\) pixels, read as RGB", lines["image size"]
    )
    assert lines["constants"] == "mean 0.4850 0.4560 0.4060  std 0.2290 0.2240 0.2250"
    assert lines["measured"].endswith("on 30 of 30 training images")


def test_splits_have_their_own_names(given: Given) -> None:
    own = "12 val" if given[1] is None else "16 validation"
    assert lines_of(given)["images"].endswith(f" train, {own} (a run's test images)")


def test_class_sizes_of_records_come_from_the_index_or_from_reading_all(own_imagenet: Path) -> None:
    given = "synthetic_imagenet", str(own_imagenet)
    assert lines_of(given, sample=63)["class size"] == "unknown until all labels are read, as --sample 0 does"
    assert lines_of(given, sample=0)["class size"] == "8 training images each"
    assert not list(inside(own_imagenet).glob("jaxclf-*"))  # looking writes nothing
    index = inside(own_imagenet) / "jaxclf-labels-train.npy"
    np.save(index, np.array([0] * 10 + [7] * 53 + [-1], np.int32))
    assert lines_of(given, sample=63)["class size"] == "0 (n01454412) to 53 (n01536300) training images"
    for other in (index.read_bytes()[:100], b"", b"\0" * 400):
        index.write_bytes(other)
        assert lines_of(given, sample=63)["class size"].startswith("unknown")


def test_a_set_without_test_images_is_described(own_imagenet: Path) -> None:
    without_split(own_imagenet, "validation")
    lines = lines_of(("synthetic_imagenet", str(own_imagenet)))
    assert lines["images"] == "64 train; it has no split test; a run needs --data.test-split"
    assert "on 64 of 64 training images; 1 are stored turned or mirrored, as EXIF says" in lines["measured"]


def test_a_set_without_training_images_is_described(own_imagenet: Path) -> None:
    without_split(own_imagenet, "train")
    lines = lines_of(("synthetic_imagenet", str(own_imagenet)))
    assert lines["images"] == (
        "16 validation (a run's test images); it has no split train; a run needs --data.train-split"
    )
    assert "measured" not in lines


def test_what_is_not_prepared_says_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", "mnist", "--data-dir", str(tmp_path)]) == 0
    *_, images, classes, size, constants, last = capsys.readouterr().out.splitlines()
    assert images == "images      60,000 train, 10,000 test"
    assert classes == "classes     10: 0, 1, 2, 3, 4, ..."
    assert size == "image size  28 x 28 pixels, grey"
    assert constants == "constants   mean 0.1307  std 0.3081"
    command = f"`jaxclf data prepare mnist --data-dir {tmp_path}`"
    assert last == f"mnist is not prepared: there is no {tmp_path}/mnist/3.0.1; run {command}"
    (tmp_path / "mnist" / "3.0.1.parts").mkdir(parents=True)
    assert main(["data", "info", "mnist", "--data-dir", str(tmp_path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"mnist is only half prepared, in {tmp_path}/mnist/3.0.1.parts; go on with {command}"


def test_what_is_broken_is_no_fact(own_imagenet: Path) -> None:
    (shard,) = inside(own_imagenet).glob("*-train.array_record-*")
    shard.unlink()
    with pytest.raises(UsageError, match=f"{shard.name} is missing"):
        inspect("synthetic_imagenet", data_dir=str(own_imagenet))


def test_no_thread_is_left(given: Given) -> None:
    before = set(threading.enumerate())
    inspect(given[0], data_dir=given[1])
    assert set(threading.enumerate()) == before


# What is refused


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("info digits --sample -1", "sample is -1 but must be 0, for all images, or a number of them"),
        ("info folder:/nowhere", "folder:/nowhere: there is no directory /nowhere"),
        ("prepare folder:/nowhere", "folder:/nowhere: there is no directory /nowhere"),
        ("info digit", "unknown data set 'digit'; did you mean 'digits'"),
    ],
)
def test_what_is_refused_is_one_line(args: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *args.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"jaxclf: {message}")
    assert err.count("\n") == 1


def test_a_folder_needs_no_preparation(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", f"folder:{photo_folder}"]) == 0
    said = "nothing has to be prepared, folders are read as they are"
    assert capsys.readouterr().out == f"folders in {photo_folder}: {said}\n"
