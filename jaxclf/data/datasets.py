"""Data sets as objects: `resolve` makes one of a config, and everything that needs facts or images takes it.

A resident set has images of one size, which are read into memory before a run. A streamed set has images of any size,
which are read while the run goes on.

>>> dataset = resolve(DataConfig("digits", classes=3))
>>> dataset.image_shape, dataset.class_names
((8, 8, 1), ('0', '1', '2'))
"""

import abc
import functools
import importlib.resources
import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from jaxclf.config import DataConfig
from jaxclf.data import prepared
from jaxclf.data.decoding import decode
from jaxclf.data.facts import RESIDENT, SPLITS, STREAMED, TEST_NAMES, TRAIN_NAMES, Facts
from jaxclf.data.kinds import Dataset, DrawnSet, Images, ResidentSet, StreamedSet, numbers
from jaxclf.data.order import held_out
from jaxclf.data.scenes import NONE, Enlarged, Scenes, draw_scenes, enlarge
from jaxclf.data.sources import Folder, Part, Records, Source, class_directories, holds_classes
from jaxclf.errors import UsageError, unknown
from jaxclf.registry import Registry
from jaxclf.storage import IMAGES, absolute, directories, location

FOLDER = "folder:"
"""Begin of the name of a set in folders; the directory follows."""
TESTED = 0.2
"""Share of each class of a folder that is tested, where no directory says which."""
DIGITS_FILE = Path(str(importlib.resources.files("jaxclf.data") / "digits.npz"))
DIGITS_TEST_EVERY = 4
"""Every 4th image of a class, in file order, is a test image of the digits."""


# 1. Resident sets


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

    divisible = True

    def __init__(self, config: DataConfig) -> None:
        """Look the facts up; nothing is opened."""
        super().__init__(config)
        self.facts = self.row = RESIDENT[config.dataset]

    def read(self, split: str) -> Images:
        """Read a split that TFDS prepared, without TensorFlow; it may be any of TFDS's expressions, as train[:20%].

        Raises `UsageError` for a split that does not exist, and for records that cannot be read.
        """
        directory = self.directory
        shape: Any = self.facts.image_shape  # rows of resident sets have all three numbers
        try:
            records = Records(directory, split)
            images = np.empty((len(records), *shape), np.uint8)  # [n h w c]
            labels = np.empty(len(records), np.int32)
            for index, record in enumerate(records):
                images[index], labels[index] = decode(record.data, shape[2]), record.label
        except (ImportError, MemoryError, UsageError):
            raise
        except Exception as error:  # array_record raises RuntimeError, protobuf and PIL whatever they meet
            raise prepared.unreadable(self.facts.name, directory, error) from error
        return Images(images, labels)

    def count(self, split: str) -> int:
        """Return the number of images of a split, as `read` takes it."""
        return len(Records(self.directory, split))


class Pairs(DrawnSet):
    """Two images of another set side by side in a square: of its k classes k^2, of which c is (c // k, c % k).

    Both splits have as many pairs of each class, made of images of the same split: no image is in a training pair and
    in a test pair. Training pairs are drawn anew in every epoch, test pairs once.
    """

    halved = False
    """Whether the mean of 2x2 pixels stands for them, so that the square is as large as an image of the other set."""

    @functools.cached_property
    def halves(self) -> dict[str, Images]:
        """The images that pairs are made of, by split, sorted by their labels."""
        found = {}
        for split in SPLITS:
            part = self.origin.read(split)
            images = part.images[np.argsort(part.labels, kind="stable")]
            if self.halved:
                n, h, w, c = images.shape
                images = ((images.reshape(n, h // 2, 2, w // 2, 2, c).sum((2, 4)) + 2) // 4).astype(np.uint8)
            found[split] = Images(images, np.sort(part.labels))
        return found

    @property
    @abc.abstractmethod
    def origin(self) -> ResidentSet:
        """The data set that pairs are made of."""

    def read(self, split: str) -> Images:
        """Draw the test pairs, which are always the same, or the training pairs of seed 0, epoch 0."""
        return self.draw(0, 0) if split == "train" else self._pairs(split, np.random.default_rng(1))

    def draw(self, seed: int, epoch: int) -> Images:
        """Draw the training pairs of an epoch: each a function of (seed, epoch, index), its label of index alone."""
        return self._pairs("train", np.random.default_rng((seed, epoch, 2)))  # order.py takes other words

    def _pairs(self, split: str, rng: np.random.Generator) -> Images:
        halves, classes = self.halves[split], self.facts.num_classes
        labels = np.arange(classes, dtype=np.int32).repeat((self.facts.counts[split] or 0) // classes)
        sizes = np.bincount(halves.labels)
        starts, draws, sides = np.cumsum(sizes) - sizes, rng.random((2, len(labels))), []
        for own, chance in zip(np.divmod(labels, len(sizes)), draws, strict=True):
            sides.append(halves.images[starts[own] + (chance * sizes[own]).astype(np.int64)])
        pairs = np.concatenate(sides, axis=2)  # [n h 2h c]
        margin = pairs.shape[1] // 2
        return Images(np.pad(pairs, ((0, 0), (margin, margin), (0, 0), (0, 0))), labels)


class DigitPairs(Pairs):
    """Pairs of the digits that ship in this package, 16x16: of a hundred classes 42 is a four left of a two."""

    facts = RESIDENT["digit_pairs"]
    location = DIGITS_FILE

    @functools.cached_property
    def origin(self) -> ResidentSet:
        """The digits."""
        return Digits(DataConfig("digits"))


class FashionPairs(Pairs):
    """Pairs of Fashion-MNIST's images, each halved to 14x14, in 28x28."""

    facts = RESIDENT["fashion_pairs"]
    halved = True

    @functools.cached_property
    def origin(self) -> ResidentSet:
        """Fashion-MNIST, which TFDS prepares."""
        return ResidentTfds(DataConfig("fashion_mnist", data_dir=self.config.data_dir))


class DigitScenes(DrawnSet):
    """One to three digits of the labelled class at drawn places in 32x32, among fragments of digits of other classes.

    Both splits have as many scenes of each class, made of digits of the same split: no digit is in both. Training
    scenes are drawn anew in every epoch, test scenes once. `scenes` gives their boxes, too.
    """

    facts = RESIDENT["digit_scenes"]
    location = DIGITS_FILE
    parts = (*SPLITS, "two_classes")
    """What `scenes` draws."""

    @functools.cached_property
    def digits(self) -> dict[str, Enlarged]:
        """The digits that scenes are made of, by split."""
        return {split: enlarge(Digits(DataConfig("digits")).read(split)) for split in SPLITS}

    def read(self, split: str) -> Images:
        """Draw the test scenes, which are always the same, or the training scenes of seed 0, epoch 0."""
        part = self.scenes(split)
        return Images(part.images, part.labels)

    def draw(self, seed: int, epoch: int) -> Images:
        """Draw the training scenes of an epoch: each a function of (seed, epoch, index), its label of index alone."""
        part = self._of_one_class("train", np.random.default_rng((seed, epoch, 2)))  # order.py takes other words
        return Images(part.images, part.labels)

    def scenes(self, part: str) -> Scenes:
        """Draw scenes with the boxes of their digits: "train" and "test" as `read` does, or "two_classes".

        A scene of two classes has one test digit of each: 22 scenes of each ordered pair, 1,980 in all. They are for
        judging maps alone. Raises `UsageError` for another name.
        """
        if part not in self.parts:
            raise unknown(f"part of {self.facts.name}", part, self.parts)
        if part == "two_classes":
            pairs = np.array([(a, b) for a in range(10) for b in range(10) if a != b], np.int32)
            return draw_scenes(self.digits["test"], pairs.repeat(22, axis=0), np.random.default_rng(2))
        return self._of_one_class(part, np.random.default_rng((0, 0, 2) if part == "train" else 1))

    def _of_one_class(self, split: str, rng: np.random.Generator) -> Scenes:
        labels = np.arange(10, dtype=np.int32).repeat((self.facts.counts[split] or 0) // 10)
        counts = rng.integers(1, 4, (len(labels), 1))
        return draw_scenes(self.digits[split], np.where(np.arange(3) < counts, labels[:, None], NONE), rng)


# 2. Streamed sets


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
    """A directory with a directory for each split, and in it one for each class.

    Where there are only training images, or classes alone, a fifth of each class, evenly spread over the sorted names,
    is the test images.
    """

    def __init__(self, config: DataConfig) -> None:
        """Read the names of splits and classes; `UsageError` for a directory that has none."""
        super().__init__(config)
        given = Path(config.dataset.removeprefix(FOLDER)).expanduser()
        self.location = root = absolute(location(given, IMAGES))
        if not root.is_dir():
            raise UsageError(f"{config.dataset}: there is no directory {root}, or no permission to enter it")
        inside = sorted(directories(root))
        train = next((split for split in TRAIN_NAMES if split in inside), None)
        test = next((split for split in TEST_NAMES if split in inside), None)
        whole = root if train is None and test is None and holds_classes(root) else None
        if train is not None and test is None:
            whole = root / train
        self._whole = whole
        if whole is not None:
            train, test, root = "train", "test", whole.parent
            warnings.warn(f"{whole} has no test images beside it: {TESTED:.0%} of each class are", stacklevel=2)
        if train is None or test is None:
            raise UsageError(
                f"{root} must hold the directories train and {' or '.join(TEST_NAMES)}, each with a directory for "
                f"every class; it holds {', '.join(inside[:10]) or 'none'}"
            )
        names = class_directories(whole or root / train)
        self._root = root
        self.facts = Facts(
            name=config.dataset,
            num_classes=len(names),
            class_names=names,
            source=f"folders in {root}",
            splits=(train, test),
        )

    def open_split(self, name: str) -> Source:
        """List the images of a split; `UsageError` where its classes are not those of the training images."""
        directory = self._root / name
        if self._whole is not None and name in SPLITS:
            every = Folder(self._whole)
            chosen = held_out(every.labels(), TESTED)
            return Part(every, numbers(chosen if name == "test" else ~chosen))
        if not directory.is_dir():
            raise unknown(f"split of {self._root}", name, directories(self._root))
        source = Folder(directory)
        train, here = set(self.facts.class_names), set(source.class_names)
        sides = ((directory, train - here), (self._root / self.facts.splits[0], here - train))
        if lacking := [f"{side} lacks {_first(names)}" for side, names in sides if names]:
            raise UsageError(f"the classes of {directory} are not those of the training images: {'; '.join(lacking)}")
        return source

    def stored_splits(self) -> dict[str, Source]:
        """Open every directory that is taken for a split."""
        if self._whole is not None:
            return {split: self.open_split(split) for split in SPLITS}
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


OWN: dict[str, type[ResidentSet] | type[StreamedSet]] = {
    **dict.fromkeys(RESIDENT, ResidentTfds),
    **{"digits": Digits, "digit_pairs": DigitPairs, "fashion_pairs": FashionPairs, "digit_scenes": DigitScenes},
}
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
