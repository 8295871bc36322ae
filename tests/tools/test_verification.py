"""`jaxclf data verify` reads all of a set, names each thing that is broken once, and ends with exit code 2 then."""

import dataclasses
import io
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from jaxclf.cli.main import main
from jaxclf.config import DataConfig
from jaxclf.data.datasets import ResidentTfds
from jaxclf.data.facts import RESIDENT
from jaxclf.errors import UsageError
from jaxclf.tools import verification
from jaxclf.tools.verification import verify
from tests.data.streamed import Example, inside, replace_shards, write_shard


def verified(name: str, data_dir: Path | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], str]:
    """Run the command; return its exit code, the lines that it prints, and what it says at the end on stderr."""
    code = main(["data", "verify", name, *(() if data_dir is None else ("--data-dir", str(data_dir)))])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


@pytest.fixture
def folder(photo_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(photo_folder, tmp_path / "set")


def shard_of(data_dir: Path, split: str = "train") -> Path:
    (shard,) = inside(data_dir).glob(f"*-{split}.array_record-*")
    return shard


def read_shard(file: Path) -> list[Any]:
    reader = ArrayRecordReader(str(file))
    records = [Example.FromString(record) for record in reader.read_all()]
    reader.close()
    return records


def changed(data_dir: Path, change: Callable[[list[Any]], None], split: str = "train") -> Path:
    """Change some of a split's examples; return the shard."""
    shard = shard_of(data_dir, split)
    records = read_shard(shard)
    change(records)
    write_shard(shard, [one if isinstance(one, bytes) else one.SerializeToString() for one in records])
    return shard


def divide(data_dir: Path, first: int) -> list[Path]:
    """Divide the training images into a shard of the `first` ones and one of the others."""
    records = [one.SerializeToString() for one in read_shard(shard_of(data_dir))]
    return replace_shards(data_dir, [records[:first], records[first:]])


# A set in folders


def test_every_broken_file_is_named_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (folder / "train" / "bee" / "2.jpg").read_bytes()
    broken = {
        "train/ant/3.jpg": b"",
        "train/bee/2.jpg": whole[:-40],
        "train/dog/note.jpg": b"Not an image.\n",
        "val/cat/1.png": b"\x89PNG\r\n\x1a\n",
    }
    for file, content in broken.items():
        (folder / file).write_bytes(content)
    (folder / "train" / "dog" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "train" / "dog" / "note.txt").write_text("no image by its name")
    code, lines, err = verified(f"folder:{folder}", None, capsys)
    assert code == 2
    assert [line for line in lines if "cannot be read" not in line] == [
        "train: 34 images, 4 of them cannot be used",
        "val: 12 images, 1 of them cannot be used",
    ]
    named = [line.split(" cannot be read (")[0] for line in lines if "cannot be read" in line]
    assert sorted(named) == sorted(str(folder / file) for file in (*broken, "train/dog/gone.jpg"))
    assert err == f"jaxclf: folder:{folder}: 5 of 46 images cannot be used; lines above: 5\n"
    assert f"{folder}/train/ant/3.jpg cannot be read (UnidentifiedImageError: no image format that PIL knows)" in lines
    assert any(re.search(r"bee/2\.jpg cannot be read \(OSError: .*truncated", line) for line in lines)


def test_names_that_are_no_text_are_escaped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/train/ant/caf\xe9.jpg")).write_bytes(b"")
    (folder / "train" / "ant" / "né\n\x1b[2J.jpg").write_bytes(b"")
    code, lines, _ = verified(f"folder:{folder}", None, capsys)
    assert code == 2
    assert [line.split(" cannot be read")[0] for line in lines[:-2]] == [
        rf"{folder}/train/ant/caf\udce9.jpg",
        rf"{folder}/train/ant/né\n\x1b[2J.jpg",
    ]


def test_splits_that_runs_take_on_request_are_read_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "val", folder / "test")
    (folder / "val" / "dog" / "0.png").write_bytes(b"")
    code, lines, _ = verified(f"folder:{folder}", None, capsys)
    assert code == 2
    assert [line.split(":")[0] for line in lines] == ["train", "test", lines[2].split(":")[0], "val"]
    assert lines[2].startswith(f"{folder}/val/dog/0.png cannot be read")


def test_what_stops_a_run_is_said_before_anything_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "decode", None)
    (folder / "val" / "cat").rename(folder / "val" / "cow")
    code, lines, err = verified(f"folder:{folder}", None, capsys)
    assert (code, lines) == (2, [])
    sides = f"{folder}/val lacks cat; {folder}/train lacks cow"
    assert err == f"jaxclf: the classes of {folder}/val are not those of the training images: {sides}\n"


# A set of TFDS


def test_whole_sets_are_readable(tiny_imagenet: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, data_dir, said in (
        ("digits", None, ["train: 1,352 images", "test: 445 images", "1,797 images, all readable"]),
        (f"folder:{photo_folder}", None, ["train: 32 images", "val: 12 images", "44 images, all readable"]),
        ("synthetic_imagenet", tiny_imagenet, ["train: 64 images", "validation: 16 images", "80 images, all readable"]),
    ):
        assert verified(name, data_dir, capsys) == (0, said, "")


def test_every_broken_record_is_named_once(own_imagenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(examples: list[Any]) -> None:
        examples[3].features.feature["image"].bytes_list.value[0] = bytes(100)
        del examples[17].features.feature["image"]
        del examples[18].features.feature["label"]
        examples[30].features.feature["label"].int64_list.value[0] = 8
        examples[31].features.feature["label"].int64_list.value[0] = -1
        examples[32].features.feature["label"].int64_list.value[0] = 2**40
        examples[50] = b"no message"

    def validation(examples: list[Any]) -> None:
        whole = examples[15].features.feature["image"].bytes_list.value[0]
        examples[15].features.feature["image"].bytes_list.value[0] = whole[: len(whole) // 2]

    changed(own_imagenet, train)
    changed(own_imagenet, validation, "validation")
    code, lines, err = verified("synthetic_imagenet", own_imagenet, capsys)
    assert code == 2
    assert lines[7] == "train: 64 images, 7 of them cannot be used"
    assert lines[9:] == ["validation: 16 images, 1 of them cannot be used"]
    named = [re.match(rf"{inside(own_imagenet)}, split (\w+), record (\d+)", line) for line in (*lines[:7], lines[8])]
    assert [one and one.groups() for one in named] == [
        *(("train", number) for number in ("3", "17", "18", "30", "31", "32", "50")),
        ("validation", "15"),
    ]
    assert re.search(r"record 3 \(n\w+\.JPEG\) cannot be read \(UnidentifiedImageError: ", lines[0])
    assert re.search(r"record 30 \(n\w+\.JPEG\) has the label 8, not one of 0 to 7$", lines[3])
    assert re.search(r"record 50 cannot be read \(DecodeError: ", lines[6])
    assert err == "jaxclf: synthetic_imagenet: 8 of 80 images cannot be used; lines above: 8\n"


def test_a_label_that_is_no_class_takes_no_part_in_what_is_measured(
    own_imagenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(examples: list[Any]) -> None:
        examples[32].features.feature["label"].int64_list.value[0] = 2**40

    changed(own_imagenet, change)
    assert main(["data", "info", "synthetic_imagenet", "--data-dir", str(own_imagenet)]) == 0
    assert re.search(r"class size  7 \(n\d+\) to 8 \(n\d+\) training images", capsys.readouterr().out)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def garbage(data: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(data))


@pytest.mark.parametrize("damage", [half, garbage, lambda _: b"", lambda data: data + b"more"])
def test_a_shard_that_cannot_be_opened_is_one_line(
    damage: Callable[[bytes], bytes], own_imagenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = divide(own_imagenet, 40)
    first.write_bytes(damage(first.read_bytes()))
    code, lines, err = verified("synthetic_imagenet", own_imagenet, capsys)
    assert code == 2
    assert re.fullmatch(rf"{first} cannot be read \(RuntimeError: .*\)", lines[0])
    assert lines[1:] == ["train: 64 images, 40 of them cannot be used", "validation: 16 images"]
    assert err == "jaxclf: synthetic_imagenet: 40 of 80 images cannot be used; lines above: 1\n"


def test_the_other_records_of_a_damaged_shard_are_read(own_imagenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, second = divide(own_imagenet, 40)
    data = bytearray(second.read_bytes())
    data[9000] ^= 1
    second.write_bytes(data)
    code, lines, _ = verified("synthetic_imagenet", own_imagenet, capsys)
    assert code == 2
    said = "split train, record 4\\d cannot be read \\(RuntimeError: Corrupted Riegeli"
    assert re.match(f"{inside(own_imagenet)}, {said}", lines[0])
    assert lines[1:] == ["train: 64 images, 1 of them cannot be used", "validation: 16 images"]


@pytest.mark.parametrize(("count", "lost"), [(37, 3), (80, 0)])
def test_a_shard_of_too_few_or_too_many_records_is_one_line(
    count: int, lost: int, own_imagenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = divide(own_imagenet, 40)
    write_shard(first, [one.SerializeToString() for one in (read_shard(first) * 2)[:count]])
    code, lines, err = verified("synthetic_imagenet", own_imagenet, capsys)
    told = f"train: 64 images{f', {lost} of them cannot be used' if lost else ''}"
    assert (code, lines) == (2, [f"{first} holds {count} records instead of 40", told, "validation: 16 images"])
    assert err == f"jaxclf: synthetic_imagenet: {lost} of 80 images cannot be used; lines above: 1\n"


def test_a_set_that_is_not_prepared_says_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"`jaxclf data prepare cifar10 --data-dir {tmp_path}`"
    _, lines, err = verified("cifar10", tmp_path, capsys)
    assert (lines, err) == (
        [],
        f"jaxclf: cifar10 is not prepared: there is no {tmp_path}/cifar10/3.0.2; run {command}\n",
    )
    (tmp_path / "cifar10" / "3.0.2.parts").mkdir(parents=True)
    code, _, err = verified("cifar10", tmp_path, capsys)
    assert code == 2
    assert err == f"jaxclf: cifar10 is only half prepared, in {tmp_path}/cifar10/3.0.2.parts; go on with {command}\n"


# Resident sets


@pytest.fixture
def tiny_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TFDS directory with an mnist of 20 and 10 images, and a table that knows it."""
    facts = dataclasses.replace(RESIDENT["mnist"], train_examples=20, test_examples=10)
    monkeypatch.setitem(RESIDENT, "mnist", facts)
    builder: Any = tfds.builder("mnist", data_dir=tmp_path, file_format="array_record")
    directory = Path(builder.data_dir)
    directory.mkdir(parents=True)
    template: Any = tfds.core.ShardedFileTemplate(
        builder.data_path, dataset_name="mnist", filetype_suffix="array_record"
    )
    splits = []
    for split, count in (("train", 20), ("test", 10)):
        named = template.replace(split=split)
        splits.append(tfds.core.SplitInfo(name=split, shard_lengths=[count], num_bytes=1, filename_template=named))
        records = [digit(number).SerializeToString() for number in range(count)]
        write_shard(Path(str(named.sharded_filepath(shard_index=0, num_shards=1))), records)
    builder.info.set_splits(tfds.core.SplitDict(splits))
    builder.info.write_to_directory(directory)
    return tmp_path


def digit(number: int, side: int = 28) -> Any:
    file, example = io.BytesIO(), Example()
    Image.new("L", (side, side), 10 * number).save(file, "PNG")
    example.features.feature["image"].bytes_list.value.append(file.getvalue())
    example.features.feature["label"].int64_list.value.append(number % 10)
    return example


def test_a_resident_set_is_read_record_by_record(tiny_mnist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ResidentTfds(DataConfig("mnist", data_dir=str(tiny_mnist))).read("train").images[:, 5, 5, 0].tolist() == [
        *range(0, 200, 10)
    ]
    code, lines, err = verified("mnist", tiny_mnist, capsys)
    assert (code, lines, err) == (0, ["train: 20 images", "test: 10 images", "30 images, all readable"], "")
    (shard,) = tiny_mnist.glob("mnist/*/mnist-train.array_record-*")
    records = read_shard(shard)
    records[4].features.feature["image"].bytes_list.value[0] = b"no image"
    records[7] = digit(7, side=27)
    records[9].features.feature["label"].int64_list.value[0] = 10
    write_shard(shard, [record.SerializeToString() for record in records])
    code, lines, err = verified("mnist", tiny_mnist, capsys)
    assert code == 2
    start = f"{shard.parent}, split train, record"
    assert lines == [
        f"{start} 4 cannot be read (UnidentifiedImageError: no image format that PIL knows)",
        f"{start} 7 has the shape (27, 27, 1), not (28, 28, 1)",
        f"{start} 9 has the label 10, not one of 0 to 9",
        "train: 20 images, 3 of them cannot be used",
        "test: 10 images",
    ]
    assert err == "jaxclf: mnist: 3 of 30 images cannot be used; lines above: 3\n"


# How it goes


def test_progress_is_told(photo_folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    assert len([*verify(f"folder:{photo_folder}", report=lambda *args: told.append(args))]) == 3
    assert told == [("reading train", 0, 32), ("reading val", 0, 12)]


def test_faults_are_said_as_they_are_found(folder: Path) -> None:
    (folder / "train" / "ant" / "0.jpg").write_bytes(b"")
    lines: Iterator[str] = verify(f"folder:{folder}")
    assert next(lines).startswith(f"{folder}/train/ant/0.jpg cannot be read")
    for file in folder.glob("val/*/*.png"):
        file.write_bytes(b"")
    with pytest.raises(UsageError, match=r"13 of 44 images cannot be used; lines above: 13$"):
        list(lines)


def test_no_thread_is_left_when_it_ends_or_is_left_early(photo_folder: Path) -> None:
    before = set(threading.enumerate())
    for count in (3, 1):
        lines: Any = verify(f"folder:{photo_folder}")
        for _ in range(count):
            next(lines)
        lines.close()
        assert set(threading.enumerate()) == before
