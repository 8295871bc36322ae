"""What `jaxclf data verify` does: read and decode every image of a data set once, and name all that is wrong."""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from jaxclf.config import DataConfig, UsageError
from jaxclf.data import datasets, sources
from jaxclf.data.decoding import decode
from jaxclf.data.inspection import channels, in_threads, unprepared
from jaxclf.data.sources import Report, Source


class Fault(NamedTuple):
    """Something that is wrong."""

    text: str
    images: int
    """How many images it costs."""


class Checked(NamedTuple):
    """A split on its way through the check."""

    split: str
    images: int
    faults: Iterable[Fault]
    """Found while they are asked for."""


class Shard(NamedTuple):
    """A file of records."""

    file: Path
    start: int
    """Number of its first record in the split."""
    records: int
    """How many it must hold."""


def verify(name: str, *, data_dir: str | None = None, report: Report | None = None) -> Iterator[str]:
    """Read every image of every split, of those too that runs take only on request; yield a line for all that is wrong.

    Each split ends with a line that counts its images; the last line says that all is well. A shard that cannot be
    opened is a single line, as none of its images can be read. `report` is told of the progress.

    Raises:
      UsageError: at the end, if anything was wrong. At once for what stops a run before it begins: a set that is not
        prepared or only half, missing shards, numbers of images that are not the known ones, empty classes, and
        classes that differ between splits; and for resident sets whatever `datasets.load` finds.
    """
    info = datasets.info(name, data_dir)
    if missing := unprepared(info, data_dir):
        raise UsageError(missing)
    images, bad, lines = 0, 0, 0
    for split, count, faults in _streamed(info, data_dir, report) if info.streamed else _resident(info, data_dir):
        own = 0
        for fault in faults:
            own, lines = own + fault.images, lines + 1
            yield f"{split}: {fault.text}"
        images, bad = images + count, bad + own
        yield f"{split}: {count:,} images" + (f", {own:,} of them cannot be used" if own else "")
    if lines:
        raise UsageError(f"{name}: {bad:,} of {images:,} images cannot be used; {lines:,} faults are listed above")
    yield f"{images:,} images, all readable"


def _resident(info: datasets.DatasetInfo, data_dir: str | None) -> Iterator[Checked]:
    """Yield the splits of a resident set; to load one is to read and decode every image of it."""
    for split in datasets.SPLITS:
        part = datasets.load(info.name, split, data_dir=data_dir)
        yield Checked(split, len(part.labels), _unlike_table(info, split, part))


def _unlike_table(info: datasets.DatasetInfo, split: str, part: datasets.Split) -> Iterator[Fault]:
    found, known = (len(part.labels), *part.images.shape[1:]), (info.examples(split), *(info.image_shape or ()))
    if found != known:
        yield Fault(f"images, height, width and channels are {found} but must be {known}", 0)
    for index in np.flatnonzero((part.labels < 0) | (part.labels >= info.num_classes)).tolist():
        yield Fault(f"image {index} has the label {part.labels[index]}, not one of 0 to {info.num_classes - 1}", 1)


def _streamed(info: datasets.DatasetInfo, data_dir: str | None, report: Report | None) -> Iterator[Checked]:
    """Yield the splits of a streamed set."""
    sources.open_sources(DataConfig(dataset=info.name, data_dir=data_dir))  # raises what would stop a run
    for split, source, shards in _folders(info) if info.tfds is None else _records(info, data_dir):
        yield Checked(split, len(source), _faults(info, split, source, shards, report))


def _folders(info: datasets.DatasetInfo) -> Iterator[tuple[str, Source, list[Shard]]]:
    root = datasets.folder_root(info.name)
    for split in (*datasets.TRAIN_FOLDERS, *datasets.TEST_FOLDERS):
        if (root / split).is_dir():
            source = sources.Folder(root / split)
            if source.class_names != info.class_names:
                raise UsageError(f"the classes of {root / split} are not those of the training images")
            yield split, source, []


def _records(info: datasets.DatasetInfo, data_dir: str | None) -> Iterator[tuple[str, Source, list[Shard]]]:
    builder = datasets.open_prepared(info, data_dir)
    for split, stored in builder.info.splits.items():
        starts = np.cumsum([0, *stored.shard_lengths])[:-1].tolist()
        files = map(Path, stored.filepaths)
        shards = [Shard(*shard) for shard in zip(files, starts, stored.shard_lengths, strict=True)]
        yield split, sources.Records(str(builder.data_dir), split), shards


def _faults(
    info: datasets.DatasetInfo, split: str, source: Source, shards: list[Shard], report: Report | None
) -> Iterator[Fault]:
    """Yield what is wrong with the shards, then with each image that they hold."""
    there = np.ones(len(source), bool)
    for shard in shards:
        if fault := _shard_fault(source, shard):
            there[shard.start + shard.records - fault.images : shard.start + shard.records] = False
            yield fault
    check = functools.partial(_image_fault, info, source)
    for fault in in_threads(check, np.flatnonzero(there), f"reading {split}", report):
        if fault is not None:
            yield fault


def _shard_fault(source: Source, shard: Shard) -> Fault | None:
    reader = ArrayRecordReader(str(shard.file))
    found = reader.num_records()  # 0 where the file's end, which holds the index, cannot be read
    reader.close()
    if found == shard.records:
        return None
    text = f"{shard.file} holds {found:,} records instead of {shard.records:,}"
    if not found:
        try:
            _ = source[shard.start]
        except Exception as error:  # it alone says why
            text = f"{shard.file} cannot be read ({datasets.one_line(error)})"
    return Fault(text, max(shard.records - found, 0))


def _image_fault(info: datasets.DatasetInfo, source: Source, index: int) -> Fault | None:
    name = source.name(index)
    try:
        encoded = source[index]
        name = encoded.name
        decode(encoded.data, channels(info))
    except Exception as error:  # whatever readers and decoders raise for broken bytes
        return Fault(f"{name} cannot be read ({datasets.one_line(error)})", 1)
    if not 0 <= encoded.label < info.num_classes:
        return Fault(f"{name} has the label {encoded.label}, not one of 0 to {info.num_classes - 1}", 1)
    return None
