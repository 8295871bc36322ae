"""What `jaxclf data verify` does: read and decode every image of a data set once, and name all that is wrong."""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from jaxclf.data import datasets
from jaxclf.data.decoding import decode
from jaxclf.data.sources import Records, Report, Source
from jaxclf.errors import UsageError
from jaxclf.tools.inspection import channels, in_threads, open_splits, unprepared


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

    A shard that cannot be opened is one line, as none of its images can be read. Each split ends with a line that
    counts its images; the last line says that all is well. `report` is told of the progress.

    Raises:
      UsageError: at the end, if anything was wrong. At once for what stops a run before it begins: a set that is not
        prepared or only half, missing shards, numbers of images that are not the known ones, empty classes, and
        classes that differ between splits.
    """
    info = datasets.info(name, data_dir)
    if missing := unprepared(info, data_dir):
        raise UsageError(missing)
    images, bad, lines = 0, 0, 0
    for split, count, faults in _splits(info, data_dir, report):
        own = 0
        for fault in faults:
            own, lines = own + fault.images, lines + 1
            yield fault.text
        images, bad = images + count, bad + own
        yield f"{split}: {count:,} images" + (f", {own:,} of them cannot be used" if own else "")
    if lines:
        raise UsageError(f"{name}: {bad:,} of {images:,} images cannot be used; lines above: {lines:,}")
    yield f"{images:,} images, all readable"


def _splits(info: datasets.DatasetInfo, data_dir: str | None, report: Report | None) -> list[Checked]:
    """Open all splits of a set; nothing is read yet, but what ships in this package."""
    if info.tfds is None and not info.streamed:
        return [Checked(split, len(datasets.load(info.name, split).labels), ()) for split in datasets.SPLITS]
    opened = open_splits(info, data_dir)
    return [
        Checked(split, len(source), _faults(info, source, f"reading {split}", report))
        for split, source in opened.items()
    ]


def _faults(info: datasets.DatasetInfo, source: Source, what: str, report: Report | None) -> Iterator[Fault]:
    """Yield what is wrong with the shards, then with each image that they hold."""
    there = np.ones(len(source), bool)
    for shard in _shards(source) if isinstance(source, Records) else ():
        if fault := _shard_fault(shard):
            end = shard.start + shard.records
            there[end - fault.images : end] = False
            yield fault
    check = functools.partial(_image_fault, info, source)
    for fault in in_threads(check, np.flatnonzero(there).tolist(), what, report):
        if fault is not None:
            yield fault


def _shards(source: Records) -> list[Shard]:
    """Return the files of a whole split."""
    import tensorflow_datasets as tfds

    stored = tfds.builder_from_directory(source.directory).info.splits[source.split]
    starts = np.cumsum([0, *stored.shard_lengths])[:-1].tolist()
    files = map(Path, stored.filepaths)
    return [Shard(*shard) for shard in zip(files, starts, stored.shard_lengths, strict=True)]


def _shard_fault(shard: Shard) -> Fault | None:
    try:
        reader = ArrayRecordReader(str(shard.file))  # reads the index at the file's end
        found = reader.num_records()
        reader.close()
    except Exception as error:  # array_record says RuntimeError
        return Fault(f"{shard.file} cannot be read ({datasets.one_line(error)})", shard.records)
    if found == shard.records:
        return None
    return Fault(f"{shard.file} holds {found:,} records instead of {shard.records:,}", max(shard.records - found, 0))


def _image_fault(info: datasets.DatasetInfo, source: Source, index: int) -> Fault | None:
    name = source.name(index)
    try:
        encoded = source[index]
        name = encoded.name
        shape = decode(encoded.data, channels(info)).shape
    except Exception as error:  # whatever readers and decoders raise for broken bytes
        return Fault(f"{name} cannot be read ({datasets.one_line(error)})", 1)
    if info.image_shape not in (None, shape):
        return Fault(f"{name} has the shape {shape}, not {info.image_shape}", 1)
    if not 0 <= encoded.label < info.num_classes:
        return Fault(f"{name} has the label {encoded.label}, not one of 0 to {info.num_classes - 1}", 1)
    return None
