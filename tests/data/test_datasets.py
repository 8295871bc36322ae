"""The table of data sets, the digits, and every way in which reading or preparing is refused.

The slow test runs TFDS's real builder over the files of Debian's package dataset-fashion-mnist.
"""

import dataclasses
import gzip
import hashlib
import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxclf.config import DataConfig
from jaxclf.data import datasets, pipeline
from jaxclf.data.datasets import Digits, DigitScenes, FashionPairs, Images, ResidentTfds, resolve
from jaxclf.data.facts import RESIDENT, STREAMED
from jaxclf.data.kinds import DrawnSet, ResidentSet
from jaxclf.data.order import Order
from jaxclf.errors import UsageError
from jaxclf.tools import preparation
from tests.data.streamed import needs_prepare

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def write_metadata(data_dir: Path, *, train: int, test: int, file_format: str = "array_record") -> Path:
    """Write what TFDS stores beside the records of mnist, without the records."""
    directory = data_dir / "mnist" / "3.0.1"
    directory.mkdir(parents=True)
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits = [
        {"name": name, "shardLengths": [str(count)], "numBytes": "1", "filepathTemplate": template}
        for name, count in (("train", train), ("test", test))
    ]
    facts = {"name": "mnist", "version": "3.0.1", "fileFormat": file_format, "splits": splits}
    (directory / "dataset_info.json").write_text(json.dumps(facts))
    features = "tensorflow_datasets.core.features"
    image = {"pythonClassName": f"{features}.image_feature.Image", "image": {"dtype": "uint8", "shape": {}}}
    label = {"pythonClassName": f"{features}.class_label_feature.ClassLabel", "classLabel": {"numClasses": "10"}}
    inside = {"features": {"image": image, "label": label}}
    found = {"pythonClassName": f"{features}.features_dict.FeaturesDict", "featuresDict": inside}
    (directory / "features.json").write_text(json.dumps(found))
    return directory


DIGITS = Digits(DataConfig("digits"))


def read(name: str, split: str, *, data_dir: Path) -> Images:
    """Read a split of a set that TFDS prepared."""
    return ResidentTfds(DataConfig(name, data_dir=str(data_dir))).read(split)


SHARD = "mnist-{}.array_record-00000-of-00001"


def write_records(directory: Path) -> None:
    """Write the files of the records, with nothing good in them."""
    for split in ("train", "test"):
        (directory / SHARD.format(split)).write_bytes(b"x")


def idx(path: Path, header: int) -> np.ndarray:
    """Decode an idx file with numpy alone."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def test_digits_are_scikit_learns_scaled_to_255_in_the_counts_of_the_table():
    train, test = DIGITS.read("train"), DIGITS.read("test")
    assert (train.images.shape, test.images.shape) == ((1352, 8, 8, 1), (445, 8, 8, 1))
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int32)
    assert np.bincount(train.labels).tolist() == [134, 137, 133, 138, 136, 137, 136, 135, 131, 135]
    assert np.bincount(test.labels).tolist() == [44, 45, 44, 45, 45, 45, 45, 44, 43, 45]
    assert train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    # sklearn: 0 0 5 13 9 1 0 0; times 255/16, rounded
    assert train.images[0, 0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert train.images.max() == 255


def test_digits_file_is_the_one_that_was_made():
    arrays = np.load(preparation.prepare("digits"))
    assert arrays["images"].shape == (1797, 8, 8)
    assert arrays["labels"][:5].tolist() == [0, 1, 2, 3, 4]
    assert {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()} == {
        "images": "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
        "labels": "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
    }


def test_every_fourth_image_of_a_class_is_a_test_image():
    labels = np.array([0, 1, 0, 0, 1, 0, 1, 1, 0], np.int32)
    assert np.flatnonzero(datasets._digits_test(labels)).tolist() == [5, 7]


def test_digits_constants_are_what_the_train_split_says():
    mean, std = DIGITS.read("train").statistics()
    np.testing.assert_allclose([*mean, *std], [0.304931, 0.375645], atol=1e-6)
    np.testing.assert_allclose([*mean, *std], [*RESIDENT["digits"].mean, *RESIDENT["digits"].std], atol=5e-5)


def test_statistics_are_per_channel_and_biased():
    images = np.array([0, 255, 51, 51], np.uint8).reshape(2, 1, 1, 2)  # channel 0: 0, 51; channel 1: 255, 51
    mean, std = Images(images=images, labels=np.zeros(2, np.int32)).statistics()
    np.testing.assert_allclose(mean, [0.1, 0.6], rtol=1e-12)
    np.testing.assert_allclose(std, [0.1, 0.4], rtol=1e-12)


def test_first_classes_keep_their_order():
    part = Digits(DataConfig(classes=3)).images()["train"]
    assert len(part.labels) == 404
    assert part.images.shape == (404, 8, 8, 1)
    assert part.labels[:8].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize("classes", [-1, 0, 1, 11])
def test_classes_out_of_range_are_refused(classes):
    with pytest.raises(UsageError, match=rf"classes is {classes} but digits allows 2 to 10"):
        _ = resolve(DataConfig("digits", classes=classes)).class_names


def test_unknown_names_show_the_nearest():
    with pytest.raises(UsageError, match=r"unknown data set 'cifar'; did you mean .*cifar10"):
        resolve(DataConfig("cifar"))
    with pytest.raises(UsageError, match="unknown data set"):
        preparation.prepare("imagenet")


def test_table_is_consistent():
    for facts in RESIDENT.values():
        assert len(set(facts.class_names)) == facts.num_classes
        assert not facts.streamed
        assert len(facts.mean) == len(facts.std) == facts.image_shape[2]
        assert dataclasses.replace(facts) == facts
    assert RESIDENT["cifar10"].class_names[3] == "cat"
    names = RESIDENT["cifar100"].class_names
    assert list(names) == sorted(names)  # the archive lists them alphabetically
    assert (names[0], names[39], names[99]) == ("apple", "keyboard", "worm")
    assert RESIDENT["cifar100"].std == (0.2673343, 0.2564385, 0.2761505)


@pytest.mark.parametrize(
    "name",
    sorted((RESIDENT.keys() | STREAMED.keys()) - {"digits", "digit_pairs", "digit_scenes", "fashion_pairs"}),
)
def test_builders_agree_with_the_table(name):
    row = {**RESIDENT, **STREAMED}[name]
    features: Any = tfds.builder(name).info.features
    assert (features["image"].shape, features["label"].num_classes) == (row.image_shape, row.num_classes)
    if name == "fashion_mnist":  # the only builder that knows its class names before it is prepared
        assert tuple(features["label"].names) == RESIDENT[name].class_names


def test_interrupted_preparation_is_not_a_prepared_set(tmp_path):
    write_metadata(tmp_path, train=60000, test=10000).rename(tmp_path / "mnist" / "incomplete.ABC123_3.0.1")
    with pytest.raises(UsageError, match="mnist is not prepared"):
        read("mnist", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda directory: (directory / "dataset_info.json").unlink(), "dataset_info.json is missing"),
        (lambda directory: (directory / "dataset_info.json").write_text("{"), "ParseError"),
        (lambda directory: None, f"{SHARD.format('train')} is missing, {SHARD.format('test')} is missing"),
        (lambda directory: (directory / SHARD.format("train")).write_bytes(b"x"), f"{SHARD.format('test')} is missing"),
        (lambda directory: write_records(directory), "RuntimeError"),
    ],
    ids=["no metadata", "broken metadata", "no records", "a missing shard", "broken records"],
)
def test_damaged_set_is_refused_in_one_line(tmp_path, damage, reason):
    damage(write_metadata(tmp_path, train=60000, test=10000))
    with pytest.raises(UsageError, match=reason) as caught:
        read("mnist", "train", data_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert f"{tmp_path}/mnist" in str(caught.value)
    assert "delete that directory and run `jaxclf data prepare mnist`" in str(caught.value)


def test_every_difference_from_the_table_is_listed(tmp_path):
    directory = write_metadata(tmp_path, train=5, test=7)
    (directory / "label.labels.txt").write_text("\n".join("zero one two three four five six seven eight nine".split()))  # noqa: SIM905
    with pytest.raises(UsageError, match=r"train has 5 .* 60000, test has 7 .* 10000, the class names differ"):
        read("mnist", "train", data_dir=tmp_path)


def test_set_in_another_format_is_refused_by_load_and_prepare(tmp_path):
    write_metadata(tmp_path, train=60000, test=10000, file_format="tfrecord")
    for call in (preparation.prepare, lambda name, data_dir: read(name, "train", data_dir=data_dir)):
        with pytest.raises(UsageError, match="stored as tfrecord, not as array_record"):
            call("mnist", data_dir=tmp_path)


def test_prepared_set_returns_at_once_and_asks_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_require", lambda *modules: pytest.fail(f"asked for {modules}"))
    directory = write_metadata(tmp_path, train=60000, test=10000)
    write_records(directory)
    assert preparation.prepare("mnist", data_dir=tmp_path) == directory


def test_preparing_without_tensorflow_names_the_extra(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else found(name))
    with pytest.raises(UsageError, match=r"needs tensorflow.*: pip install 'jaxclf\[prepare\]'"):
        preparation.prepare("mnist", data_dir=tmp_path)


@needs_prepare
def test_missing_downloads_are_listed_at_once(tmp_path):
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        preparation.prepare("mnist", data_dir=tmp_path / "out", downloads=tmp_path)
    message = str(caught.value)
    for file in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        assert file in message
    assert "t10k-labels-idx1-ubyte.gz," not in message.split(" (from ")[0]
    assert not (tmp_path / "out" / "mnist").exists()


@needs_prepare
def test_downloads_with_the_wrong_content_are_listed_at_once(tmp_path):
    kinds = ("images-idx3", "labels-idx1")
    names = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in kinds]
    for name in names:
        (tmp_path / name).write_bytes(gzip.compress(b"not these"))
    (tmp_path / names[3]).write_bytes(b"not gzip")
    with pytest.raises(UsageError, match="not the files of mnist") as caught:
        preparation.prepare("mnist", data_dir=tmp_path / "out", downloads=tmp_path)
    assert all(name in str(caught.value) for name in names)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(b"not this"))
    with pytest.raises(UsageError, match=r"cifar-10-binary.tar.gz has SHA-256 \w+ instead of c4a38c50"):
        preparation.prepare("cifar10", data_dir=tmp_path / "out", downloads=tmp_path)


@needs_prepare
def test_without_a_network_the_urls_are_listed(tmp_path, monkeypatch):
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # a port that refuses
    with pytest.raises(UsageError, match="could not be downloaded") as caught:
        preparation.prepare("cifar10", data_dir=tmp_path)
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz" in str(caught.value)
    assert "`jaxclf data prepare cifar10 --downloads DIR`" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@needs_prepare
@pytest.mark.skipif(not DEBIAN.is_dir(), reason=f"needs {DEBIAN} (Debian's dataset-fashion-mnist)")
def test_fashion_mnist_through_the_real_builder(tmp_path):
    # What an interrupted run and another set's extraction leave behind must neither be used nor stand in the way.
    (tmp_path / "fashion_mnist" / "incomplete.ABC123_3.0.1").mkdir(parents=True)
    decoy = tmp_path / "downloads" / "extracted" / "GZIP.train-images-idx3-ubyte.gz"
    decoy.parent.mkdir(parents=True)
    decoy.write_bytes(bytes(47040016))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        directory = preparation.prepare("fashion_mnist", data_dir=tmp_path, downloads=DEBIAN)
    assert directory == tmp_path / "fashion_mnist" / "3.0.1"
    told = sorted(str(w.message).split()[0] for w in caught if "another checksum" in str(w.message))
    assert told == sorted(str(path) for path in DEBIAN.glob("*.gz"))
    assert preparation.prepare("fashion_mnist", data_dir=tmp_path, downloads=DEBIAN) == directory

    train = read("fashion_mnist", "train", data_dir=tmp_path)
    test = read("fashion_mnist", "test", data_dir=tmp_path)
    assert (train.images.shape, test.images.shape) == ((60000, 28, 28, 1), (10000, 28, 28, 1))
    for split, prefix in ((train, "train"), (test, "t10k")):
        pixels = idx(DEBIAN / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 784)
        labels = idx(DEBIAN / f"{prefix}-labels-idx1-ubyte.gz", 8)
        assert rows(split.images.reshape(-1, 784), split.labels) == rows(pixels, labels)

    # TFDS's order is its own, but fixed: these are the first labels of every preparation.
    assert train.labels[:10].tolist() == [2, 1, 8, 4, 1, 9, 2, 2, 0, 2]
    assert test.labels[:10].tolist() == [4, 4, 9, 7, 5, 1, 0, 5, 7, 4]

    part = ResidentTfds(
        DataConfig("fashion_mnist", data_dir=str(tmp_path), train_split="train[:20%]", test_split="test[9990:]")
    )
    assert (part.train_examples(), part.images()["test"].labels.tolist()) == (12000, test.labels[-10:].tolist())
    assert np.array_equal(part.images()["train"].images, train.images[:12000])
    for wrong, said in (("trane", "unknown split 'trane'; did you mean 'train'"), ("train[", r"split 'train\[' of .*")):
        with pytest.raises(UsageError, match=said):
            read("fashion_mnist", wrong, data_dir=tmp_path)

    mean, std = train.statistics()
    np.testing.assert_allclose([*mean, *std], [0.286041, 0.353024], atol=1e-6)
    row = RESIDENT["fashion_mnist"]
    np.testing.assert_allclose([*mean, *std], [*row.mean, *row.std], atol=5e-5)
    mean, std = FashionPairs(DataConfig("fashion_pairs", data_dir=str(tmp_path))).read("train").statistics()
    row = RESIDENT["fashion_pairs"]
    np.testing.assert_allclose([*mean, *std], [*row.mean, *row.std], atol=5e-5)
    # Reading it imports neither TensorFlow nor PyTorch.
    code = (
        "import sys; from jaxclf.config import DataConfig; from jaxclf.data import datasets;"
        f"datasets.resolve(DataConfig('fashion_mnist', data_dir={str(tmp_path)!r})).read('test');"
        "print({'tensorflow', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def rows(images: np.ndarray, labels: np.ndarray) -> str:
    """Return a digest of the set of (label, pixels), whatever the order."""
    pairs = np.concatenate([labels.astype(np.uint8)[:, None], images], axis=1)
    return hashlib.sha256(b"".join(sorted(row.tobytes() for row in pairs))).hexdigest()


def test_pairs_of_digits_are_balanced_and_share_no_digit_between_the_splits() -> None:
    pairs, digits = resolve(DataConfig("digit_pairs")), Digits(DataConfig("digits"))
    assert isinstance(pairs, ResidentSet)
    halves = {}
    for split, count in (("train", 10_000), ("test", 4_000)):
        part, single = pairs.read(split), digits.read(split)
        assert part.images.shape == (count, 16, 16, 1)
        assert not part.images[:, [0, 1, 2, 3, 12, 13, 14, 15]].any()
        assert np.bincount(part.labels).tolist() == [count // 100] * 100
        known = {image.tobytes(): label for image, label in zip(single.images, single.labels, strict=True)}
        left, right = ([half.tobytes() for half in part.images[:, 4:12, start : start + 8]] for start in (0, 8))
        assert [10 * known[a] + known[b] for a, b in zip(left, right, strict=True)] == part.labels.tolist()
        halves[split] = {*left, *right}
        assert np.array_equal(part.images, pairs.read(split).images)
    assert not halves["train"] & halves["test"]
    mean, std = pairs.read("train").statistics()
    np.testing.assert_allclose([*mean, *std], [*pairs.facts.mean, *pairs.facts.std], atol=5e-5)


def test_pairs_are_drawn_anew_by_seed_and_epoch_and_their_labels_stay() -> None:
    pairs = resolve(DataConfig("digit_pairs", classes=30, image_size=8))
    assert isinstance(pairs, DrawnSet)
    first = pairs.epoch(0, 0)
    assert first.images.shape == (3_000, 8, 8, 1)
    assert np.array_equal(first.images, pairs.epoch(0, 0).images)
    assert np.array_equal(first.images, pairs.images()["train"].images)
    for seed, epoch in ((0, 1), (1, 0)):
        other = pairs.epoch(seed, epoch)
        assert np.array_equal(other.labels, first.labels)
        assert (other.images != first.images).any((1, 2, 3)).mean() > 0.9
    data = pipeline.load(pairs)
    order = Order(seed=7, examples=3_000, batch_size=100, drop_last=False)
    given = {step: next(data.train_batches(order, step, 1)) for step in (0, 5, 30)}
    assert np.array_equal(given[0].images, given[5].images)
    assert np.array_equal(given[30].images, pairs.epoch(7, 1).images)
    held_out = resolve(DataConfig("digit_pairs", validation=0.1))
    assert isinstance(held_out, DrawnSet)
    with pytest.raises(
        UsageError, match=r"^data.validation is 0.1 but must be 0 for digit_pairs, whose training images"
    ):
        held_out.images()


def test_a_pair_of_halved_images_has_the_mean_of_each_four_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, labels = np.random.default_rng(0), np.arange(10, dtype=np.int32).repeat(2)
    images = rng.integers(0, 256, (20, 28, 28, 1)).astype(np.uint8)
    pairs = FashionPairs(DataConfig("fashion_pairs"))
    monkeypatch.setattr(pairs.origin, "read", lambda split: Images(images, labels))
    test = pairs.read("test")
    assert test.images.shape == (10_000, 28, 28, 1)
    means = images.reshape(20, 14, 2, 14, 2, 1).astype(np.float64).mean((2, 4))  # [n 14 14 1]
    left, right = test.images[4_237, 7:21, :14], test.images[4_237, 7:21, 14:]  # of class 42
    assert min(np.abs(left - means[number]).max() for number in (8, 9)) <= 0.5
    assert min(np.abs(right - means[number]).max() for number in (4, 5)) <= 0.5
    assert pairs.class_names[42] == "Coat | Pullover"


def test_images_that_are_not_square_have_no_preparation_from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = resolve(DataConfig("digit_pairs"))
    assert pairs.preprocessing.crop == 16
    monkeypatch.setattr(pairs, "facts", dataclasses.replace(pairs.facts, image_shape=(16, 32, 1)))
    with pytest.raises(
        UsageError, match=r"^images of digit_pairs are 16x32; only square ones are prepared from files$"
    ):
        _ = pairs.preprocessing


SCENES = DigitScenes(DataConfig("digit_scenes"))


def enlarged(images: np.ndarray, side: int) -> np.ndarray:
    """Return images [n 8 8] enlarged bilinearly in float64, with half-pixel centres and clamped edges."""
    at = np.clip((np.arange(side) + 0.5) * 8 / side - 0.5, 0, 7)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(8)))  # [side 8]
    return np.einsum("ai,nij,bj->nab", weights, images.astype(np.float64), weights)


def shows(part: Images, label: int, pixels: np.ndarray) -> bool:
    """Tell whether some digit of a class, enlarged to 9..12, has these pixels around all of it that is not black."""
    for side in (9, 10, 11, 12):
        for digit in enlarged(part.images[part.labels == label, ..., 0], side):
            (rows, columns) = (np.flatnonzero((digit >= 0.5).any(axis)) for axis in (1, 0))
            tight = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            if tight.shape == pixels.shape and np.abs(tight - pixels).max() <= 1:
                return True
    return False


def test_scenes_are_balanced_and_their_boxes_hold_one_to_three_digits_apart() -> None:
    for split, count in (("train", 6_400), ("test", 2_000)):
        part = SCENES.scenes(split)
        assert part.images.shape == (count, 32, 32, 1)
        assert np.bincount(part.labels).tolist() == [count // 10] * 10
        there = part.classes >= 0
        assert np.array_equal(part.classes, np.where(there, part.labels[:, None], -1))
        assert not part.boxes[~there].any()
        counts = np.bincount(there.sum(1), minlength=4) / count
        np.testing.assert_allclose(counts, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.04)
        covered = np.zeros((count, 32, 32), int)
        for number, place in zip(*np.nonzero(there), strict=True):
            y0, x0, y1, x1 = part.boxes[number, place]
            assert 0 <= y0 < y1 <= 32
            assert 0 <= x0 < x1 <= 32
            assert max(y1 - y0, x1 - x0) <= 12
            covered[number, y0:y1, x0:x1] += 1
        assert covered.max() == 1
        rest = ((part.images[..., 0] > 0) & (covered == 0)).sum((1, 2))  # fragments: three of 5x5 at most
        assert rest.max() <= 75
        assert (rest > 0).mean() > 0.9
        assert np.array_equal(SCENES.read(split).images, part.images)
    mean, std = SCENES.read("train").statistics()
    np.testing.assert_allclose([*mean, *std], [*SCENES.facts.mean, *SCENES.facts.std], atol=5e-5)


@pytest.mark.parametrize("name", ["train", "test", "two_classes"])
def test_a_box_is_tight_around_a_digit_of_its_class_and_of_its_split_alone(name: str) -> None:
    part, known = SCENES.scenes(name), {split: DIGITS.read(split) for split in ("train", "test")}
    own, other = ("train", "test") if name == "train" else ("test", "train")
    for number in range(7, len(part.images), len(part.images) // 4):
        for (y0, x0, y1, x1), label in zip(part.boxes[number], part.classes[number], strict=True):
            if label >= 0:
                pixels = part.images[number, y0:y1, x0:x1, 0].astype(np.float64)
                assert shows(known[own], label, pixels)
                assert not shows(known[other], label, pixels)


def test_scenes_are_drawn_anew_by_seed_and_epoch_and_their_labels_stay() -> None:
    first = SCENES.epoch(0, 0)
    assert np.array_equal(first.images, SCENES.read("train").images)
    for seed, epoch in ((0, 1), (1, 0)):
        other = SCENES.epoch(seed, epoch)
        assert np.array_equal(other.labels, first.labels)
        assert (other.images != first.images).any((1, 2, 3)).mean() > 0.99


def test_scenes_of_two_classes_show_every_ordered_pair_as_often() -> None:
    part = SCENES.scenes("two_classes")
    assert part.images.shape == (1_980, 32, 32, 1)
    assert part.boxes.shape == (1_980, 2, 4)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, tuple(part.classes.T), 1)
    assert np.array_equal(counts, 22 * (1 - np.eye(10, dtype=int)))
    with pytest.raises(UsageError, match=r"^unknown part of digit_scenes 'two_class'; did you mean 'two_classes'"):
        SCENES.scenes("two_class")
