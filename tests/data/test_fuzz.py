"""Hundreds of damaged files and records: nothing crashes or hangs, what PIL reads is read, all else is named once.

A damaged file may still be a picture: then its pixels have to be PIL's. PIL decides which.
"""

import dataclasses
import functools
import io
import itertools
import re
import resource
import shutil
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from jaxclf.cli.main import main
from jaxclf.config import AugmentConfig, DataConfig, Loader
from jaxclf.data import fast_transforms
from jaxclf.data.decoding import decode
from jaxclf.data.order import Batch, Order
from jaxclf.data.stream import ReadError, Stream
from tests.data.streamed import Example, inside, replace_shards, streamed

# In a run, what PIL only warns about is read all the same.
pytestmark = pytest.mark.filterwarnings("ignore")

T = TypeVar("T")
Reads = Callable[[bytes], np.ndarray]
PIXELS = ("exact", "fast")
SEED = 20
SECONDS = 60.0
"""Time in seconds after which a read is taken to hang."""
FILES, TEST_FILES, MESSAGES = 360, 70, 100
"""Damaged files in the training and in the test images, and damaged records that array_record itself can read."""
RECORDS = MESSAGES + 64 + 12 + 9
"""Training records in four shards."""


def within(work: Callable[[], T], seconds: float = SECONDS) -> T:
    """Return what a function returns, or fail where it does not end, inside a C library too."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"nothing after {seconds} s"
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


# Files

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("JPEG", "RGB", {}),
    "progressive JPEG": ("JPEG", "RGB", {"progressive": True, "quality": 90}),
    "full JPEG": ("JPEG", "RGB", {"subsampling": 0, "restart_marker_blocks": 3}),
    "grey JPEG": ("JPEG", "L", {}),
    "CMYK JPEG": ("JPEG", "CMYK", {}),
    "PNG": ("PNG", "RGB", {}),
    "palette PNG": ("PNG", "P", {}),
    "WebP": ("WEBP", "RGB", {}),
    "lossless WebP": ("WEBP", "RGBA", {"lossless": True}),
    "BMP": ("BMP", "RGB", {}),
    "GIF": ("GIF", "P", {}),
    "TIFF": ("TIFF", "RGB", {}),
    "LZW TIFF": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "PPM": ("PPM", "RGB", {}),
}


def picture(rng: np.random.Generator) -> Image.Image:
    """Return a smooth picture with some noise."""
    height, width = rng.integers(16, 80, 2).tolist()
    smooth = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(smooth).astype(np.int64) + rng.integers(-9, 10, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(kind: str, rng: np.random.Generator) -> bytes:
    form, mode, options = KINDS[kind]
    file = io.BytesIO()
    picture(rng).convert(mode).save(file, form, **options)
    return file.getvalue()


def flipped(data: bytes, rng: np.random.Generator, start: int, end: int, most: int) -> bytes:
    """Change up to `most` bytes between two places."""
    damaged = bytearray(data)
    for place in rng.integers(start, end, rng.integers(1, most + 1)).tolist():
        damaged[place] ^= int(rng.integers(1, 256))
    return bytes(damaged)


def blanked(data: bytes, rng: np.random.Generator) -> bytes:
    size = int(rng.integers(8, max(9, len(data) // 3)))
    start = int(rng.integers(len(data) - size))
    return data[:start] + bytes(size) + data[start + size :]


def shortened(data: bytes, rng: np.random.Generator) -> bytes:
    start, size = int(rng.integers(len(data) - 20)), int(rng.integers(1, 20))
    return data[:start] + data[start + size :]


DAMAGES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "cut off": lambda data, rng: data[: int(rng.integers(1, len(data)))],
    "without its last bytes": lambda data, rng: data[: -int(rng.integers(1, 30))],
    "flipped at the start": lambda data, rng: flipped(data, rng, 0, 24, 2),
    "flipped in the header": lambda data, rng: flipped(data, rng, 0, min(200, len(data)), 4),
    "flipped in the body": lambda data, rng: flipped(data, rng, len(data) // 4, len(data), 8),
    "blanked": blanked,
    "with halves swapped": lambda data, _: data[len(data) // 2 :] + data[: len(data) // 2],
    "without bytes from between": shortened,
    "with garbage behind": lambda data, rng: data + rng.bytes(100),
    "with another magic": lambda data, rng: rng.bytes(8) + data[8:],
    "empty": lambda *_: b"",
}


def claiming(kind: str, width: int, height: int) -> bytes:
    """Return a small file whose header says that the picture is larger."""
    data = bytearray(encoded(kind, np.random.default_rng(0)))
    if "JPEG" in kind:
        place = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    elif kind == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "PPM":
        data = bytearray(b"P6 %d %d 255\n" % (width, height)) + data[-100:]
    return bytes(data)


HUGE = ("JPEG", "progressive JPEG", "grey JPEG", "CMYK JPEG", "PNG", "BMP", "GIF", "PPM")
"""Kinds whose header is made to claim 60,000 x 60,000 pixels, 10.8 GB: more than PIL takes."""


def damaged_files(count: int, seed: int) -> dict[str, bytes]:
    """Return damaged files, at least `count`, by a name that says how; every kind meets every damage in turn."""
    rng, found = np.random.default_rng(seed), {}
    pairs = [(kind, damage) for damage in DAMAGES for kind in KINDS]
    rng.shuffle(pairs)  # or dozens of broken files would follow each other, and a stream's tries be what takes the time
    for number, (kind, damage) in enumerate(itertools.cycle(pairs)):
        if len(found) == count:
            break
        whole = encoded(kind, rng)
        if (data := DAMAGES[damage](whole, rng)) != whole:
            found[f"{number:03} {kind} {damage}"] = data
    huge = {f"{kind} huge": claiming(kind, 60_000, 60_000) for kind in HUGE}
    return found | huge | {"PNG large": claiming("PNG", 10_000, 10_000)}  # PIL warns, and then misses the rest


def by_pil(data: bytes, channels: int = 3) -> np.ndarray | None:
    """Return PIL's pixels, or None where PIL reads nothing."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except Exception:
        return None
    return pixels.reshape(*pixels.shape[:2], channels)


def by_us(data: bytes, channels: int = 3) -> np.ndarray | None:
    """Return our pixels, or None where we read nothing."""
    try:
        return decode(data, channels)
    except Exception:
        return None


@dataclasses.dataclass(frozen=True)
class Case:
    """A set with damaged images."""

    root: Path
    broken: dict[str, set[str]]
    """Files that PIL cannot read, by split."""

    @property
    def name(self) -> str:
        return f"folder:{self.root}"

    @property
    def all_broken(self) -> list[str]:
        return sorted(set.union(*self.broken.values()))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A set in folders: damaged files, two in three of which PIL cannot read, and a few whole ones."""
    root, broken = tmp_path_factory.mktemp("fuzz"), {"train": set(), "val": set()}
    for split, count in (("train", FILES), ("val", TEST_FILES)):
        files = damaged_files(count, SEED + count)
        whole = {f"{number} whole": encoded("JPEG", np.random.default_rng(number)) for number in range(8)}
        for number, (name, data) in enumerate((files | whole).items()):
            file = root / split / "ab"[number % 2] / f"{name}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            if by_pil(data) is None:
                broken[split].add(str(file))
    return Case(root, broken)


def test_the_files_are_as_damaged_as_they_should_be(case: Case) -> None:
    damaged = [file for file in case.root.glob("*/*/*.jpg") if "whole" not in file.name]
    assert len(damaged) >= 430
    assert 300 <= len(case.all_broken) <= 400
    assert not [file for file in case.all_broken if "whole" in file]
    for kind in KINDS:  # some of every kind are broken, and some are not
        of_kind = [str(file) for file in damaged if re.match(rf"\d+ {kind} ", file.name)]
        assert 0 < len({*of_kind} & {*case.all_broken}) < len(of_kind), kind


@pytest.mark.parametrize("channels", [3, 1])
def test_what_pil_reads_has_pils_pixels_and_nothing_else_is_read(channels: int, case: Case) -> None:
    def check() -> None:
        for file in case.root.glob("*/*/*.jpg"):
            data = file.read_bytes()
            expected, found = by_pil(data, channels), by_us(data, channels)
            assert (found is None) == (expected is None), file.name
            assert found is None or expected is None or np.array_equal(found, expected), file.name

    within(check)


@pytest.mark.parametrize("pixels", PIXELS)
def test_headers_that_claim_more_than_there_is_cost_no_memory(pixels: str) -> None:
    exact: list[Reads] = [decode, lambda data: decode(data, 1)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in exact if pixels == "exact" else fast_crops():
        for kind in HUGE:  # libjpeg would believe a progressive one: 10 GB and more than a minute
            with pytest.raises(Image.DecompressionBombError):
                within(functools.partial(read, claiming(kind, 60_000, 60_000)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kB


def fast_crops() -> list[Reads]:
    pytest.importorskip("cv2", reason="needs the extra fast")
    crops = fast_transforms.FastRandomResizedCrop(24), fast_transforms.FastResizeCenterCrop(resize=27, size=24)
    return [functools.partial(crop, rng=np.random.default_rng(0)) for crop in crops]


def named(lines: list[str]) -> list[str]:
    """Return what lines say cannot be read, sorted, as often as they do."""
    return sorted(found[1] for line in lines if (found := re.match(r"(.*?\.jpg) cannot be read \(\w+: ", line)))


def checked(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[list[str], str]:
    """Return the lines of `jaxclf data verify` for a set that is broken, and the error at its end."""
    code = within(lambda: main(["data", "verify", *args]))
    out, err = capfd.readouterr()
    assert code == 2
    return out.splitlines(), err


def test_the_command_names_every_broken_file_once_and_exits_with_2(
    case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    lines, end = checked(capfd, case.name)
    assert named(lines) == case.all_broken
    assert len(lines) == len(case.all_broken) + 2
    images = len(list(case.root.glob("*/*/*")))
    assert re.search(
        rf"^jaxclf: folder:.*: {len(case.all_broken)} of {images} images cannot be used; lines above: \d+$", end, re.M
    )


def open_stream(name: str, **fields: Any) -> Stream:
    if fields.get("pixels") == "fast":
        pytest.importorskip("cv2", reason="needs the extra fast")
    config = DataConfig(name, image_size=24, **fields)
    return Stream(streamed(config), AugmentConfig(crop="random_resized", pad=0), Loader(threads=2))


def both_splits(opened: Stream) -> tuple[list[Batch], list[Batch]]:
    """Return an epoch of training batches and the evaluation batches."""
    order = Order(0, opened.sizes["train"], 32, drop_last=False)
    trained = within(lambda: list(opened.train_batches(order, 0, 1)))
    tested = within(lambda: list(opened.eval_batches("test", 32)))
    opened.close()
    return trained, tested


@pytest.mark.parametrize("pixels", PIXELS)
def test_a_stream_that_skips_names_every_broken_file(pixels: Any, case: Case) -> None:
    opened = open_stream(case.name, on_error="skip", pixels=pixels)
    for split, found, source in zip(case.broken, both_splits(opened), opened.sources.values(), strict=True):
        faults = [fault for batch in found for fault in batch.faults]
        assert {fault.name for fault in faults} == case.broken[split]
        assert all(fault.error.startswith(f"{fault.name} cannot be read (") for fault in faults)
        masks = [np.ones(len(batch.images), bool) if batch.mask is None else batch.mask for batch in found]
        shown = np.concatenate([np.ravel(one.examples)[mask] for one, mask in zip(found, masks, strict=True)])
        assert not {source.name(int(index)) for index in shown} & case.broken[split]
        if split == "val":
            assert [fault.name for fault in faults] == sorted(case.broken[split])
            assert len(shown) == len(source) - len(case.broken[split])


def test_a_stream_that_raises_names_each_broken_file(case: Case) -> None:
    opened = open_stream(case.name)
    task = opened.task("test", 1)

    def check() -> None:
        for index in range(opened.sizes["test"]):
            name, row = opened.sources["test"].name(index), np.array([index], np.int32)
            if name in case.broken["val"]:
                with pytest.raises(ReadError, match=rf"^{re.escape(name)} cannot be read \("):
                    task.load(row)
            else:
                task.load(row)

    within(check)


# Records


def edited(data: bytes, edit: Callable[[Any], Any]) -> bytes:
    example = Example.FromString(data)
    edit(example.features.feature)
    return example.SerializeToString()


def with_image(damage: Callable[[bytes, np.random.Generator], bytes]) -> Callable[[bytes, np.random.Generator], bytes]:
    """Return the damage of a message that damages the image in it."""

    def change(data: bytes, rng: np.random.Generator) -> bytes:
        def edit(fields: Any) -> None:
            values = fields["image"].bytes_list.value
            values[0] = damage(values[0], rng)

        return edited(data, edit)

    return change


MESSAGE_DAMAGES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "cut off": lambda data, rng: data[: int(rng.integers(1, len(data)))],
    "flipped at the start": lambda data, rng: flipped(data, rng, 0, 24, 2),
    "flipped": lambda data, rng: flipped(data, rng, 0, len(data), 20),
    "garbage": lambda data, rng: rng.bytes(len(data)),
    "empty": lambda *_: b"",
    "without bytes from between": shortened,
    "no image": lambda data, _: edited(data, lambda fields: fields.pop("image")),
    "no label": lambda data, _: edited(data, lambda fields: fields.pop("label")),
    "no value in image": lambda data, _: edited(data, lambda fields: fields["image"].bytes_list.ClearField("value")),
    "label is bytes": lambda data, _: edited(data, lambda fields: fields["label"].bytes_list.value.append(b"3")),
    "label out of range": lambda data, rng: edited(
        data,
        lambda fields: fields["label"].int64_list.value.__setitem__(
            0, int(rng.choice([-1, 8, 2**31, 2**40, -(2**40)]))
        ),
    ),
    "an odd file name and no class": lambda data, _: edited(data, misnamed),
    "garbage for an image": with_image(lambda data, rng: rng.bytes(len(data))),
    "an image that is cut off": with_image(lambda data, rng: data[: int(rng.integers(1, len(data)))]),
    "an image with flipped bytes": with_image(lambda data, rng: flipped(data, rng, 0, len(data), 6)),
}


def misnamed(fields: Any) -> None:
    fields["file_name"].bytes_list.value[0] = b"\xe9\n\x1b[31m.jpg"
    fields["label"].int64_list.value[0] = 99


def is_good(data: bytes) -> bool:
    """Whether protobuf and PIL read a record, and its label is a class."""
    try:
        fields = Example.FromString(data).features.feature
        image, label = fields["image"].bytes_list.value[0], fields["label"].int64_list.value[0]
    except Exception:
        return False
    return by_pil(image) is not None and 0 <= label < 8


@dataclasses.dataclass(frozen=True)
class RecordCase:
    """A prepared set with damaged records."""

    data_dir: Path
    damaged: int
    """Training records that are other than they were, in shards that can be opened."""
    broken: list[int]
    """Those that cannot be read."""
    lost: dict[Path, list[int]]
    """Shards that cannot be opened, and their records."""

    @property
    def unreadable(self) -> list[int]:
        return [*self.broken, *itertools.chain.from_iterable(self.lost.values())]


@pytest.fixture(scope="module")
def record_case(tiny_imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordCase:
    """A set of four shards: damaged records, damaged bytes of the file, half of the file, garbage for the file."""
    data_dir = shutil.copytree(tiny_imagenet, tmp_path_factory.mktemp("fuzz") / "tfds")
    rng = np.random.default_rng(SEED)
    (whole,) = inside(data_dir).glob("*-train.array_record-*")
    reader = ArrayRecordReader(str(whole))
    good = reader.read_all()
    reader.close()
    damages = itertools.islice(itertools.cycle(MESSAGE_DAMAGES.values()), MESSAGES)
    messages = [damage(record, rng) for damage, record in zip(damages, itertools.cycle(good), strict=False)]
    shards = replace_shards(data_dir, [messages, good, good[:12], good[:9]])
    broken = [index for index, record in enumerate(messages) if not is_good(record)]
    shards[1].write_bytes(flipped(shards[1].read_bytes(), rng, 1000, 200_000, 40))
    for number, record in enumerate(good):
        reader = ArrayRecordReader(str(shards[1]), options="readahead_buffer_size:0")  # each has one of its own
        try:
            assert reader.read([number])[0] == record  # array_record keeps hashes: there is nothing in between
        except RuntimeError:
            broken.append(MESSAGES + number)
        reader.close()
    shards[2].write_bytes(shards[2].read_bytes()[: shards[2].stat().st_size // 2])
    shards[3].write_bytes(rng.bytes(shards[3].stat().st_size))
    first = MESSAGES + len(good)
    lost = {shards[2]: [*range(first, first + 12)], shards[3]: [*range(first + 12, first + 21)]}
    return RecordCase(data_dir, MESSAGES + sum(index >= MESSAGES for index in broken), broken, lost)


def test_the_records_are_as_damaged_as_they_should_be(record_case: RecordCase) -> None:
    assert record_case.damaged >= 100
    assert 90 <= len(record_case.broken) < record_case.damaged  # 114 of 124
    assert record_case.damaged - MESSAGES >= 10


def record_numbers(lines: list[str]) -> list[int]:
    """Return the numbers of the records that lines name, as often as they do."""
    found = [
        re.match(r"/.*, split train, record (\d+)(?: \(.*\))? (?:cannot be read \(|has the label )", line, re.S)
        for line in lines
    ]
    return [int(one[1]) for one in found if one]


def test_the_command_names_every_broken_record_and_shard_once_and_exits_with_2(
    record_case: RecordCase, capfd: pytest.CaptureFixture[str]
) -> None:
    lines, end = checked(capfd, "synthetic_imagenet", "--data-dir", str(record_case.data_dir))
    assert record_numbers(lines) == record_case.broken
    shards = [line.split(" cannot be read")[0] for line in lines if re.match(r"/\S+-of-00004 cannot be read \(", line)]
    assert shards == [str(shard) for shard in record_case.lost]
    assert len(lines) == len(record_case.broken) + 2 + 2
    assert f"synthetic_imagenet: {len(record_case.unreadable)} of {RECORDS + 16} images cannot be used" in end


@pytest.mark.parametrize("pixels", PIXELS)
def test_a_stream_that_skips_names_every_broken_record(pixels: Any, record_case: RecordCase) -> None:
    where = {"data_dir": str(record_case.data_dir), "test_split": "train"}
    trained, tested = both_splits(open_stream("synthetic_imagenet", on_error="skip", pixels=pixels, **where))
    assert {fault.index for batch in trained for fault in batch.faults} == {*record_case.unreadable}
    assert not {*record_case.unreadable} & {int(index) for batch in trained for index in np.asarray(batch.examples)}
    assert sorted(fault.index for batch in tested for fault in batch.faults) == record_case.unreadable


def test_a_stream_that_raises_names_each_broken_record(record_case: RecordCase) -> None:
    task = open_stream("synthetic_imagenet", data_dir=str(record_case.data_dir)).task("train", 1)
    for index in range(RECORDS):
        row = np.array([index], np.int32)
        if index in record_case.unreadable:
            said = rf"(?s), split train, record {index}(?: \(.*\))? (?:cannot be read \(|has the label)"
            with pytest.raises(ReadError, match=said):
                task.load(row)
        else:
            task.load(row)
