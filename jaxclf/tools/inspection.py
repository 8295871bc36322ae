"""Facts of data sets, and measurements of their images: the lines of `jaxclf data list` and `jaxclf data info`."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int, Int64, UInt8
from PIL import Image

from jaxclf.config import DataConfig
from jaxclf.data import prepared
from jaxclf.data.datasets import TfdsSet, resolve
from jaxclf.data.decoding import decode, is_turned
from jaxclf.data.facts import RESIDENT, SPLITS, STREAMED, Facts
from jaxclf.data.kinds import Dataset, Images, ResidentSet
from jaxclf.data.sources import Records, Report, Source
from jaxclf.errors import UsageError
from jaxclf.storage import location
from jaxclf.tools import preparation

T = TypeVar("T")

SLICE = 256
"""Images between two reports of progress, and the most that are still worked on after Ctrl-C."""
NAMES = 5
"""Class names that are shown."""
ANY = (
    "Besides: any image classification set of TFDS by its name, and folder:PATH (PATH/train/CLASS/*.jpg, PATH/val/...);"
    " your own as package.module:Name"
)


class Measured(NamedTuple):
    """Measurements of training images."""

    images: int
    """Number of images that were measured."""
    of: int
    """Number of training images."""
    broken: int
    """Number of images of the sample that could not be read; they are not measured."""
    labels: Int[np.ndarray, " n"]
    """As they are stored."""
    widths: Int64[np.ndarray, " n"]
    heights: Int64[np.ndarray, " n"]
    mean: tuple[float, ...]
    """Per channel on the 0..1 scale, over all pixels of the stored images."""
    std: tuple[float, ...]
    """The (biased) standard deviation, likewise."""
    turned: int = 0
    """Number of images that EXIF says are stored turned or mirrored."""


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """Facts of a data set, and measurements of its images."""

    facts: Facts
    unprepared: str | None
    """Reason why the images cannot be read yet, and the command that changes it; nothing is measured then."""
    counts: Mapping[str, int | None]
    """Images by split, under the set's own names."""
    class_sizes: Int64[np.ndarray, " k"] | None = None
    """Training images of each class, where labels are known without images or all images were measured."""
    measured: Measured | None = None


def listing() -> Iterator[str]:
    """Yield a line for every set of the tables, and one for all others."""
    for facts in (*RESIDENT.values(), *STREAMED.values()):
        shape = "any size" if facts.streamed else "x".join(map(str, facts.image_shape))
        sizes = f"{facts.train_examples:,} + {facts.test_examples:,}"
        yield f"{facts.name:17} {facts.num_classes:5,} classes  {shape:8}  {sizes:18}  {facts.source}"
    yield ANY


def inspect(
    name: str, *, data_dir: str | None = None, sample: int = 10_000, report: Report | None = None
) -> Description:
    """Describe a data set; of one that is prepared, read the training images, or of a streamed one a sample.

    Args:
      name: as `data.dataset` of a config.
      data_dir: TFDS directory; None is TFDS's own default.
      sample: training images of a streamed set to measure, evenly spread over it; 0 takes all.
      report: is told of the progress.

    Raises:
      UsageError: for a set that is unknown, broken or only half there, but not for one that is merely not prepared; and
        where not one training image can be read.
    """
    if sample < 0:
        raise UsageError(f"sample is {sample} but must be 0, for all images, or a number of them")
    dataset = resolve(DataConfig(name, data_dir=data_dir))
    facts = dataset.facts
    if missing := unprepared(dataset):
        return Description(facts, missing, facts.counts)
    if isinstance(dataset, ResidentSet):
        splits = {split: dataset.read(split) for split in SPLITS}
        counts = {split: len(part.labels) for split, part in splits.items()}
        train = splits["train"]
        return Description(facts, None, counts, _class_sizes(train.labels, facts), _measure_resident(train))
    opened = dataset.stored_splits()
    counts = {split: len(source) for split, source in opened.items()}
    train = opened.get(facts.splits[0])
    if not train:
        return Description(facts, None, counts)
    measured = measure_images(train, facts.decoded, sample, report)
    labels = train.stored_labels() if isinstance(train, Records) else train.labels()
    if labels is None and measured.images == measured.of:
        labels = measured.labels
    return Description(facts, None, counts, None if labels is None else _class_sizes(labels, facts), measured)


def unprepared(dataset: Dataset) -> str | None:
    """Return why a set is not there, and the command that prepares it; None where it is, whole or not."""
    dataset = dataset.origin
    if not isinstance(dataset, TfdsSet) or (directory := location(dataset.builder.data_dir)).exists():
        return None
    name, builder = dataset.config.dataset, dataset.builder
    if (parts := preparation.parts_directory(directory)).exists():
        command = f"`jaxclf data prepare {name} --data-dir {builder.data_dir_root}`"
        return f"{name} is only half prepared, in {parts}; go on with {command}"
    return str(prepared.missing(name, builder))


def measure_images(source: Source, depth: Literal[1, 3], sample: int = 0, report: Report | None = None) -> Measured:
    """Decode an evenly spread sample of images to `depth` channels; return their sizes, mean and standard deviation.

    Both are those of all pixels of these images together, from exact counts of the 256 values, so neither the order nor
    the number of pixels costs precision. `sample` 0 takes all images. Those that cannot be read are left out.
    """
    total = len(source)
    count = min(sample or total, total)
    chosen = np.arange(count, dtype=np.int64) * total // count
    counts, seen, turned = np.zeros((depth, 256), np.int64), [], 0
    read = functools.partial(_counted, source, depth)
    for found in in_threads(read, chosen.tolist(), "measuring the training images", report):
        if found is not None:
            counts += found[0]
            seen.append(found[1:4])
            turned += found[4]
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
        turned=turned,
    )


def _counted(
    source: Source, depth: Literal[1, 3], index: int
) -> tuple[Int64[np.ndarray, "c 256"], int, int, int, bool] | None:
    """Return how often each channel has each value, label, h, w, and whether EXIF turns it; None where it is broken."""
    try:
        encoded = source[index]
        pixels = decode(encoded.data, depth)
    except Exception:  # whatever readers and decoders raise for broken bytes; `verify` names them
        return None
    return _histogram(pixels), encoded.label, *pixels.shape[:2], is_turned(encoded.data)


def _histogram(pixels: UInt8[np.ndarray, "h w c"]) -> Int64[np.ndarray, "c 256"]:
    """Count the values of each channel: PIL does so 20 times as fast as numpy sums a channel that lies in between."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    return np.array(image.histogram(), np.int64).reshape(-1, 256)


def _measure_resident(train: Images) -> Measured:
    count, height, width = train.images.shape[:3]
    mean, std = map(_tuple, train.statistics())
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


def _class_sizes(labels: Int[np.ndarray, " n"], facts: Facts) -> Int64[np.ndarray, " k"]:
    good = labels[(labels >= 0) & (labels < facts.num_classes)]
    return np.bincount(good, minlength=facts.num_classes)


def in_threads(work: Callable[[int], T], numbers: Iterable[int], what: str, report: Report | None) -> Iterator[T]:
    """Yield a function's result of each number, in order; threads read and decode beside each other."""
    numbers = list(numbers)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(numbers), SLICE):
            if report is not None:
                report(what, start, len(numbers))
            yield from pool.map(work, numbers[start : start + SLICE])


def describe(found: Description) -> Iterator[str]:
    """Yield the lines that `jaxclf data info` prints."""
    for label, text in _rows(found):
        yield f"{label:10}  {text}"
    if found.unprepared is not None:
        yield found.unprepared


def _rows(description: Description) -> Iterator[tuple[str, str]]:
    facts, found = description.facts, description.measured
    yield "name", facts.name
    yield "source", facts.source
    yield "images", _counts(description)
    for flag, split in zip(("--data.train-split", "--data.test-split"), facts.splits, strict=True):
        if split not in description.counts:
            yield "", f"it has no split {split}; a run needs {flag}"
    more = ", ..." if facts.num_classes > NAMES else ""
    yield "classes", f"{facts.num_classes:,}: {', '.join(facts.class_names[:NAMES])}{more}"
    if description.class_sizes is not None:
        yield "class size", _class_size(description.class_sizes, facts.class_names)
    elif found is not None:
        yield "class size", "unknown until all labels are read, as --sample 0 does"
    colours = "RGB" if facts.decoded == 3 else "grey"
    if not facts.streamed:
        yield "image size", f"{facts.image_shape[1]} x {facts.image_shape[0]} pixels, {colours}"
    elif found is not None:
        yield "image size", f"width {_spread(found.widths)}, height {_spread(found.heights)} pixels, read as {colours}"
    yield (
        "constants",
        _constants(facts.mean, facts.std) if facts.mean else "none: a run needs --data.mean and --data.std",
    )
    if found is not None:
        yield "measured", f"{_constants(found.mean, found.std)}  on {found.images:,} of {found.of:,} training images"
        for channel in np.flatnonzero(np.array(found.std) == 0):
            yield "warning", f"channel {channel} is {255 * found.mean[channel]:.0f} everywhere; a run needs --data.std"
        if found.turned:
            yield "", f"{found.turned:,} are stored turned or mirrored, as EXIF says; they are read as they are stored"
        if found.broken:
            yield "", f"{found.broken:,} more cannot be read; `jaxclf data verify {facts.name}` names every such image"


def _counts(description: Description) -> str:
    """Return the number of images of each split, and the use that runs make of it where its name does not say so."""
    ours = dict(zip(description.facts.splits, SPLITS, strict=True))
    return ", ".join(
        f"{'an unknown number' if count is None else f'{count:,}'} {split}"
        + (f" (a run's {ours[split]} images)" if ours.get(split, split) != split else "")
        for split, count in description.counts.items()
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
