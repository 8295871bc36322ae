"""Streams: nothing that reads changes a pixel, a run goes on anywhere, every fault is named, and nothing is left."""

import dataclasses
import gc
import hashlib
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxclf.config import AugmentConfig, Config, DataConfig, Loader, RunConfig
from jaxclf.data import pipeline, stream
from jaxclf.data.datasets import resolve
from jaxclf.data.order import Batch, Order, epoch_order, example_rng
from jaxclf.data.stream import Stream
from jaxclf.data.transforms import RandomResizedCrop, ResizeCenterCrop
from jaxclf.devices.layout import Layout, one_device
from jaxclf.errors import RunError, UsageError
from tests.data.streamed import streamed

CROP = AugmentConfig(crop="random_resized", pad=0)
THREAD = Loader(threads=1)
OPENED: list[Stream] = []
IN_A_PROCESS = Loader(workers=1)
"""Its start takes seconds."""
BY_EITHER = pytest.mark.parametrize("loader", [THREAD, pytest.param(IN_A_PROCESS, marks=pytest.mark.slow)], ids=str)


@pytest.fixture(params=["folder", "records"])
def data(request: pytest.FixtureRequest) -> DataConfig:
    """The config of a set of images in folders, and of one that TFDS prepared."""
    if request.param == "folder":
        return DataConfig(f"folder:{request.getfixturevalue('photo_folder')}", image_size=24)
    return DataConfig("synthetic_imagenet", data_dir=str(request.getfixturevalue("tiny_imagenet")), image_size=24)


def open_stream(
    data: DataConfig, loader: Loader = THREAD, augment: AugmentConfig = CROP, *, rank: int = 0, hosts: int = 1
) -> Stream:
    OPENED.append(Stream(streamed(data), augment, loader, Layout(one_device().mesh, rank, hosts)))
    return OPENED[-1]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close what a test has opened."""
    yield
    while OPENED:
        OPENED.pop().close()


def digests(batches: Iterator[Batch]) -> list[str]:
    """Return a hash of every batch: its pixels, labels, numbers and mask."""
    return [
        hashlib.sha256(
            b"".join(np.ascontiguousarray(part).tobytes() for part in (b.images, b.labels, b.examples, b.mask))
        ).hexdigest()
        for b in batches
    ]


def order_of(opened: Stream, batch_size: int, seed: int = 3, *, drop_last: bool = False) -> Order:
    return Order(seed, opened.sizes["train"], batch_size, drop_last)


def left() -> tuple[int, int, int]:
    """Return how many threads, child processes and open files this process has."""
    gc.collect()  # what JAX, grain and array_record hold until Python collects it
    return threading.active_count(), len(multiprocessing.active_children()), len(list(Path("/proc/self/fd").iterdir()))


def test_a_batch_is_a_pure_function_of_seed_epoch_and_index(data: DataConfig) -> None:
    opened, crop = open_stream(data), RandomResizedCrop(24)
    for batch_size, epoch in ((10, 0), (10, 1), (5, 0), (70, 0)):  # whatever the batch size: 70 is one of three parts
        order = order_of(opened, batch_size)
        batches = list(opened.train_batches(order, epoch * order.steps_per_epoch, 1))
        shown = epoch_order(3, epoch, order.examples)
        assert np.array_equal(np.concatenate([batch.examples for batch in batches]), shown)
        images = np.concatenate([batch.images for batch in batches])
        labels = np.concatenate([batch.labels for batch in batches])
        for image, label, index in zip(images, labels, shown.tolist(), strict=True):
            encoded = opened.sources["train"][index]
            assert np.array_equal(image, crop(encoded.data, example_rng(3, epoch, index)))
            assert label == encoded.label


@pytest.mark.parametrize(
    ("loader", "data"),
    [
        (Loader(threads=5), "folder"),
        pytest.param(Loader(workers=2), "folder", marks=pytest.mark.slow),
        pytest.param(Loader(workers=3, threads=2), "records", marks=pytest.mark.slow),
    ],
    indirect=["data"],
    ids=str,
)
def test_readers_change_no_bit_and_a_worker_that_dies_is_named(loader: Loader, data: DataConfig) -> None:
    before = left()
    one, other = open_stream(data), open_stream(data, loader)
    order = order_of(one, 2)
    steps = order.steps_per_epoch
    for start in (0, steps):  # the second epoch goes on with the same readers
        assert digests(one.train_batches(order, start, 1)) == digests(other.train_batches(order, start, 1))
    processes = sorted(multiprocessing.active_children(), key=lambda process: process.name)
    assert len(processes) == loader.workers
    if processes:
        batches, victim = other.train_batches(order, 2 * steps, 1), processes[1]
        next(batches)
        os.kill(victim.pid or 0, signal.SIGKILL)
        begin = time.monotonic()
        said = rf"worker \d of {loader.workers} \(process {victim.pid}\) ended with signal SIGK"
        with pytest.raises(RunError, match=said):
            list(batches)
        assert time.monotonic() - begin < 30
    assert digests(one.eval_batches("test", 7)) == digests(other.eval_batches("test", 7))
    one.close()
    other.close()
    assert left()[:2] == before[:2]


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_read_shards_of_the_same_batches(hosts: int, data: DataConfig) -> None:
    whole = open_stream(data)
    order = order_of(whole, 10)
    parts = [open_stream(data, rank=rank, hosts=hosts) for rank in range(hosts)]
    for start in (0, 2):
        shares = [part.train_batches(order, start, 1) for part in parts]
        for batch, *own in zip(whole.train_batches(order, start, 1), *shares, strict=True):
            for field in ("images", "labels"):
                joined = np.concatenate([getattr(part, field) for part in own])
                assert np.array_equal(joined, getattr(batch, field))
            assert np.array_equal(np.concatenate([part.examples for part in own]), batch.examples)
    shares = [part.eval_batches("test", 7) for part in parts]
    for batch, *own in zip(whole.eval_batches("test", 7), *shares, strict=True):
        assert np.array_equal(np.concatenate([part.images for part in own]), batch.images)
        assert np.array_equal(np.concatenate([part.mask for part in own]), batch.mask)


def test_a_batch_of_many_parts_is_put_together_in_order(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_stream(data)
    order = order_of(whole, 31)
    expected = digests(whole.train_batches(order, 0, 1))
    monkeypatch.setattr(stream, "PART", 4)
    parted = open_stream(data, Loader(threads=3))
    assert parted.task("train", 31, order).parts == 8
    assert digests(parted.train_batches(order, 0, 1)) == expected


def test_a_stream_goes_on_anywhere(data: DataConfig) -> None:
    opened = open_stream(data)
    order = order_of(opened, 6)
    steps = order.steps_per_epoch
    epochs = [digests(opened.train_batches(order, epoch * steps, 1)) for epoch in range(3)]
    assert len({*itertools.chain.from_iterable(epochs)}) == 3 * steps
    for step in (1, steps - 1, steps, steps + 2, 3 * steps - 1):
        again = open_stream(data, Loader(threads=3))
        assert digests(again.train_batches(order, step, 1)) == epochs[step // steps][step % steps :]


def test_an_epoch_that_was_left_early_begins_anew_where_it_is_asked(data: DataConfig) -> None:
    opened = open_stream(data)
    order = order_of(opened, 6)
    whole = digests(opened.train_batches(order, 0, 1))
    for step in (0, 2, 1):
        assert digests(itertools.islice(opened.train_batches(order, step, 1), 2)) == whole[step : step + 2]


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_last_batch_is_smaller_or_left_out(drop_last: bool, data: DataConfig) -> None:
    opened = open_stream(data)
    order = order_of(opened, 9, drop_last=drop_last)
    sizes = [len(batch.images) for batch in opened.train_batches(order, 0, 1)]
    rest = order.examples % 9
    assert sizes == [9] * (order.examples // 9) + ([] if drop_last or not rest else [rest])


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_an_evaluation_shows_every_example_once(batch_size: int, data: DataConfig) -> None:
    opened = open_stream(data)
    cut = ResizeCenterCrop(resize=27, size=24)
    for split in ("test", "test", "train"):  # a second time too
        batches = list(opened.eval_batches(split, batch_size))
        assert all(len(batch.images) == len(batch.mask) == batch_size for batch in batches)
        shown = np.concatenate([batch.examples[batch.mask] for batch in batches])
        assert shown.tolist() == list(range(opened.sizes[split]))
        images = np.concatenate([np.asarray(batch.images)[batch.mask] for batch in batches])
        encoded = [opened.sources[split][index] for index in shown.tolist()]
        assert np.array_equal(images, [cut(one.data, np.random.default_rng()) for one in encoded])
    next(opened.eval_batches("test", batch_size))  # left early
    assert np.concatenate([batch.mask for batch in opened.eval_batches("test", batch_size)]).sum() == len(
        opened.sources["test"]
    )


def test_examples_are_those_of_an_evaluation(data: DataConfig) -> None:
    opened = open_stream(data)
    (batch,) = opened.eval_batches("test", opened.sizes["test"])
    images, labels = opened.examples("test", np.array([5, 2, 2], np.int32))
    assert np.array_equal(images, np.asarray(batch.images)[[5, 2, 2]])
    assert np.array_equal(labels, np.asarray(batch.labels)[[5, 2, 2]])


def test_batches_are_bytes_on_the_device_ahead_of_their_use() -> None:
    taken = []

    def batches() -> Iterator[Batch]:
        for number in range(5):
            taken.append(number)
            rows = np.arange(2, dtype=np.int32)
            yield Batch(np.full((2, 1, 1, 3), number, np.uint8), rows, None, rows, np.ones(2, bool), size=2)

    ahead = stream.to_device(batches(), one_device())
    for number in range(5):
        batch = next(ahead)
        assert isinstance(batch.images, jax.Array)
        assert batch.images.dtype == np.uint8
        assert int(batch.images[0, 0, 0, 0]) == number
        assert taken == list(range(min(5, number + 1 + stream.ON_DEVICE)))
    assert next(ahead, None) is None


def test_without_a_crop_training_images_are_cut_as_test_images_are(data: DataConfig) -> None:
    opened = open_stream(data, augment=AugmentConfig(pad=0))
    task = opened.task("train", 8, order_of(opened, 8))
    first, later = (task.load(np.arange(8, dtype=np.int32), epoch=epoch) for epoch in (0, 5))
    assert np.array_equal(first.images, later.images)
    assert np.array_equal(first.images, opened.examples("train", np.arange(8, dtype=np.int32))[0])


def test_fast_pixels_are_others_of_the_same_boxes(data: DataConfig) -> None:
    pytest.importorskip("cv2", reason="needs the extra fast")
    numbers = np.arange(16, dtype=np.int32)
    exact, fast = (
        open_stream(DataConfig(data.dataset, data_dir=data.data_dir, image_size=24, pixels=pixels))
        for pixels in ("exact", "fast")
    )
    for split, order in (("train", order_of(exact, 16)), ("test", None)):
        ours, theirs = (
            opened.task(split, 16, order).load(numbers[: opened.sizes[split]]).images.astype(int)
            for opened in (exact, fast)
        )
        assert ours.shape == theirs.shape
        assert not np.array_equal(ours, theirs)
        assert np.abs(ours - theirs).mean() < 8  # a box of its own would be 40 and more away


# What is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": None}, r"data\.image_size is None, but the images of .* differ in size; give one, as 224"),
        ({"classes": 99}, r"classes is 99 but .* allows 2 to \d"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(fields: dict[str, Any], message: str, data: DataConfig) -> None:
    with pytest.raises(UsageError, match=message):
        open_stream(DataConfig(data.dataset, data_dir=data.data_dir, **{"image_size": 24, **fields}))


def test_steps_are_not_grouped(data: DataConfig) -> None:
    opened = open_stream(data)
    with pytest.raises(UsageError, match=r"run\.steps_per_dispatch is 4 but must be None or 1 for a streamed data set"):
        next(opened.train_batches(order_of(opened, 8), 0, 4))


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"resize": 9}, "data.resize is 9 but must be None"),
        ({"pixels": "fast"}, "data.pixels is 'fast' but must be 'exact'"),
        ({"on_error": "skip"}, "data.on_error is 'skip' but must be 'raise'"),
        ({"test_split": "val"}, "data.test_split is 'val' but must be None"),
    ],
)
def test_fields_of_streams_are_refused_for_resident_sets(fields: dict[str, Any], value: str) -> None:
    config = Config(data=DataConfig("digits", **fields), augment=CROP, run=RunConfig())
    with pytest.raises(UsageError) as caught:
        pipeline.open_data(resolve(config.data), config.augment, THREAD)
    assert str(caught.value) == (
        f"{value}; augment.crop is 'random_resized' but must be 'none' for digits, whose images are not streamed"
    )


# Faults


@pytest.fixture
def broken_folder(photo_folder: Path, tmp_path: Path) -> Path:
    """The folder with two training images and a test image that no decoder reads."""
    root = shutil.copytree(photo_folder, tmp_path / "broken")
    whole = (root / "train" / "bee" / "2.jpg").read_bytes()
    (root / "train" / "bee" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train" / "dog" / "7.jpg").write_bytes(b"no image")
    (root / "val" / "ant" / "0.png").write_bytes(b"")
    return root


def broken(root: Path, on_error: Any = "raise") -> DataConfig:
    return DataConfig(f"folder:{root}", image_size=24, on_error=on_error)


@BY_EITHER
def test_a_broken_image_stops_the_run_with_its_name(loader: Loader, broken_folder: Path) -> None:
    opened = open_stream(broken(broken_folder), loader)
    with pytest.raises(RunError) as caught:
        list(opened.train_batches(order_of(opened, 8), 0, 1))
    assert re.fullmatch(r"/.*/train/(bee/2|dog/7)\.jpg cannot be read \(\w+: .*\)", str(caught.value))
    with pytest.raises(RunError, match=r"val/ant/0\.png cannot be read \(UnidentifiedImageError: "):
        list(opened.eval_batches("test", 5))


@BY_EITHER
def test_skipping_replaces_in_training_and_masks_in_evaluation(loader: Loader, broken_folder: Path) -> None:
    opened = open_stream(broken(broken_folder, "skip"), loader)
    names = [opened.sources["train"].name(index) for index in range(32)]
    bad = {index for index, name in enumerate(names) if name.endswith(("bee/2.jpg", "dog/7.jpg"))}
    assert bad == {10, 31}
    batches = list(opened.train_batches(order_of(opened, 8), 0, 1))
    shown = np.concatenate([batch.examples for batch in batches])
    expected = epoch_order(3, 0, 32)
    assert shown.tolist() == [{10: 11, 31: 0}.get(index, index) for index in expected.tolist()]
    faults = [fault for batch in batches for fault in batch.faults]
    assert {fault.index for fault in faults} == bad
    assert {fault.name for fault in faults} == {names[index] for index in bad}
    assert all(fault.error.startswith(f"{fault.name} cannot be read (") for fault in faults)
    images = np.concatenate([batch.images for batch in batches])
    crop = RandomResizedCrop(24)
    for index in (11, 0):  # a replacement looks as it does in its own place
        for image in images[shown == index]:
            assert np.array_equal(image, crop(opened.sources["train"][index].data, example_rng(3, 0, index)))

    batches = list(opened.eval_batches("test", 5))
    assert np.concatenate([batch.examples[batch.mask] for batch in batches]).tolist() == list(range(1, 12))
    assert [fault.name.rsplit("/", 2)[1:] for batch in batches for fault in batch.faults] == [["ant", "0.png"]]


def test_a_set_of_nothing_but_broken_images_stops_all_the_same(photo_folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(photo_folder, tmp_path / "broken")
    for file in root.glob("train/*/*"):
        file.write_bytes(b"no image")
    opened = open_stream(broken(root, "skip"))
    with pytest.raises(RunError, match=r"100 images in a row cannot be read, the first of them .*train/\w+/\d.jpg"):
        next(opened.train_batches(order_of(opened, 8), 0, 1))


def test_a_file_that_went_is_named(photo_folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(photo_folder, tmp_path / "broken")
    opened = open_stream(broken(root))
    (root / "train" / "cat" / "4.jpg").unlink()
    with pytest.raises(RunError, match=r"train/cat/4.jpg cannot be read \(FileNotFoundError: "):
        list(opened.train_batches(order_of(opened, 8), 0, 1))


def test_a_label_that_is_no_class_is_named(data: DataConfig) -> None:
    opened = open_stream(data)
    task = opened.task("train", 4, order_of(opened, 4))
    few = dataclasses.replace(task, num_classes=2)
    with pytest.raises(RunError, match=r" has the label \d but must have 0 to 1$"):
        few.load(np.arange(order_of(opened, 4).examples, dtype=np.int32))


# Threads, processes, files


@pytest.mark.parametrize(
    ("loader", "data"),
    [(THREAD, "folder"), pytest.param(IN_A_PROCESS, "records", marks=pytest.mark.slow)],
    indirect=["data"],
    ids=str,
)
def test_nothing_is_left_when_a_stream_is_closed(loader: Loader, data: DataConfig) -> None:
    before = left()
    for way in ("to the end", "not to the end", "not at all"):
        opened = open_stream(data, loader)
        order = order_of(opened, 8)
        batches, evaluation = opened.train_batches(order, 0, 1), opened.eval_batches("test", 5)
        if way == "to the end":
            list(batches)
            list(evaluation)
        elif way == "not to the end":
            next(batches)
            next(evaluation)
        if way != "not at all":
            assert threading.active_count() > before[0]
            assert len(multiprocessing.active_children()) == 2 * loader.workers
        opened.close()
        del batches, evaluation, opened, OPENED[:]
        after = left()
        assert after[:2] == before[:2]
        # What Python's multiprocessing keeps for good is open after the first way.
        assert way == "to the end" or after == before
        before = after
