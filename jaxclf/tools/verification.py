"""Reading and decoding every image of a data set once, to name all that is wrong: `jaxclf data verify`."""

import functools
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from jaxclf.config import DataConfig
from jaxclf.data.datasets import TfdsSet, resolve
from jaxclf.data.decoding import decode
from jaxclf.data.facts import SPLITS, Facts
from jaxclf.data.kinds import Dataset, ResidentSet, StreamedSet
from jaxclf.data.sources import Records, Report, Source
from jaxclf.data.transforms import to_image
from jaxclf.errors import UsageError, one_line
from jaxclf.tools.inspection import in_threads, unprepared


class Finding(NamedTuple):
    """Something that is wrong."""

    text: str
    images: int
    """Number of images that it costs."""


class Checked(NamedTuple):
    """A split on its way through the check."""

    split: str
    images: int
    findings: Iterable[Finding]
    """Read one by one, while they are asked for."""


class Shard(NamedTuple):
    """A file of records."""

    file: str
    start: int
    """Number of its first record in the split."""
    records: int
    """Number of records that it must hold."""


def verify(name: str, *, data_dir: str | None = None, report: Report | None = None) -> Iterator[str]:
    """Read every image of every split, of those too that runs take only on request; yield a line for all that is wrong.

    A shard that cannot be opened is one line, as none of its images can be read. Each split ends with a line that
    counts its images; the last line says that all is well. `report` is told of the progress.

    Raises:
      UsageError: at the end, if anything was wrong. At once for what stops a run before it begins: a set that is not
        prepared or only half, missing shards, numbers of images that are not the known ones, empty classes, and
        classes that differ between splits.
    """
    dataset = resolve(DataConfig(name, data_dir=data_dir)).origin
    if missing := unprepared(dataset):
        raise UsageError(missing)
    images, bad, lines = 0, 0, 0
    for split, count, findings in _splits(dataset, report):
        own = 0
        for finding in findings:
            own, lines = own + finding.images, lines + 1
            yield finding.text
        images, bad = images + count, bad + own
        yield f"{split}: {count:,} images" + (f", {own:,} of them cannot be used" if own else "")
    if lines:
        raise UsageError(f"{name}: {bad:,} of {images:,} images cannot be used; lines above: {lines:,}")
    yield f"{images:,} images, all readable"


def _splits(dataset: Dataset, report: Report | None) -> list[Checked]:
    """Open all splits of a set; nothing is read yet, except for resident sets that are no files of TFDS."""
    if isinstance(dataset, ResidentSet) and not isinstance(dataset, TfdsSet):
        return [Checked(split, len(dataset.read(split).labels), ()) for split in SPLITS]
    assert isinstance(dataset, TfdsSet | StreamedSet)
    return [
        Checked(split, len(source), _findings(dataset.facts, source, f"reading {split}", report))
        for split, source in dataset.stored_splits().items()
    ]


def _findings(facts: Facts, source: Source, what: str, report: Report | None) -> Iterator[Finding]:
    """Yield the faults of the shards, then those of each image that they hold."""
    there = np.ones(len(source), bool)
    for shard in _shards(source) if isinstance(source, Records) else ():
        if finding := _shard_finding(shard):
            end = shard.start + shard.records
            there[end - finding.images : end] = False
            yield finding
    read = functools.partial(_image_finding, facts, source)
    low, high = np.full(facts.decoded, 255), np.zeros(facts.decoded, int)
    for found in in_threads(read, np.flatnonzero(there).tolist(), what, report):
        if isinstance(found, Finding):
            yield found
        else:
            low, high = np.minimum(low, found[0]), np.maximum(high, found[1])
    for channel in np.flatnonzero(low == high):
        warnings.warn(f"{what}: channel {channel} of every image is {low[channel]} everywhere", stacklevel=2)


def _shards(source: Records) -> list[Shard]:
    """Return the files of a whole split."""
    import tensorflow_datasets as tfds

    stored = tfds.builder_from_directory(source.directory).info.splits[source.split]
    starts = np.cumsum([0, *stored.shard_lengths])[:-1].tolist()
    files = map(os.fspath, stored.filepaths)
    return [Shard(*shard) for shard in zip(files, starts, stored.shard_lengths, strict=True)]


def _shard_finding(shard: Shard) -> Finding | None:
    try:
        reader = ArrayRecordReader(shard.file)  # reads the index at the file's end
        found = reader.num_records()
        reader.close()
    except Exception as error:  # array_record says RuntimeError
        return Finding(f"{shard.file} cannot be read ({one_line(error)})", shard.records)
    if found == shard.records:
        return None
    return Finding(f"{shard.file} holds {found:,} records instead of {shard.records:,}", max(shard.records - found, 0))


def _image_finding(facts: Facts, source: Source, index: int) -> Finding | tuple[np.ndarray, np.ndarray]:
    """Return what is wrong with an image, or else the least and the greatest value [c] of its channels."""
    name = source.name(index)
    try:
        encoded = source[index]
        name = encoded.name
        pixels = decode(encoded.data, facts.decoded)
        shape = pixels.shape
    except Exception as error:  # whatever readers and decoders raise for broken bytes
        return Finding(f"{name} cannot be read ({one_line(error)})", 1)
    if not facts.streamed and shape != facts.image_shape:
        return Finding(f"{name} has the shape {shape}, not {facts.image_shape}", 1)
    if not 0 <= encoded.label < facts.num_classes:
        return Finding(f"{name} has the label {encoded.label}, not one of 0 to {facts.num_classes - 1}", 1)
    low, high = np.atleast_2d(to_image(pixels).getextrema()).T  # numpy takes far longer over interleaved channels
    return low, high
