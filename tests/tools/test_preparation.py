"""Preparing TFDS sets: what TFDS alone would write, resumed after a kill at any moment, and every refusal.

The toy sets yield encoded PNGs, so that preparing them imports no TensorFlow and takes no time.
"""

import dataclasses
import errno
import fcntl
import hashlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.writer import ExampleWriter

from jaxclf.config import DataConfig
from jaxclf.data import datasets, facts
from jaxclf.errors import RunError, UsageError
from jaxclf.tools import preparation
from tests.data.streamed import needs_prepare

pytestmark = needs_prepare


def know(monkeypatch: pytest.MonkeyPatch, *, train: int) -> None:
    """Let the table of streamed sets say how many images the toy has."""
    row = dataclasses.replace(facts.STREAMED["cars196"], name="jaxclf_toy", train_examples=train, test_examples=9)
    monkeypatch.setitem(facts.STREAMED, "jaxclf_toy", row)


def encoded(number: int, kind: str = "png") -> bytes:
    """Return a small random image as a file."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (2, 3 + number % 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


QUIETLY = staticmethod(lambda split, number: None)
"""A `between` that does nothing."""


class JaxclfToy(tfds.core.GeneratorBasedBuilder):
    """Three splits of images of different sizes."""

    VERSION: Any = tfds.core.Version("1.2.0")
    SIZES: ClassVar[dict[str, int]] = {"train": 23, "test": 9, "extra": 1}
    log: ClassVar[Path | None] = None
    """Gets a line for every example that is generated."""
    between: ClassVar[Any] = QUIETLY
    """Called before every example."""
    order: ClassVar[Any] = range
    """Takes the size of a split; returns its numbers in the order in which they are generated."""

    def _info(self) -> Any:
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        label = tfds.features.ClassLabel(names=["ant", "bee"])
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": image, "label": label})
        )

    def _split_generators(self, dl_manager: Any) -> Any:
        return {split: self._generate_examples(split, size) for split, size in self.SIZES.items()}

    def _generate_examples(self, split: str, size: int) -> Iterator[tuple[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for number in type(self).order(size):
            type(self).between(split, number)
            if self.log is not None:
                with self.log.open("a") as file:
                    file.write(f"{split} {number}\n")
            yield f"{split}-{number}", {"image": encoded(number), "label": number % 2}


class JaxclfToyByHand(JaxclfToy):
    """A set whose images have to be fetched by hand, in TFDS's older form, with two configs."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir should contain two files:\n  toy_images.tar and toy-labels.zip."
    BUILDER_CONFIGS: ClassVar[list[Any]] = [  # pyright: ignore[reportIncompatibleVariableOverride]
        tfds.core.BuilderConfig(name=name, version="2.0.0") for name in ("plain", "fancy")
    ]

    def _split_generators(self, dl_manager: Any) -> Any:
        assert (dl_manager.manual_dir / "toy_images.tar").exists()
        return [tfds.core.SplitGenerator(name="train", gen_kwargs={"split": "train", "size": 5})]


class JaxclfToyTasks(JaxclfToy):
    """No classification."""

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": tfds.features.Image(), "id": tfds.features.Text()}),
        )


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """Several shards for a few records, and TFDS's registry of progress bars as it was."""
    monkeypatch.setattr("tensorflow_datasets.core.utils.tqdm_utils._active", False)
    small_shards(monkeypatch.setattr)
    for name in ("log", "between", "order"):
        monkeypatch.setattr(JaxclfToy, name, JaxclfToy.__dict__[name])


def small_shards(setattr: Callable[..., None]) -> None:
    """Let TFDS make 4 shards of 23 records."""
    number = classmethod(lambda cls, total_size, num_examples, *_: min(4, num_examples))
    setattr("tensorflow_datasets.core.utils.shard_utils.ShardConfig.calculate_number_shards", number)


def tree(directory: Path) -> dict[str, str]:
    """Return the files below a directory, with a digest of each."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def by_tfds(builder: Any) -> dict[str, str]:
    """Return what TFDS alone writes."""
    config = tfds.download.DownloadConfig(try_download_gcs=False, manual_dir=builder._data_dir_root)
    builder.download_and_prepare(file_format="array_record", download_config=config)
    return tree(Path(builder.data_dir))


def generated(log: Path | None) -> dict[str, int]:
    """Return how many examples of each split were generated."""
    lines = log.read_text().splitlines() if log is not None and log.exists() else []
    return {split: sum(line.split()[0] == split for line in lines) for split in JaxclfToy.SIZES}


def stop_at(split: str, number: int) -> Any:
    """Return a `between` that raises before an example."""

    def between(at: str, now: int) -> None:
        if (at, now) == (split, number):
            raise OSError(errno.EIO, "the cable was pulled")

    return staticmethod(between)


def test_result_is_byte_for_byte_what_tfds_writes(tmp_path):
    expected = by_tfds(JaxclfToy(data_dir=tmp_path / "tfds"))
    directory = preparation.prepare("jaxclf_toy", data_dir=tmp_path / "ours")
    assert directory == tmp_path / "ours" / "jaxclf_toy" / "1.2.0"
    assert tree(directory) == expected
    assert len(expected) == 12  # 4 + 4 + 1 shards, dataset_info, features and the labels
    assert [path.name for path in directory.parent.iterdir()] == ["1.2.0"]
    builder: Any = tfds.builder_from_directory(str(directory))
    read = builder.as_data_source("train")
    assert sorted(example["label"] for example in read) == [0] * 12 + [1] * 11
    assert preparation.prepare("jaxclf_toy", data_dir=tmp_path / "ours") == directory


def test_sets_that_are_not_shuffled_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.DatasetInfo, "disable_shuffling", True)
    expected = by_tfds(JaxclfToy(data_dir=tmp_path / "tfds"))
    JaxclfToy.between = stop_at("train", 11)
    with pytest.raises(RunError):
        preparation.prepare("jaxclf_toy", data_dir=tmp_path / "ours")
    JaxclfToy.between = QUIETLY
    assert tree(preparation.prepare("jaxclf_toy", data_dir=tmp_path / "ours")) == expected


def test_failure_says_what_is_kept_and_the_same_call_goes_on(tmp_path):
    expected = by_tfds(JaxclfToy(data_dir=tmp_path / "tfds"))
    JaxclfToy.between, JaxclfToy.log = stop_at("test", 4), tmp_path / "log"
    with pytest.raises(RunError) as caught:
        preparation.prepare("jaxclf_toy", data_dir=tmp_path)
    assert str(caught.value) == (
        "jaxclf_toy: OSError: [Errno 5] the cable was pulled; finished splits are kept in "
        f"{tmp_path}/jaxclf_toy/1.2.0.parts, and the same command goes on from there"
    )
    assert not (tmp_path / "jaxclf_toy" / "1.2.0").exists()
    with pytest.raises(UsageError, match="jaxclf_toy is not prepared"):
        _ = datasets.StreamedTfds(DataConfig("jaxclf_toy", data_dir=str(tmp_path))).directory
    assert generated(JaxclfToy.log) == {"train": 23, "test": 4, "extra": 0}
    JaxclfToy.between = QUIETLY
    assert tree(preparation.prepare("jaxclf_toy", data_dir=tmp_path)) == expected
    assert generated(JaxclfToy.log) == {"train": 23, "test": 13, "extra": 1}


@pytest.mark.slow
def test_examples_that_come_twice_are_refused(tmp_path):
    JaxclfToy.order = staticmethod(lambda size: [*range(size), 3])
    with pytest.raises(RunError, match=r"^jaxclf_toy: .*Two examples share the same hashed key.* finished splits are"):
        preparation.prepare("jaxclf_toy", data_dir=tmp_path)


def test_split_of_another_size_than_the_table_says_is_refused_before_it_is_written(tmp_path, monkeypatch):
    know(monkeypatch, train=25)
    with pytest.raises(RunError, match=r"train is not what it should be: it has 23 examples of 25, so the source"):
        preparation.prepare("jaxclf_toy", data_dir=tmp_path)
    assert not list(tmp_path.rglob("*array_record*"))


def test_parts_of_something_else_are_never_mixed_in(tmp_path, monkeypatch):
    JaxclfToy.between = stop_at("test", 0)
    with pytest.raises(RunError):
        preparation.prepare("jaxclf_toy", data_dir=tmp_path)
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tfds, "__version__", "9.9.9")
        with pytest.raises(UsageError, match=r"1.2.0.parts was begun with tfds 4[\d.]+ instead of 9.9.9; go on with"):
            preparation.prepare("jaxclf_toy", data_dir=tmp_path)
    assert tree(tmp_path) == before
    parts = tmp_path / "jaxclf_toy" / "1.2.0.parts"
    (parts / "source.json").unlink()
    with pytest.raises(UsageError, match=r"1.2.0.parts holds splits, whole of unknown origin; delete that directory"):
        preparation.prepare("jaxclf_toy", data_dir=tmp_path)


def test_another_process_is_kept_out(tmp_path):
    parts = tmp_path / "jaxclf_toy" / "1.2.0.parts"
    parts.mkdir(parents=True)
    with (parts / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=rf"another process is preparing in {parts}"):
            preparation.prepare("jaxclf_toy", data_dir=tmp_path)
    assert preparation.prepare("jaxclf_toy", data_dir=tmp_path).name == "1.2.0"


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), RunError, "the disk of .*1.2.0.parts is full; finished"),
        (RuntimeError("write() failed: No space left on device; writing x"), RunError, "the disk of .* is full; fin"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), UsageError, "no permission for /x/y; finished"),
    ],
)
def test_disk_and_permissions_are_said_in_one_line(tmp_path, monkeypatch, error, kind, line):
    write, calls = ExampleWriter.write, []

    def fail(self: Any, path: Any, records: Any) -> Any:
        calls.append(path)
        if len(calls) == 6:
            write(self, path, itertools.islice(records, 1))
            raise error
        return write(self, path, records)

    with monkeypatch.context() as patch:
        patch.setattr(ExampleWriter, "write", fail)
        with pytest.raises(kind, match=line) as caught:
            preparation.prepare("jaxclf_toy", data_dir=tmp_path)
    assert "\n" not in str(caught.value)
    expected = by_tfds(JaxclfToy(data_dir=tmp_path / "tfds"))
    assert tree(preparation.prepare("jaxclf_toy", data_dir=tmp_path)) == expected


def test_progress_is_reported_where_there_is_no_terminal_and_a_bar_on_one(tmp_path, monkeypatch, capsys):
    know(monkeypatch, train=23)
    told: list[tuple[str, int, int | None]] = []
    preparation.prepare("jaxclf_toy", data_dir=tmp_path / "lines", report=lambda *line: told.append(line))
    assert told[11] == ("jaxclf_toy: reading train", 12, 23)
    assert told[-1] == ("jaxclf_toy: reading extra", 1, None)
    preparation.prepare("jaxclf_toy", data_dir=tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    told.clear()
    preparation.prepare("jaxclf_toy", data_dir=tmp_path / "bars", report=lambda *line: told.append(line))
    out, err = capsys.readouterr()
    assert (out, told) == ("", [])
    assert "Generating train examples..." in err


def test_files_fetched_by_hand_are_asked_for_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError) as caught:
        preparation.prepare("imagenet2012", data_dir=tmp_path)
    assert str(caught.value) == (
        f"imagenet2012 needs files fetched by hand that are not in {tmp_path}/downloads/manual: "
        "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar; give the directory they are in as --downloads DIR. "
        "TFDS says: manual_dir should contain "
        "two files: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar. You need to register on "
        "https://image-net.org/download-images in order to get the link to download the dataset."
    )
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(b"x" * 5000)
    with pytest.raises(UsageError, match=rf"not in {tmp_path}: ILSVRC2012_img_val.tar; give"):
        preparation.prepare("imagenet2012", data_dir=tmp_path / "out", downloads=tmp_path)
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"")
    with pytest.raises(UsageError, match=r"ILSVRC2012_img_train.tar is cut off or no archive \(5,000 bytes\)"):
        preparation.prepare("imagenet2012", data_dir=tmp_path / "out", downloads=tmp_path)
    assert not (tmp_path / "out").exists()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    """Write a tar of files."""
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_configs_and_files_fetched_by_hand_and_other_files_than_at_first(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    write_tar(files / "toy_images.tar", {"a": b"1"})
    (files / "toy-labels.zip").write_bytes(b"PK\x05\x06" + bytes(18))  # an empty one
    expected = by_tfds(JaxclfToyByHand(data_dir=files, config="fancy"))
    JaxclfToy.between = stop_at("train", 3)
    where: Any = {"data_dir": tmp_path / "ours", "downloads": files}
    with pytest.raises(RunError):
        preparation.prepare("jaxclf_toy_by_hand/fancy", **where)
    original = (files / "toy_images.tar").read_bytes()
    write_tar(files / "toy_images.tar", {"a": b"2"})
    with pytest.raises(UsageError, match=r"fancy/2.0.0.parts was begun with another toy_images.tar; go on with what"):
        preparation.prepare("jaxclf_toy_by_hand/fancy", **where)
    (files / "toy_images.tar").write_bytes(original)  # its time is another, its content is not
    JaxclfToy.between = QUIETLY
    directory = preparation.prepare("jaxclf_toy_by_hand/fancy", **where)
    assert directory == tmp_path / "ours" / "jaxclf_toy_by_hand" / "fancy" / "2.0.0"
    assert tree(directory) == expected
    metadata = (directory.parents[1] / ".config" / "metadata.json").read_text()
    assert json.loads(metadata) == {"default_config_name": "plain"}


def test_sets_that_are_no_image_classification_and_unknown_names_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"jaxclf_toy_tasks .*'id': 'Text'"):
        preparation.prepare("jaxclf_toy_tasks", data_dir=tmp_path)
    monkeypatch.setattr(tfds, "list_builders", lambda **_: ["mnist", "tf_flowers"])  # the real list takes seconds
    with pytest.raises(UsageError, match=r"unknown data set 'oxford_flower102'; did you mean 'oxford_flowers102'"):
        preparation.prepare("oxford_flower102", data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def child(data_dir: Path, until: Callable[[], bool] | None = None, *, events: int = -1) -> bool:
    """Prepare the toy in a forked process; return whether it came to its end.

    It is killed before its n-th change of a file below `data_dir`, or as soon as something is true.
    """
    if (pid := os.fork()) == 0:
        count = 0

        def audit(event: str, args: tuple[Any, ...]) -> None:
            nonlocal count
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            inside = str(data_dir) in str(args[0]) if args else False
            # shutil.rmtree goes by descriptors.
            inside = inside or (event in ("os.remove", "os.rmdir") and args[1] != -1)
            if inside and (writes or event in ("os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir")):
                if count == events:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        sys.addaudithook(audit)
        try:
            preparation.prepare("jaxclf_toy", data_dir=data_dir)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    ended, status = os.waitpid(pid, os.WNOHANG if until else 0)
    while not ended:
        if until and until():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
        ended, status = os.waitpid(pid, os.WNOHANG)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def kill_before_changes(root: Path, step: int) -> None:
    """Kill a preparation before every `step`-th change of a file."""
    expected = by_tfds(JaxclfToy(data_dir=root / "tfds"))
    for number in range(0, 10_000, step):
        data_dir = root / f"events{number}"
        directory = data_dir / "jaxclf_toy" / "1.2.0"
        ended = child(data_dir, events=number)
        assert not directory.exists() or tree(directory) == expected, number
        if ended:
            break
        child(data_dir, events=number // 2)  # a second time, while it goes on
        assert child(data_dir), number
        assert tree(directory) == expected, number
        assert [path.name for path in directory.parent.iterdir()] == ["1.2.0"], number
    print("changes", number)


def kill_after_moments(root: Path) -> None:
    """Kill a preparation whose generator takes its time, again and again; splits that are done are not begun again."""
    root.mkdir()
    expected = by_tfds(JaxclfToy(data_dir=root / "tfds"))
    JaxclfToy.log, JaxclfToy.between = root / "log", staticmethod(lambda split, number: time.sleep(0.002))
    splits = root / "jaxclf_toy" / "1.2.0.parts" / "splits"
    kills, before, moments = 0, generated(JaxclfToy.log), random.Random(0)
    for more in (moments.randint(1, 20) for _ in range(5)):
        done = {split for split in JaxclfToy.SIZES if (splits / split / "split.json").exists()}
        target = sum(before.values()) + more
        kills += not child(root, lambda target=target: sum(generated(JaxclfToy.log).values()) >= target)
        now = generated(JaxclfToy.log)
        assert all(now[split] == before[split] for split in done)
        before = now
    assert kills > 2
    assert child(root)
    assert tree(root / "jaxclf_toy" / "1.2.0") == expected
    print(kills, generated(JaxclfToy.log))


def elsewhere(root: Path, *calls: str, timeout: float) -> str:
    """Run functions of this module in a process that has no threads, which may be forked; return what it prints."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_preparation as here\n"
        "from tensorflow_datasets.core.utils import shard_utils\n"
        "here.tfds.display_progress_bar(False)\n"
        "number = classmethod(lambda cls, total_size, num_examples, *_: min(4, num_examples))\n"
        "shard_utils.ShardConfig.calculate_number_shards = number\n"
        "here.os.fsync = lambda file: None  # matters to the machine that crashes, not to the process\n"
        f"root = here.Path({str(root)!r})\n" + "\n".join(f"here.{call}" for call in calls)
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_killed_at_some_moments_and_before_some_changes(tmp_path):
    elsewhere(tmp_path, "kill_after_moments(root / 'moments')", "kill_before_changes(root, step=110)", timeout=60)


@pytest.mark.slow
def test_killed_before_every_change(tmp_path):
    print(elsewhere(tmp_path, "kill_before_changes(root, step=1)", timeout=900))


@pytest.mark.slow
def test_imagenet_in_small_through_the_real_builder(tmp_path, monkeypatch):
    files = tmp_path / "files"
    files.mkdir()
    for synset in ("n01440764", "n01443537"):
        images = {f"{synset}_{number}.JPEG": encoded(number, "jpeg") for number in range(7)}
        write_tar(files / f"{synset}.tar", images)
    classes = {path.name: path.read_bytes() for path in sorted(files.glob("n*.tar"))}
    write_tar(files / "ILSVRC2012_img_train.tar", classes)
    images = {f"ILSVRC2012_val_0000000{number}.JPEG": encoded(number, "jpeg") for number in range(1, 6)}
    write_tar(files / "ILSVRC2012_img_val.tar", images)
    monkeypatch.delitem(facts.STREAMED, "imagenet2012")
    config = tfds.download.DownloadConfig(try_download_gcs=False, manual_dir=files)
    alone = tfds.builder("imagenet2012", data_dir=tmp_path / "tfds")
    alone.download_and_prepare(file_format="array_record", download_config=config)
    with pytest.warns(UserWarning, match=r"img_\w+.tar has \d\d,\d\d\d bytes, the original [\d,]+: used as it is"):
        directory = preparation.prepare("imagenet2012", data_dir=tmp_path / "ours", downloads=files)
    assert tree(directory) == tree(Path(alone.data_dir))
    builder: Any = tfds.builder_from_directory(str(directory))
    read = builder.as_data_source("validation")
    assert [example["label"] for example in read] != []
