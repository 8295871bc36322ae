"""Kinds of data sets: what every one of them answers, those in memory, and those that are read while a run goes on."""

import abc
import dataclasses
import warnings

import numpy as np
from jaxtyping import Bool, Float64, Int32, UInt8

from jaxclf.config import DataConfig
from jaxclf.data.facts import SPLITS, Facts
from jaxclf.data.order import held_out
from jaxclf.data.sources import UNREADABLE, Part, Report, Source
from jaxclf.data.transforms import Preprocessing, pil_filter, resize_images, resize_side
from jaxclf.errors import UsageError
from jaxclf.storage import Location


class Dataset(abc.ABC):
    """The data set of a config: facts at once, images when they are asked for."""

    facts: Facts
    """Facts of the whole set, whatever the config keeps of it."""
    location: Location | None = None
    """Place of a set that needs no preparation."""

    def __init__(self, config: DataConfig) -> None:
        """Keep the config; sets whose facts have to be read read them here."""
        self.config = config

    @property
    def origin(self) -> "Dataset":
        """The data set whose files hold the images: this one, unless it makes its images of another's."""
        return self

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
        """Steps from an image file to a test image of a run of this config; `UsageError` unless these are square."""
        size, width, _ = self.image_shape
        if size != width:
            raise UsageError(
                f"images of {self.facts.name} are {size}x{width}; only square ones are prepared from files"
            )
        short_side = resize_side(self.config) if self.facts.streamed else size
        return Preprocessing(short_side, size, None, pil_filter(self.config), *self.constants)

    @property
    def split_names(self) -> tuple[str, str]:
        """Names of the training and the test images: the config's, or else the set's own."""
        train, test = self.facts.splits
        return self.config.train_split or train, self.config.test_split or test

    @abc.abstractmethod
    def train_examples(self) -> int:
        """Return the number of training images of all classes, before any are held out; may have to open the set."""


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

    divisible = False
    """Whether `read` takes parts of its splits, too, so that a config may name them (`data.train_split`)."""

    @abc.abstractmethod
    def read(self, split: str) -> Images:
        """Read "train" or "test" whole, in the stored order, which is the same on every call."""

    def images(self) -> dict[str, Images]:
        """Read "train" and "test", and with `data.validation` "validation", as the config limits and resizes them."""
        named = zip(SPLITS, self.split_names, strict=True)
        splits = {split: self.limited(self.read(name)) for split, name in named}
        if self.config.validation:
            train = splits["train"]
            chosen = held_out(train.labels, self.config.validation)
            splits |= {"train": train.where(~chosen), "validation": train.where(chosen)}
        return splits

    def limited(self, part: Images) -> Images:
        """Return the images of the classes that the config keeps, in its size."""
        if (classes := self.config.classes) is not None:
            part = part.where(part.labels < classes)
        side = self.config.image_size
        return part if side is None else Images(resize_images(part.images, side), part.labels)

    def train_examples(self) -> int:
        """Return the number of training images, which the facts have or reading tells."""
        known = None if self.config.train_split else self.facts.train_examples
        return known or self.count(self.split_names[0])

    def count(self, split: str) -> int:
        """Return the number of images of a split, as `read` takes it."""
        return len(self.read(split).labels)


class DrawnSet(ResidentSet):
    """A resident set whose training images are drawn anew in every epoch; `read` gives those of seed 0, epoch 0."""

    @abc.abstractmethod
    def draw(self, seed: int, epoch: int) -> Images:
        """Draw the training images of an epoch: each a function of (seed, epoch, index), its label of index alone."""

    def epoch(self, seed: int, epoch: int) -> Images:
        """Draw the training images of an epoch, as the config limits and resizes them."""
        return self.limited(self.draw(seed, epoch))

    def images(self) -> dict[str, Images]:
        """Read "train" and "test"; `UsageError` for `data.validation`: nothing of a later draw would be held out."""
        if self.config.validation:
            raise UsageError(
                f"data.validation is {self.config.validation} but must be 0 for {self.facts.name}, whose training "
                "images are drawn anew in every epoch"
            )
        return super().images()


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
        opened = {split: self.open_split(name) for split, name in zip(SPLITS, self.split_names, strict=True)}
        if self.num_classes < self.facts.num_classes:
            opened = {split: self._first_classes(source, report) for split, source in opened.items()}
        if self.config.validation:
            train = opened["train"]
            chosen = held_out(train.labels(report), self.config.validation)
            opened |= {"train": Part(train, numbers(~chosen)), "validation": Part(train, numbers(chosen))}
        if empty := [split for split, source in opened.items() if not len(source)]:
            raise UsageError(f"{self.config.dataset} has no images for {', '.join(empty)}")
        return opened

    def train_examples(self) -> int:
        """Return the number of training images, which the facts have or the open split."""
        known = None if self.config.train_split else self.facts.train_examples
        return known or len(self.open_split(self.split_names[0]))

    def _first_classes(self, source: Source, report: Report | None) -> Source:
        labels = source.labels(report)
        if (broken := numbers(labels == UNREADABLE)).size:
            text = f"{len(broken)} records cannot be read, the first of them {source.name(int(broken[0]))}"
            if self.config.on_error == "raise":
                raise UsageError(f"{text}; `jaxclf data verify {self.config.dataset}` names them all")
            warnings.warn(f"{text}; they are in no class and left out", stacklevel=2)
        return Part(source, numbers((labels >= 0) & (labels < self.num_classes)))


def numbers(chosen: Bool[np.ndarray, " n"]) -> Int32[np.ndarray, " m"]:
    """Return where `chosen` holds."""
    return np.flatnonzero(chosen).astype(np.int32)
