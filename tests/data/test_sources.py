"""Where encoded images come from: folders in torchvision's order, TFDS's records, subsets, and every refusal."""

import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclf.config import DataConfig
from jaxclf.data import sources
from jaxclf.data.datasets import resolve
from jaxclf.data.sources import Folder, Records, Report, Source
from jaxclf.errors import UsageError
from tests.data.streamed import edited, inside, streamed


def open_sources(config: DataConfig, report: Report | None = None) -> dict[str, Source]:
    return streamed(config).sources(report)


def touch(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode())
    return root


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """Names that sort otherwise than they read, other endings, directories in classes, and files between them."""
    inside = ("b/1.JPG", "b/10.jpeg", "b/2.png", "b/notes.txt", "b/deep/0.webp", "b/a.tif", "Z/é.ppm", "a b/x.bmp")
    return touch(tmp_path, "readme.jpg", *inside, "Z/deep/deeper/y.PGM", "Z/deep-1/z.tiff")


def test_a_folder_reads_class_by_class_in_sorted_order_but_nothing_hidden(odd_folder: Path) -> None:
    touch(odd_folder, "b/.hidden.png", "b/._1.JPG", "b/.ipynb_checkpoints/1.png", ".ipynb_checkpoints/1.png")
    with pytest.warns(UserWarning, match=r": 4 hidden directories and images \(\.name\) are left out$"):
        folder = Folder(odd_folder)
    assert folder.class_names == ("Z", "a b", "b")
    names = [str(Path(folder.name(i)).relative_to(odd_folder)) for i in range(len(folder))]
    assert names == [
        *("Z/é.ppm", "Z/deep-1/z.tiff", "Z/deep/deeper/y.PGM", "a b/x.bmp"),
        *("b/1.JPG", "b/10.jpeg", "b/2.png", "b/a.tif", "b/deep/0.webp"),
    ]
    assert folder.labels().tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert [folder[i] for i in (0, 8)] == [
        (b"Z/\xc3\xa9.ppm", 0, folder.name(0)),
        (b"b/deep/0.webp", 2, folder.name(8)),
    ]


def test_a_folder_is_another_one_with_another_file_but_not_in_another_place(odd_folder: Path) -> None:
    before = Folder(odd_folder).fingerprint()
    moved = shutil.copytree(odd_folder, odd_folder.parent / "moved")
    assert Folder(moved).fingerprint() == before
    touch(moved, "b/more.png")
    assert Folder(moved).fingerprint() != before


@pytest.mark.parametrize("train", ["", "train/"])
def test_a_folder_without_test_images_holds_out_a_fifth_of_each_class(train: str, tmp_path: Path) -> None:
    touch(tmp_path, *(f"{train}{name}/{number}.png" for name in ("ant", "bee") for number in range(10)))
    with pytest.warns(UserWarning, match=r"has no test images beside it: 20% of each class are$"):
        sources = open_sources(DataConfig(f"folder:{tmp_path}"))
    names = {split: [Path(source.name(i)).stem for i in range(len(source))] for split, source in sources.items()}
    assert names["test"] == ["4", "9", "4", "9"]
    assert names["train"] == [*"01235678", *"01235678"]
    assert sources["test"].labels().tolist() == [0, 0, 1, 1]


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/ant/1.png", "train/bee/notes.txt", "val/ant/1.png", "val/bee/1.png")
    with pytest.raises(UsageError, match=r"train has classes without an image \(\.jpg, .*\): bee$"):
        open_sources(DataConfig(f"folder:{tmp_path}"))


def test_classes_that_differ_between_splits_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/ant/1.png", "train/bee/1.png", "val/ant/1.png", "val/cow/1.png")
    with pytest.raises(
        UsageError,
        match=r"the classes of .*val are not those of the training images: .*val lacks bee; .*train lacks cow",
    ):
        open_sources(DataConfig(f"folder:{tmp_path}"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), r"there is no directory .*/set"),
        (
            ("set/training/ant/1.png", "set/testing/ant/1.png"),
            r"must hold the directories train and test or val or valid or validation.*; it holds testing, training",
        ),
        (("set/train/1.png", "set/val/ant/1.png"), r"/set/train has no directories; each class must be one"),
    ],
)
def test_a_folder_of_another_layout_is_refused(files: tuple[str, ...], message: str, tmp_path: Path) -> None:
    touch(tmp_path, *files)
    with pytest.raises(UsageError, match=message):
        open_sources(DataConfig(f"folder:{tmp_path / 'set'}"))


def test_the_splits_of_a_folder_can_be_chosen(photo_folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(photo_folder, tmp_path / "set")
    shutil.copytree(root / "val", root / "more")
    name = f"folder:{root}"
    assert {key: len(part) for key, part in open_sources(DataConfig(name)).items()} == {"train": 32, "test": 12}
    assert len(open_sources(DataConfig(name, train_split="more"))["train"]) == 12
    with pytest.raises(UsageError, match=r"unknown split of .*'mor'.*did you mean 'more'"):
        open_sources(DataConfig(name, test_split="mor"))


def test_what_is_held_out_leaves_training_and_first_classes_keep_their_order(photo_folder: Path) -> None:
    opened = open_sources(DataConfig(f"folder:{photo_folder}", classes=3, validation=0.25))
    names = {key: [Path(part.name(i)).parent.name for i in range(len(part))] for key, part in opened.items()}
    assert {key: len(part) for key, part in names.items()} == {"train": 18, "test": 9, "validation": 6}
    assert set(names["train"]) == set(names["test"]) == set(names["validation"]) == {"ant", "bee", "cat"}
    train = {opened["train"].name(i) for i in range(18)}
    assert not train & {opened["validation"].name(i) for i in range(6)}
    prints = {part.fingerprint() for part in opened.values()}
    whole = {part.fingerprint() for part in open_sources(DataConfig(f"folder:{photo_folder}")).values()}
    assert len(prints | whole) == 5


def config(data_dir: Path, **fields: Any) -> DataConfig:
    return DataConfig("synthetic_imagenet", data_dir=str(data_dir), image_size=32, **fields)


def test_records_are_what_tfds_reads(tiny_imagenet: Path) -> None:
    import tensorflow_datasets as tfds

    opened = open_sources(config(tiny_imagenet))
    assert {key: len(part) for key, part in opened.items()} == {"train": 64, "test": 16}
    builder: Any = tfds.builder_from_directory(inside(tiny_imagenet))
    theirs = builder.as_data_source("validation", decoders={"image": tfds.decode.SkipDecoding()})
    for index in range(16):
        ours, example = opened["test"][index], theirs[index]
        assert (ours.data, ours.label) == (example["image"], example["label"])
        assert (
            ours.name == f"{inside(tiny_imagenet)}, split validation, record {index} ({example['file_name'].decode()})"
        )
        assert opened["test"].name(index) in ours.name


def test_expressions_of_splits_are_tfdss(tiny_imagenet: Path) -> None:
    opened = open_sources(config(tiny_imagenet, train_split="train[:75%]+validation", test_split="train[75%:]"))
    assert {key: len(part) for key, part in opened.items()} == {"train": 64, "test": 16}
    with pytest.raises(UsageError, match=r"unknown split 'trane'; did you mean 'train'\?"):
        open_sources(config(tiny_imagenet, train_split="trane"))
    with pytest.raises(UsageError, match=r"split 'train\[5' of .*synthetic_imagenet"):
        open_sources(config(tiny_imagenet, train_split="train[5"))


@pytest.mark.parametrize("classes", [2, 5, 8])
def test_first_classes_are_all_images_of_the_first_labels(classes: int, own_imagenet: Path) -> None:
    whole, part = (open_sources(config(own_imagenet, classes=count))["train"] for count in (None, classes))
    chosen = [whole[index] for index in range(64) if whole[index].label < classes]
    assert [part[index] for index in range(len(part))] == chosen
    assert len(part) == 8 * classes
    assert part.labels().tolist() == [example.label for example in chosen]


def test_the_label_index_is_built_once_and_kept_beside_the_data(
    own_imagenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    first = open_sources(config(own_imagenet, classes=3), lambda *args: told.append(args))
    assert [line[1:] for line in told] == [(0, 64), (0, 16)]
    files = sorted(path.name for path in inside(own_imagenet).glob("jaxclf-*"))
    assert files == ["jaxclf-labels-train.npy", "jaxclf-labels-validation.npy"]

    def fail(*_: Any) -> Any:
        raise AssertionError("a record was read again")

    monkeypatch.setattr(Records, "__getitem__", fail)
    again = open_sources(config(own_imagenet, classes=3))
    assert np.array_equal(first["train"].labels(), again["train"].labels())


def test_a_broken_index_or_one_of_another_length_is_built_again(own_imagenet: Path, tmp_path: Path) -> None:
    source = Records(str(inside(own_imagenet)), "train")
    expected = source.labels().tolist()
    index = inside(own_imagenet) / "jaxclf-labels-train.npy"
    whole = index.read_bytes()
    np.save(tmp_path / "short.npy", np.zeros(5, np.int32))
    for other in (whole[:100], b"", b"\0" * 400, (tmp_path / "short.npy").read_bytes()):
        index.write_bytes(other)
        assert source.labels().tolist() == expected
        assert index.read_bytes() == whole


def test_an_index_that_cannot_be_written_is_said(own_imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(np, "save", fail)
    text = r"jaxclf-labels-{}.npy could not be written \(Read-only file system\); it will be built again"
    with (
        pytest.warns(UserWarning, match=text.format("train")),
        pytest.warns(UserWarning, match=text.format("validation")),
    ):
        assert len(open_sources(config(own_imagenet, classes=3))["train"]) == 24
    assert not list(inside(own_imagenet).glob("jaxclf-*"))


def test_a_set_with_a_missing_shard_or_without_its_metadata_is_only_half_there(own_imagenet: Path) -> None:
    (shard,) = inside(own_imagenet).glob("*-train.array_record-*")
    for file, message in ((shard, f"{shard.name} is missing"), (shard.parent / "dataset_info.json", "synthetic_imag")):
        file.unlink()
        with pytest.raises(UsageError, match=re.escape(message)):
            open_sources(config(own_imagenet))


def test_a_set_that_is_no_classification_is_refused(own_imagenet: Path) -> None:
    with edited(inside(own_imagenet) / "features.json") as content:
        fields = content["featuresDict"]["features"]
        fields["target"] = fields.pop("label")
    with pytest.raises(UsageError, match=r"synthetic_imagenet is no image classification set: it has \{.*'target'"):
        resolve(config(own_imagenet))


def test_sources_open_their_files_where_they_are_sent(tiny_imagenet: Path, photo_folder: Path) -> None:
    for data in (config(tiny_imagenet, classes=4), DataConfig(f"folder:{photo_folder}", classes=3)):
        for source in open_sources(data).values():
            assert isinstance(source, sources.Source)
            again = pickle.loads(pickle.dumps(source))
            assert [again[i] for i in range(len(again))] == [source[i] for i in range(len(source))]
            assert again.fingerprint() == source.fingerprint()
