"""Sources of encoded images: records that TFDS prepared, and files in folders.

A source answers number by number, in an order that never changes, and is cheap to send to another process: it opens
its files where it is read. Nothing here decodes an image.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from jaxclf.errors import UsageError, one_line, unknown
from jaxclf.storage import Location, directories, files_below, location, read, write_whole

Labels = Int32[np.ndarray, " n"]
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of the files that torchvision's ImageFolder reads (0.28, datasets/folder.py); case does not matter."""
UNREADABLE = -1
"""Label, in an index, of a record that cannot be read."""
SLICE = 1024
"""Records read at once, and between two reports of progress while an index is built."""

Report = Callable[[str, int, int | None], None]
"""Takes the name of the work, the amount that is done, and the whole amount (None: unknown)."""


class Encoded(NamedTuple):
    """One example as it is stored."""

    data: bytes
    """The image file."""
    label: int
    name: str
    """Name that tells a person which image it is."""


@runtime_checkable
class Source(Protocol):
    """The examples of a split, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Encoded:
        """Read one example; raises whatever reading raises."""
        ...

    def name(self, index: int) -> str:
        """Return a name that tells a person which example this is, without reading it."""
        ...

    def labels(self, report: Report | None = None) -> Labels:
        """Return all labels; may read the whole set once."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the examples and their order, without reading them."""
        ...


class Folder:
    """A directory with a directory of images for each class, as torchvision's ImageFolder reads it, in its order."""

    def __init__(self, directory: Location) -> None:
        """List the images; `UsageError` for a directory without classes and for classes without images."""
        self.directory = str(directory)
        self.class_names = class_directories(directory)
        files, labels, empty, hidden = [], [], [], _hidden(directory)
        below = _images_below(directory, self.class_names)
        for label, name in enumerate(self.class_names):
            found = below[name]
            start = len(str(directory / name))
            own = [file for file in found if f"{os.sep}." not in file[start:]]
            hidden += len(found) - len(own)
            files += own
            labels += [label] * len(own)
            empty += [] if own else [name]
        if empty:
            raise UsageError(
                f"{directory} has classes without an image ({', '.join(EXTENSIONS)}): {', '.join(empty[:10])}"
                + (f" and {len(empty) - 10} more" if len(empty) > 10 else "")
            )
        if hidden:
            warnings.warn(f"{directory}: {hidden} hidden directories and images (.name) are left out", stacklevel=2)
        self._files = np.array([os.fsencode(file) for file in files])  # a million strings would be slow to send
        self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Encoded:
        name = self.name(index)
        return Encoded(read(name), int(self._labels[index]), name)

    def name(self, index: int) -> str:
        """Return the file's path."""
        return os.fsdecode(self._files[index])

    def labels(self, report: Report | None = None) -> Labels:
        """Return the classes' places in sorted order."""
        return self._labels

    def fingerprint(self) -> str:
        """Hash names and labels, so that a file that came or went shows; not their bytes."""
        start = len(os.fsencode(self.directory))
        names = b"\0".join(bytes(file)[start:] for file in self._files)
        return hashlib.sha256(names + self._labels.tobytes()).hexdigest()


def class_directories(directory: Location) -> tuple[str, ...]:
    """Return the sorted names of the directories in a directory, hidden ones left out; `UsageError` without any."""
    names = sorted(name for name in _directories(directory) if not name.startswith("."))
    if not names:
        raise UsageError(f"{directory} has no directories; each class must be one, with its images in it")
    return tuple(names)


def holds_classes(directory: Location) -> bool:
    """Tell whether a directory has at least two directories, and images in each of them, not deeper."""
    names = [name for name in _directories(directory) if not name.startswith(".")]
    return len(names) > 1 and all(_images_below(directory, names, deep=False).values())


def _hidden(directory: Location) -> int:
    return sum(name.startswith(".") for name in _directories(directory))


def _directories(directory: Location) -> list[str]:
    try:
        return directories(directory)
    except OSError as error:
        raise _cannot_read(directory, error) from error


def _cannot_read(directory: Location, error: OSError) -> UsageError:
    return UsageError(f"cannot read {error.filename or directory}: {error.strerror}")


def _images_below(directory: Location, names: Sequence[str], *, deep: bool = True) -> dict[str, list[str]]:
    """Return the images in each directory of these names, by name; with `deep` also those further below."""
    try:
        found = files_below(directory, names, deep=deep)
    except OSError as error:
        raise _cannot_read(directory, error) from error
    return {name: [file for file in files if file.lower().endswith(EXTENSIONS)] for name, files in found.items()}


class Records:
    """A split of a set that TFDS prepared as array_record; `split` may be any of TFDS's expressions."""

    def __init__(self, directory: str, split: str) -> None:
        """Open it; `UsageError` for an unknown split or an expression that TFDS does not understand."""
        self.directory, self.split = directory, split
        self._records: Any = self._open()

    def _open(self) -> Any:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.decode import DeserializeMethod

        builder: Any = tfds.builder_from_directory(self.directory)
        try:
            # TFDS's own decoding of a record takes eight times as long as parsing the message.
            return builder.as_data_source(self.split, deserialize_method=DeserializeMethod.RAW_BYTES)
        except ValueError as error:  # TFDS: an unknown split, or no expression of splits
            if self.split.isidentifier():
                raise unknown("split", self.split, builder.info.splits) from error
            raise UsageError(f"split {self.split!r} of {self.directory}: {one_line(error)}") from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Encoded:
        return self._parsed(index, self._records[index])

    def __iter__(self) -> Iterator[Encoded]:
        """Read all in their order, many at a time, which is faster."""
        for start in range(0, len(self), SLICE):
            numbers = range(start, min(start + SLICE, len(self)))
            yield from map(self._parsed, numbers, self._records.__getitems__(numbers))

    def _parsed(self, index: int, record: bytes) -> Encoded:
        from tensorflow_datasets.proto import tf_example_pb2

        example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
        features = example.FromString(record).features.feature
        data, label = features["image"].bytes_list.value[0], features["label"].int64_list.value[0]
        file = features["file_name"].bytes_list.value if "file_name" in features else ()
        return Encoded(data, label, self.name(index) + (f" ({os.fsdecode(file[0])})" if file else ""))

    def name(self, index: int) -> str:
        """Return the split's place and the record's number in it."""
        return f"{self.directory}, split {self.split}, record {index}"

    def labels(self, report: Report | None = None) -> Labels:
        """Return the labels from the index beside the data, which is built by reading every record once.

        Records that cannot be read have the label `UNREADABLE`. Where the index cannot be written, it is kept in
        memory and a warning says so.
        """
        if (stored := self.stored_labels()) is not None:
            return stored
        labels, file, stream = self._read_labels(report or (lambda *_: None)), self._index, io.BytesIO()
        try:
            np.save(stream, labels)
            write_whole(file, stream.getvalue(), writer=str(os.getpid()))
        except OSError as error:
            warnings.warn(f"{file} could not be written ({error.strerror}); it will be built again", stacklevel=2)
        return labels

    def stored_labels(self) -> Labels | None:
        """Return all labels if an index is there that has them."""
        try:
            labels = np.load(io.BytesIO(self._index.read_bytes()))
        except (OSError, ValueError, EOFError):  # there is none, or a machine that went down left half of one
            return None
        return labels.astype(np.int32) if labels.shape == (len(self),) else None

    @property
    def _index(self) -> Location:
        return location(self.directory) / f"jaxclf-labels-{_file_name(self.split)}.npy"

    def _read_labels(self, report: Report) -> Labels:
        labels = np.full(len(self), UNREADABLE, np.int32)

        def read(index: int) -> None:
            try:
                labels[index] = self[index].label
            except Exception:  # whatever array_record and the parser raise; the caller decides by UNREADABLE
                labels[index] = UNREADABLE

        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self), SLICE):
                report(f"reading the labels of {self.directory}, {self.split}", start, len(self))
                list(pool.map(read, range(start, min(start + SLICE, len(self)))))
        return labels

    def fingerprint(self) -> str:
        """Hash TFDS's version, the split and the lengths of its shards."""
        import tensorflow_datasets as tfds

        info = tfds.builder_from_directory(self.directory).info
        shards = [(name, split.shard_lengths) for name, split in sorted(info.splits.items())]
        return hashlib.sha256(repr((info.full_name, self.split, len(self), shards)).encode()).hexdigest()


def _file_name(split: str) -> str:
    """Return a name for a split's expression: itself, if it is plain."""
    return split if split.isidentifier() else hashlib.sha256(split.encode()).hexdigest()[:16]


class Part:
    """Some of a source's examples, renumbered from 0."""

    def __init__(self, whole: Source, rows: Labels) -> None:
        """Take the examples `rows`, in that order."""
        self._whole, self._rows = whole, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Encoded:
        return self._whole[int(self._rows[index])]

    def name(self, index: int) -> str:
        """Return the whole's name for it."""
        return self._whole.name(int(self._rows[index]))

    def labels(self, report: Report | None = None) -> Labels:
        """Return the labels of the part."""
        return self._whole.labels(report)[self._rows]

    def fingerprint(self) -> str:
        """Hash the whole's hash and the rows."""
        return hashlib.sha256(self._whole.fingerprint().encode() + self._rows.tobytes()).hexdigest()
