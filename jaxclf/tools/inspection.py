"""What `jaxclf data list` and `jaxclf data info` show: facts, and what is measured on the images themselves."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int, Int64, UInt8
from PIL import Image

from jaxclf.data import datasets
from jaxclf.data.decoding import decode
from jaxclf.data.sources import Folder, Records, Report, Source, folder_opener
from jaxclf.errors import UsageError
from jaxclf.tools import preparation

T = TypeVar("T")

SLICE = 256
"""Images between two reports of progress, and the most that are still worked on after Ctrl-C."""
NAMES = 5
"""Class names that are shown."""
ANY = (
    "Besides: any image classification set of TFDS by its name, and folder:PATH (PATH/train/CLASS/*.jpg, PATH/val/...)"
)


class Measured(NamedTuple):
    """What images of the training set are."""

    images: int
    """How many were measured."""
    of: int
    """How many there are."""
    broken: int
    """How many of the sample could not be read; they are not among those measured."""
    labels: Int[np.ndarray, " n"]
    """As they are stored."""
    widths: Int64[np.ndarray, " n"]
    heights: Int64[np.ndarray, " n"]
    mean: tuple[float, ...]
    """Per channel on the 0..1 scale, over all pixels of the stored images."""
    std: tuple[float, ...]
    """The (biased) standard deviation, likewise."""


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """What there is to know of a data set."""

    info: datasets.DatasetInfo
    unprepared: str | None
    """Why the images cannot be read yet, and what changes that; what is measured is empty then."""
    counts: Mapping[str, int | None]
    """Images by split, under the set's own names."""
    class_sizes: Int64[np.ndarray, " k"] | None = None
    """Training images of each class, where labels are known without images or all images were measured."""
    measured: Measured | None = None


def listing() -> Iterator[str]:
    """Yield a line for every set of the tables, and one for all others."""
    for name in (*datasets.DATASETS, *datasets.STREAMED):
        facts = datasets.info(name)
        shape = "x".join(map(str, facts.image_shape)) if facts.image_shape else "any size"
        sizes = f"{facts.train_examples:,} + {facts.test_examples:,}"
        yield f"{name:17} {facts.num_classes:5,} classes  {shape:8}  {sizes:18}  {facts.source}"
    yield ANY


def inspect(name: str, *, data_dir: str | None = None, sample: int = 10_000, report: Report | None = None) -> Facts:
    """Return the facts of a data set; of one that is prepared, read the training images, or of a streamed one a sample.

    Args:
      name: as `datasets.info` takes it.
      data_dir: TFDS directory; None is TFDS's own default.
      sample: training images of a streamed set to measure, evenly spread over it; 0 takes all.
      report: is told of the progress.

    Raises:
      UsageError: what `datasets.info`, `datasets.load` and `open_splits` raise, but not for a set that is merely not
        prepared; and where not one training image can be read.
    """
    if sample < 0:
        raise UsageError(f"sample is {sample} but must be 0, for all images, or a number of them")
    info = datasets.info(name, data_dir)
    if missing := unprepared(info, data_dir):
        counts = {own: info.examples(ours) for ours, own in zip(datasets.SPLITS, info.splits, strict=True)}
        return Facts(info, missing, counts)
    if not info.streamed:
        train, test = (datasets.load(name, split, data_dir=data_dir) for split in datasets.SPLITS)
        counts = {"train": len(train.labels), "test": len(test.labels)}
        return Facts(info, None, counts, _class_sizes(train.labels, info), _measure_resident(train))
    opened = open_splits(info, data_dir)
    counts = {split: len(source) for split, source in opened.items()}
    train = opened.get(info.splits[0])
    if not train:
        return Facts(info, None, counts)
    measured = measure(train, channels(info), sample, report)
    labels = train.labels() if isinstance(train, Folder) else train.stored_labels()
    if labels is None and measured.images == measured.of:
        labels = measured.labels
    return Facts(info, None, counts, None if labels is None else _class_sizes(labels, info), measured)


def unprepared(info: datasets.DatasetInfo, data_dir: str | None) -> str | None:
    """Say why a set is not there, and the command that brings it; None where it is (whole or not, if it was once)."""
    if info.tfds is None:
        return None
    builder = datasets.open_builder(info.tfds, data_dir)
    directory = Path(builder.data_dir)
    if directory.exists():
        return None
    command = f"`jaxclf data prepare {info.name} --data-dir {builder.data_dir_root}`"
    if (parts := preparation.parts_directory(directory)).exists():
        return f"{info.name} is only half prepared, in {parts}; go on with {command}"
    return f"{info.name} is not prepared: there is no {directory}; run {command}"


def open_splits(info: datasets.DatasetInfo, data_dir: str | None) -> dict[str, Folder] | dict[str, Records]:
    """Open every split of a set in folders or of TFDS, of those too that runs take only on request.

    Raises `UsageError` for a set that is not there or only half, for empty classes, and for classes that differ.
    """
    if info.tfds is not None:
        builder = datasets.open_prepared(info, data_dir)
        return {split: Records(str(builder.data_dir), split) for split in builder.info.splits}
    root, open_one = datasets.folder_root(info.name), folder_opener(info)
    names = (*datasets.TRAIN_FOLDERS, *datasets.TEST_FOLDERS)
    return {split: open_one(split) for split in names if (root / split).is_dir()}


def measure(source: Source, depth: Literal[1, 3], sample: int = 0, report: Report | None = None) -> Measured:
    """Decode an evenly spread sample of images to `depth` channels; return their sizes, mean and standard deviation.

    Both are those of all pixels of these images together, from exact counts of the 256 values, so neither the order nor
    the number of pixels costs precision. `sample` 0 takes all images. Those that cannot be read are left out.
    """
    total = len(source)
    count = min(sample or total, total)
    chosen = np.arange(count, dtype=np.int64) * total // count
    counts, seen = np.zeros((depth, 256), np.int64), []
    read = functools.partial(_counted, source, depth)
    for found in in_threads(read, chosen.tolist(), "measuring the training images", report):
        if found is not None:
            counts += found[0]
            seen.append(found[1:])
    if not seen:
        raise UsageError(f"none of {count:,} training images can be read; the first is {source.name(0)}")
    labels, heights, widths = np.array(seen, np.int64).T  # a label may be any number
    values, pixels = np.arange(256), counts[0].sum()
    mean = counts @ values / pixels  # [c]
    std = np.sqrt((counts * np.square(values - mean[:, None])).sum(axis=1) / pixels)
    return Measured(
        images=len(seen),
        of=total,
        broken=count - len(seen),
        labels=labels,
        widths=widths,
        heights=heights,
        mean=_tuple(mean / 255),
        std=_tuple(std / 255),
    )


def _counted(
    source: Source, depth: Literal[1, 3], index: int
) -> tuple[Int64[np.ndarray, "c 256"], int, int, int] | None:
    """Return how often each channel has each value, label, h and w; None for an image that cannot be read."""
    try:
        encoded = source[index]
        pixels = decode(encoded.data, depth)
    except Exception:  # whatever readers and decoders raise for broken bytes; `verify` names them
        return None
    return _histogram(pixels), encoded.label, *pixels.shape[:2]


def _histogram(pixels: UInt8[np.ndarray, "h w c"]) -> Int64[np.ndarray, "c 256"]:
    """Count the values of each channel: PIL does so 20 times as fast as numpy sums a channel that lies in between."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    return np.array(image.histogram(), np.int64).reshape(-1, 256)


def _measure_resident(train: datasets.Split) -> Measured:
    count, height, width = train.images.shape[:3]
    mean, std = map(_tuple, datasets.statistics(train))
    return Measured(
        images=count,
        of=count,
        broken=0,
        labels=train.labels,
        widths=np.full(count, width),
        heights=np.full(count, height),
        mean=mean,
        std=std,
    )


def _tuple(numbers: np.ndarray) -> tuple[float, ...]:
    return tuple(numbers.tolist())


def channels(info: datasets.DatasetInfo) -> Literal[1, 3]:
    """Return what the images of a set are decoded to: RGB or grey."""
    return 3 if (info.image_shape[2] if info.image_shape else info.channels) == 3 else 1


def _class_sizes(labels: Int[np.ndarray, " n"], info: datasets.DatasetInfo) -> Int64[np.ndarray, " k"]:
    good = labels[(labels >= 0) & (labels < info.num_classes)]
    return np.bincount(good, minlength=info.num_classes)


def in_threads(work: Callable[[int], T], numbers: Iterable[int], what: str, report: Report | None) -> Iterator[T]:
    """Yield what a function makes of each number, in their order; threads read and decode beside each other."""
    numbers = list(numbers)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(numbers), SLICE):
            if report is not None:
                report(what, start, len(numbers))
            yield from pool.map(work, numbers[start : start + SLICE])


def describe(facts: Facts) -> Iterator[str]:
    """Yield the lines that `jaxclf data info` prints."""
    for label, text in _rows(facts):
        yield f"{label:10}  {text}"
    if facts.unprepared is not None:
        yield facts.unprepared


def _rows(facts: Facts) -> Iterator[tuple[str, str]]:
    info, found = facts.info, facts.measured
    yield "name", info.name
    yield "source", info.source
    yield "images", _counts(facts)
    for flag, split in zip(("--data.train-split", "--data.test-split"), info.splits, strict=True):
        if split not in facts.counts:
            yield "", f"it has no split {split}; a run needs {flag}"
    more = ", ..." if info.num_classes > NAMES else ""
    yield "classes", f"{info.num_classes:,}: {', '.join(info.class_names[:NAMES])}{more}"
    if facts.class_sizes is not None:
        yield "class size", _class_size(facts.class_sizes, info.class_names)
    elif found is not None:
        yield "class size", "unknown until all labels are read, as --sample 0 does"
    colours = "RGB" if channels(info) == 3 else "grey"
    if info.image_shape is not None:
        yield "image size", f"{info.image_shape[1]} x {info.image_shape[0]} pixels, {colours}"
    elif found is not None:
        yield "image size", f"width {_spread(found.widths)}, height {_spread(found.heights)} pixels, read as {colours}"
    yield "constants", _constants(info.mean, info.std) if info.mean else "none: a run needs --data.mean and --data.std"
    if found is not None:
        yield "measured", f"{_constants(found.mean, found.std)}  on {found.images:,} of {found.of:,} training images"
        if found.broken:
            yield "", f"{found.broken:,} more cannot be read; `jaxclf data verify {info.name}` names every such image"


def _counts(facts: Facts) -> str:
    """Return how many images each split has; of those that runs take by themselves also what for."""
    ours = dict(zip(facts.info.splits, datasets.SPLITS, strict=True))
    return ", ".join(
        f"{'an unknown number' if count is None else f'{count:,}'} {split}"
        + (f" (a run's {ours[split]} images)" if ours.get(split, split) != split else "")
        for split, count in facts.counts.items()
    )


def _class_size(sizes: Int64[np.ndarray, " k"], names: tuple[str, ...]) -> str:
    low, high = int(sizes.argmin()), int(sizes.argmax())
    if sizes[low] == sizes[high]:
        return f"{sizes[low]:,} training images each"
    return f"{sizes[low]:,} ({names[low]}) to {sizes[high]:,} ({names[high]}) training images"


def _spread(sides: Int64[np.ndarray, " n"]) -> str:
    return f"{sides.min()} to {sides.max()} (median {np.median(sides):.0f})"


def _constants(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    return "  ".join(
        f"{name} {' '.join(f'{number:.4f}' for number in numbers)}" for name, numbers in (("mean", mean), ("std", std))
    )
