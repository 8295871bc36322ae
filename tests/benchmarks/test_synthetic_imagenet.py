"""benchmarks/synthetic_imagenet.py: what is in the images, and that TFDS gives back the bytes that were made."""

import dataclasses
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxclf.errors import UsageError

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "synthetic_imagenet.py"


def skip_without(*modules: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}")


needs_photographs = skip_without("skimage", "sklearn")
needs_builder = skip_without("importlib_resources", "skimage", "sklearn")
SMALL = {"classes": 10, "kilobytes": 3}


def load() -> Any:
    """The script as a module, executed anew as where two tests import it."""
    spec = importlib.util.spec_from_file_location("synthetic_imagenet", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and tyro look the module of a class up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def synthetic() -> Any:
    return load()


@pytest.fixture(scope="module")
def prepared(synthetic: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.build(tmp_path_factory.mktemp("data"), **SMALL)


def read(prepared: Path, split: str) -> dict[str, tuple[bytes, int]]:
    """File name -> bytes and label of a prepared split."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(prepared)
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return {source[i]["file_name"].decode(): (source[i]["image"], source[i]["label"]) for i in range(len(source))}


def hashes(examples: Any) -> list[str]:
    return [hashlib.sha256(example.image).hexdigest() for example in examples]


@needs_photographs
def test_bytes_depend_on_recipe_and_number_alone(synthetic: Any):
    recipe = synthetic.Recipe(**SMALL)
    whole = list(synthetic.examples(recipe, "train"))
    assert len(whole) == 40
    assert [example.label for example in whole[:12]] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert load().example(recipe, "train", 17) == whole[17]
    assert len({*hashes(whole), *hashes(synthetic.examples(recipe, "validation"))}) == 50
    other = dataclasses.replace(recipe, seed=1)
    assert not {*hashes(whole)} & {*hashes(synthetic.examples(other, "train"))}


@needs_photographs
def test_names_are_those_of_imagenet_in_shape_and_sort_in_label_order(synthetic: Any):
    names = synthetic.Recipe().class_names
    assert len(set(names)) == 1000
    assert list(names) == sorted(names)
    assert names[:2] == ("n01440764", "n01454412")
    assert {len(name) for name in names} == {9}
    recipe = synthetic.Recipe(**SMALL)
    assert synthetic.example(recipe, "train", 11).name == "n01454412_11.JPEG"
    assert synthetic.example(recipe, "validation", 0).name == "ILSVRC2012_val_00000001.JPEG"


@needs_photographs
def test_sizes_spread_around_110_kilobytes_and_500_pixels(synthetic: Any):
    recipe = synthetic.Recipe()
    images = [synthetic.example(recipe, "train", number).image for number in range(100, 160)]
    kilobytes = np.array([len(image) for image in images]) / 1000
    assert 95 < np.median(kilobytes) < 125
    assert np.percentile(kilobytes, 10) < 80
    assert np.percentile(kilobytes, 90) > 150
    pixels = [Image.open(io.BytesIO(image)).size for image in images]
    assert {(500, 375), (375, 500)} <= set(pixels)
    assert max(max(size) for size in pixels) <= 1024


@needs_photographs
def test_one_in_a_hundred_is_odd(synthetic: Any):
    recipe = synthetic.Recipe(**SMALL, train_per_class=40)
    images = [Image.open(io.BytesIO(example.image)) for example in synthetic.examples(recipe, "train")]
    kinds = [(image.format, image.mode, image.getexif().get(0x0112)) for image in images]
    assert {n: kind for n, kind in enumerate(kinds) if kind != ("JPEG", "RGB", None)} == {
        5: ("JPEG", "L", None),
        12: ("JPEG", "CMYK", None),
        19: ("PNG", "RGB", None),
        26: ("JPEG", "RGB", 6),
    }
    assert synthetic.example(recipe, "train", 19).name.endswith(".JPEG")


@needs_photographs
def test_exif_turns_the_picture_upright(synthetic: Any):
    picture = Image.new("RGB", (48, 32))
    picture.paste((255, 0, 0), (0, 0, 24, 32))  # the left half is red
    stored = Image.open(io.BytesIO(synthetic._encode(picture, 1000, "exif")))
    assert stored.size == (32, 48)
    shown = ImageOps.exif_transpose(stored)
    assert shown.size == (48, 32)
    assert np.asarray(shown)[16, 8, 0] > 240
    assert np.asarray(shown)[16, 40, 0] < 16


@needs_photographs
def test_classes_can_be_told_apart_by_their_pixels(synthetic: Any):
    recipe = synthetic.Recipe(classes=20, kilobytes=3, train_per_class=5)

    def pixels(split: str) -> tuple[np.ndarray, np.ndarray]:
        found = [(Image.open(io.BytesIO(image)), label) for image, label, _ in synthetic.examples(recipe, split)]
        return (
            np.array([np.asarray(image.convert("RGB").resize((4, 4)), np.float32).ravel() for image, _ in found]),
            np.array([label for _, label in found]),
        )

    (train, train_labels), (test, test_labels) = pixels("train"), pixels("validation")
    means = np.array([train[train_labels == label].mean(0) for label in range(20)])
    nearest = np.square(test[:, None] - means).sum(-1).argmin(-1)
    assert (nearest == test_labels).mean() > 0.6  # by chance 0.05


@needs_builder
def test_tfds_gives_back_the_bytes_that_were_made(synthetic: Any, prepared: Path):
    assert prepared.parts[-2:] == ("synthetic_imagenet", "1.0.0")
    recipe = synthetic.Recipe(**SMALL)
    for split, count in (("train", 40), ("validation", 10)):
        made = {example.name: (example.image, example.label) for example in synthetic.examples(recipe, split)}
        assert len(made) == count
        assert read(prepared, split) == made
    assert sorted(synthetic.sizes(prepared))[0] > 500
    assert len(synthetic.sizes(prepared)) == 50


@needs_builder
def test_set_is_read_in_a_process_without_tensorflow(prepared: Path):
    script = f"""
import sys
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory({str(prepared)!r})
source = builder.as_data_source("validation", decoders={{"image": tfds.decode.SkipDecoding()}})
print(len(source), len(builder.info.splits["train"].shard_lengths), *builder.info.features["label"].names[:2])
print(*sorted(source[0]), type(source[0]["image"]).__name__, builder.info.file_format.value)
print("tensorflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines() == [
        "10 1 n01440764 n01454412",
        "file_name image label bytes array_record",
        "False",
    ]


@needs_builder
def test_finished_set_is_used_again_and_one_of_other_parameters_refused(
    synthetic: Any, prepared: Path, monkeypatch: pytest.MonkeyPatch
):
    data_dir = prepared.parents[1]
    monkeypatch.setattr(synthetic, "example", None)  # making an image would raise
    assert synthetic.build(data_dir, **SMALL) == prepared
    with pytest.raises(UsageError, match=r"holds another set \(kilobytes 3 instead of 4, seed 0 instead of 1\)"):
        synthetic.build(data_dir, classes=10, kilobytes=4, seed=1)


@needs_builder
def test_interrupted_build_leaves_nothing_that_passes_for_a_set(tmp_path: Path):
    module = load()
    whole = module.example

    def fail(recipe: Any, split: str, number: int) -> Any:
        if number == 7:
            raise KeyboardInterrupt
        return whole(recipe, split, number)

    module.example = fail
    with pytest.raises(KeyboardInterrupt):
        module.build(tmp_path, **SMALL)
    assert not (tmp_path / "synthetic_imagenet" / "1.0.0").exists()
    module.example = whole
    assert len(read(module.build(tmp_path, **SMALL), "train")) == 40


@needs_photographs
def test_folder_holds_the_same_images_by_split_and_class(synthetic: Any, tmp_path: Path):
    folder = synthetic.write_folder(tmp_path / "folder", **SMALL)
    recipe = synthetic.Recipe(**SMALL)
    for split, count in (("train", 40), ("validation", 10)):
        assert [path.name for path in sorted((folder / split).iterdir())] == list(recipe.class_names)
        assert len(list((folder / split).glob("*/*.JPEG"))) == count
        for example in synthetic.examples(recipe, split):
            path = folder / split / recipe.class_names[example.label] / example.name
            assert path.read_bytes() == example.image
    stamp = folder.stat().st_mtime_ns
    assert synthetic.write_folder(folder, **SMALL) == folder
    assert folder.stat().st_mtime_ns == stamp
    with pytest.raises(UsageError, match="holds another set"):
        synthetic.write_folder(folder, **SMALL, seed=2)


def test_other_directories_are_left_alone(synthetic: Any, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there but is no finished synthetic_imagenet"):
        synthetic.write_folder(tmp_path, **SMALL)
    (tmp_path / "synthetic_imagenet" / "1.0.0").mkdir(parents=True)
    (tmp_path / "synthetic_imagenet" / "1.0.0" / "mine").touch()
    with pytest.raises(UsageError, match="is there but is no finished synthetic_imagenet"):
        synthetic.build(tmp_path, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_parameters_out_of_range_are_refused_together(synthetic: Any, tmp_path: Path):
    with pytest.raises(UsageError, match=r"classes is 1001 but 1 to 1000 is allowed; kilobytes is 2 but 3 to 1000"):
        synthetic.build(tmp_path, classes=1001, kilobytes=2)
    with pytest.raises(UsageError, match="seed is -1 but 0 to any is allowed"):
        synthetic.write_folder(tmp_path, seed=-1)


def test_missing_packages_are_named(synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else find(name))
    with pytest.raises(
        UsageError, match=r"needs .*skimage.*: pip install importlib-resources scikit-image scikit-learn"
    ):
        synthetic.build(tmp_path, **SMALL)


@needs_builder
def test_command_line_reports_the_set(synthetic: Any, prepared: Path, capsys: pytest.CaptureFixture[str]):
    data_dir = str(prepared.parents[1])
    assert synthetic.main([data_dir, "--classes", "10", "--kilobytes", "3"]) == 0
    assert "50 examples" in capsys.readouterr().out
    assert synthetic.main([data_dir, "--classes", "11", "--kilobytes", "3"]) == 2
    assert "classes 10 instead of 11" in capsys.readouterr().err
    assert json.loads((prepared / "metadata.json").read_text())["classes"] == 10


@needs_builder
def test_command_line_builds_in_a_process_without_tensorflow(tmp_path: Path):
    script = f"""
import runpy, sys
sys.argv = ["synthetic_imagenet.py", {str(tmp_path)!r}, "--classes", "10", "--kilobytes", "3"]
try:
    runpy.run_path({str(FILE)!r}, run_name="__main__")
except SystemExit as end:
    print(end.code, "tensorflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    summary, end = done.stdout.splitlines()[-2:]
    assert "50 examples" in summary
    assert end == "0 False"
