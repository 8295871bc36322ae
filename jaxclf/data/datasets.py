"""Data sets as objects: `resolve` makes one of a config, and everything that needs facts or images takes it.

A resident set has images of one size, which are read into memory before a run. A streamed set has images of any size,
which are read while the run goes on.

>>> dataset = resolve(DataConfig("digits", classes=3))
>>> dataset.image_shape, dataset.class_names
((8, 8, 1), ('0', '1', '2'))
"""

import abc
import dataclasses
import functools
import importlib.resources
import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32, UInt8

from jaxclf.config import DataConfig
from jaxclf.data import prepared
from jaxclf.data.facts import RESIDENT, SPLITS, STREAMED, TEST_NAMES, TRAIN_NAMES, Facts
from jaxclf.data.order import held_out
from jaxclf.data.sources import UNREADABLE, Folder, Part, Records, Report, Source, class_directories
from jaxclf.data.transforms import Preprocessing, resize_images, resize_side
from jaxclf.errors import UsageError, unknown
from jaxclf.registry import Registry

FOLDER = "folder:"
"""Begin of the name of a set in folders; the directory follows."""
READ_SLICE = 2048
"""Examples decoded at once; only bounds the memory that decoded records hold beside the result."""
DIGITS_FILE = Path(str(importlib.resources.files("jaxclf.data") / "digits.npz"))
DIGITS_TEST_EVERY = 4
"""Every 4th image of a class, in file order, is a test image of the digits."""


class Dataset(abc.ABC):
    """The data set of a config: facts at once, images when they are asked for."""

    facts: Facts
    """Facts of the whole set, whatever the config keeps of it."""
    location: Path | None = None
    """Place of a set that needs no preparation."""

    def __init__(self, config: DataConfig) -> None:
        """Keep the config; sets whose facts have to be read read them here."""
        self.config = config

    @property
    def num_classes(self) -> int:
        """Number of classes that the config keeps; `UsageError` for a number that the set does not have."""
        classes = self.config.classes
        if classes is not None and not 2 <= classes <= self.facts.num_classes:
            raise UsageError(f"classes is {classes} but {self.facts.name} allows 2 to {self.facts.num_classes}")
        return classes or self.facts.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per label of the classes that the config keeps."""
        return self.facts.class_names[: self.num_classes]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the images that a step is given; `UsageError` where only `data.image_size` could say it."""
        (h, w, c), side = self.facts.image_shape, self.config.image_size
        if side is not None:
            return side, side, c
        if h is None or w is None:
            raise UsageError(
                f"data.image_size is None, but the images of {self.facts.name} differ in size; give one, as 224"
            )
        return h, w, c

    @property
    def constants(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel for normalisation: the config's, or else the set's own.

        Raises `UsageError` for a wrong number of them, and for deviations that are not above 0.
        """
        mean, std = self.config.mean or self.facts.mean, self.config.std or self.facts.std
        channels = self.facts.image_shape[2]
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise UsageError(
                f"data.mean {mean} and data.std {std} must have {channels} numbers each for {self.config.dataset}, "
                "std above 0"
            )
        return mean, std

    @property
    def preprocessing(self) -> Preprocessing:
        """Steps from an image file to a test image of a run of this config."""
        size = self.image_shape[0]
        short_side = resize_side(self.config) if self.facts.streamed else size
        return Preprocessing(short_side, size, None, self.config.interpolation, *self.constants)

    @abc.abstractmethod
    def train_examples(self) -> int:
        """Return the number of training images of all classes, before any are held out; may have to open the set."""


# 1. Resident sets


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images and their labels, in memory."""

    images: UInt8[np.ndarray, "n h w c"]
    """Pixels, 0..255."""
    labels: Int32[np.ndarray, " n"]
    """Class of each image."""

    def where(self, chosen: Bool[np.ndarray, " n"]) -> "Images":
        """Return the chosen images."""
        return Images(self.images[chosen], self.labels[chosen])

    def statistics(self) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
        """Return the mean and the (biased) standard deviation of each channel on the 0..1 scale.

        mean = sum(v) / n / 255 and std = sqrt(sum(v^2) / n - (sum(v) / n)^2) / 255 over all n pixels; both sums are
        exact integers, so neither the order nor the number of images costs precision.
        """
        images = self.images  # [n h w c]
        pixels = images.shape[0] * images.shape[1] * images.shape[2]
        mean = images.sum(axis=(0, 1, 2), dtype=np.uint64) / pixels
        square = np.square(images, dtype=np.uint16).sum(axis=(0, 1, 2), dtype=np.uint64) / pixels
        return mean / 255, np.sqrt(square - mean**2) / 255


class ResidentSet(Dataset):
    """A data set that fits into memory: `facts` and `read` are all that a new one defines."""

    @abc.abstractmethod
    def read(self, split: str) -> Images:
        """Read "train" or "test" whole, in the stored order, which is the same on every call."""

    def images(self) -> dict[str, Images]:
        """Read "train" and "test", and with `data.validation` "validation", as the config limits and resizes them."""
        splits, classes = {split: self.read(split) for split in SPLITS}, self.config.classes
        if classes is not None:
            splits = {split: part.where(part.labels < classes) for split, part in splits.items()}
        if (side := self.config.image_size) is not None:
            splits = {split: Images(resize_images(part.images, side), part.labels) for split, part in splits.items()}
        if self.config.validation:
            train = splits["train"]
            chosen = held_out(train.labels, self.config.validation)
            splits |= {"train": train.where(~chosen), "validation": train.where(chosen)}
        return splits

    def train_examples(self) -> int:
        """Return the number of training images, which the facts have or reading tells."""
        return self.facts.train_examples or len(self.read("train").labels)


class Digits(ResidentSet):
    """The digits that ship in this package; pixels 0..16 become 0..255, rounded."""

    facts = RESIDENT["digits"]
    location = DIGITS_FILE

    def read(self, split: str) -> Images:
        """Read a split from this package."""
        with np.load(DIGITS_FILE) as arrays:
            images, labels = arrays["images"], arrays["labels"].astype(np.int32)
        chosen = _digits_test(labels) == (split == "test")
        return Images(np.round(images[chosen] * (255 / 16)).astype(np.uint8)[..., np.newaxis], labels[chosen])


def _digits_test(labels: Int32[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Return which digits are test images: a rule over the file order, so no generator's version matters."""
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[DIGITS_TEST_EVERY - 1 :: DIGITS_TEST_EVERY]] = True
    return test


class TfdsSet(Dataset):
    """A data set of TFDS."""

    row: Facts | None
    """Row of our tables, which the prepared set must agree with."""

    @functools.cached_property
    def builder(self) -> Any:
        """TFDS's builder over the data directory, of a set that is prepared or not."""
        return prepared.open_builder(self.config.dataset, self.config.data_dir)

    @functools.cached_property
    def directory(self) -> str:
        """Directory of the prepared set; `UsageError` where it is missing, not whole, or not as its row says."""
        prepared.require_whole(self.config.dataset, self.builder, self.row)
        return str(self.builder.data_dir)

    def stored_splits(self) -> dict[str, Source]:
        """Open every split, of those too that runs take only on request."""
        directory = self.directory
        return {split: Records(directory, split) for split in self.builder.info.splits}


class ResidentTfds(TfdsSet, ResidentSet):
    """A set of TFDS with a row in `RESIDENT`.

    TFDS stores a set in the fixed pseudo-random order of its keys' hashes, not in the order of the original files.
    """

    def __init__(self, config: DataConfig) -> None:
        """Look the facts up; nothing is opened."""
        super().__init__(config)
        self.facts = self.row = RESIDENT[config.dataset]

    def read(self, split: str) -> Images:
        """Read a split that TFDS prepared, without TensorFlow; `UsageError` for records that cannot be read."""
        directory, count = self.directory, self.builder.info.splits[split].num_examples
        shape: Any = self.facts.image_shape  # rows of resident sets have all three numbers
        images = np.empty((count, *shape), np.uint8)  # [n h w c]
        labels = np.empty(count, np.int32)
        try:
            records = self.builder.as_data_source(split)
            for start in range(0, count, READ_SLICE):
                part = records.__getitems__(range(start, min(start + READ_SLICE, count)))
                images[start : start + len(part)] = [example["image"] for example in part]
                labels[start : start + len(part)] = [example["label"] for example in part]
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # array_record raises RuntimeError, TFDS and the PNG decoder whatever they meet
            raise prepared.unreadable(self.facts.name, directory, error) from error
        return Images(images, labels)


# 2. Streamed sets


class StreamedSet(Dataset):
    """A data set whose images are read while the run goes on: a new one defines `facts` and `open_split`."""

    @abc.abstractmethod
    def open_split(self, name: str) -> Source:
        """Open a split by the set's own name for it; `UsageError` for one that does not exist."""

    def stored_splits(self) -> dict[str, Source]:
        """Open every split, of those too that runs take only on request."""
        return {split: self.open_split(split) for split in self.facts.splits}

    def sources(self, report: Report | None = None) -> dict[str, Source]:
        """Open "train" and "test", and with `data.validation` "validation", as the config limits them.

        Raises:
          UsageError: a set that is not there or only half prepared, splits that do not exist or are empty, classes that
            differ between the splits, and with `data.on_error` "raise" records that the label index could not read.
        """
        opened = {split: self.open_split(name) for split, name in zip(SPLITS, self._split_names(), strict=True)}
        if self.num_classes < self.facts.num_classes:
            opened = {split: self._first_classes(source, report) for split, source in opened.items()}
        if self.config.validation:
            train = opened["train"]
            chosen = held_out(train.labels(report), self.config.validation)
            opened |= {"train": Part(train, _numbers(~chosen)), "validation": Part(train, _numbers(chosen))}
        if empty := [split for split, source in opened.items() if not len(source)]:
            raise UsageError(f"{self.config.dataset} has no images for {', '.join(empty)}")
        return opened

    def train_examples(self) -> int:
        """Return the number of training images, which the facts have or the open split."""
        known = None if self.config.train_split else self.facts.train_examples
        return known or len(self.open_split(self._split_names()[0]))

    def _split_names(self) -> tuple[str, str]:
        train, test = self.facts.splits
        return self.config.train_split or train, self.config.test_split or test

    def _first_classes(self, source: Source, report: Report | None) -> Source:
        labels = source.labels(report)
        if (broken := _numbers(labels == UNREADABLE)).size:
            text = f"{len(broken)} records cannot be read, the first of them {source.name(int(broken[0]))}"
            if self.config.on_error == "raise":
                raise UsageError(f"{text}; `jaxclf data verify {self.config.dataset}` names them all")
            warnings.warn(f"{text}; they are in no class and left out", stacklevel=2)
        return Part(source, _numbers((labels >= 0) & (labels < self.num_classes)))


def _numbers(chosen: Bool[np.ndarray, " n"]) -> Int32[np.ndarray, " m"]:
    return np.flatnonzero(chosen).astype(np.int32)


class StreamedTfds(TfdsSet, StreamedSet):
    """An image classification set of TFDS; those with a row in `STREAMED` are compared with it."""

    def __init__(self, config: DataConfig) -> None:
        """Read the facts from the prepared set in `config.data_dir`, or from TFDS's code."""
        super().__init__(config)
        self.row = STREAMED.get(config.dataset)
        self.facts = prepared.facts_of(config.dataset, self.builder)

    def open_split(self, name: str) -> Records:
        """Open a split, which may be any of TFDS's expressions."""
        return Records(self.directory, name)


class Folders(StreamedSet):
    """A directory with a directory for each split, and in it one for each class."""

    def __init__(self, config: DataConfig) -> None:
        """Read the names of splits and classes; `UsageError` for a directory that has none."""
        super().__init__(config)
        self.location = root = Path(config.dataset.removeprefix(FOLDER)).expanduser().absolute()
        if not root.is_dir():
            raise UsageError(f"{config.dataset}: there is no directory {root}, or no permission to enter it")
        inside = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        train = next((split for split in TRAIN_NAMES if split in inside), None)
        test = next((split for split in TEST_NAMES if split in inside), None)
        if train is None or test is None:
            raise UsageError(
                f"{root} must hold the directories train and {' or '.join(TEST_NAMES)}, each with a directory for "
                f"every class; it holds {', '.join(inside[:10]) or 'none'}"
            )
        names = class_directories(root / train)
        self._root = root
        self.facts = Facts(
            name=config.dataset,
            num_classes=len(names),
            class_names=names,
            source=f"folders in {root}",
            splits=(train, test),
        )

    def open_split(self, name: str) -> Folder:
        """List the images of a split; `UsageError` where its classes are not those of the training images."""
        directory = self._root / name
        if not directory.is_dir():
            inside = (entry.name for entry in self._root.iterdir() if entry.is_dir())
            raise unknown(f"split of {self._root}", name, inside)
        source = Folder(directory)
        train, here = set(self.facts.class_names), set(source.class_names)
        sides = ((directory, train - here), (self._root / self.facts.splits[0], here - train))
        if lacking := [f"{side} lacks {_first(names)}" for side, names in sides if names]:
            raise UsageError(f"the classes of {directory} are not those of the training images: {'; '.join(lacking)}")
        return source

    def stored_splits(self) -> dict[str, Source]:
        """Open every directory that is taken for a split."""
        return {split: self.open_split(split) for split in TRAIN_NAMES + TEST_NAMES if (self._root / split).is_dir()}


def _first(names: set[str], count: int = 10) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(sorted(names)[:count]) + more


# 3. Names


def _kind(found: Any) -> type[ResidentSet] | type[StreamedSet]:
    """Return a class that is a data set. Raises `TypeError` for the rest."""
    if not (inspect.isclass(found) and issubclass(found, ResidentSet | StreamedSet)):
        raise TypeError(f"it is {found!r} but must be a subclass of jaxclf.data.datasets.ResidentSet or StreamedSet")
    if lacking := sorted(found.__abstractmethods__):
        raise TypeError(f"{found.__name__} must define {', '.join(lacking)}")
    return found


OWN: dict[str, type[ResidentSet] | type[StreamedSet]] = {**dict.fromkeys(RESIDENT, ResidentTfds), "digits": Digits}
SETS = Registry("data set", "jaxclf.datasets", OWN, _kind)
IMPORTED = re.compile(r"[\w.]+:[A-Za-z_][\w.]*")
"""package.module:Name; a number after the colon is the version of a set of TFDS."""


def resolve(config: DataConfig) -> ResidentSet | StreamedSet:
    """Return the data set of a config, having read its facts: from folders or from TFDS, if it is in no table.

    `config.dataset` is folder:PATH, package.module:Name of a subclass of `ResidentSet` or `StreamedSet`, a name of
    `RESIDENT` or of an entry point in the group jaxclf.datasets, or that of any image classification set of TFDS.

    Raises `UsageError` for a name that TFDS does not know either, a set of TFDS without image and label, and a folder
    that does not exist.
    """
    name = config.dataset
    if name.startswith(FOLDER):
        return Folders(config)
    if IMPORTED.fullmatch(name) or name in SETS.names():
        return SETS.resolve(name)(config)
    if name.startswith(("/", "./", "../", "~")) or ("/" in name and Path(name).is_dir()):
        raise UsageError(f"data.dataset is {name!r} but images in a directory are {FOLDER + name!r}")
    return StreamedTfds(config)
