"""What a run reads: one interface, two ways. Small sets are resident on the device; large ones are streamed."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int32
from PIL import Image

from jaxclf.config import AugmentConfig, Config, DataConfig, Loader
from jaxclf.data import datasets, stream
from jaxclf.data.order import Batch, Order, held_out, padded_batches
from jaxclf.data.sources import Report, open_sources
from jaxclf.data.transforms import Preprocessing
from jaxclf.devices.layout import Layout, one_device
from jaxclf.errors import UsageError

STREAMED_ONLY = ("resize", "interpolation", "pixels", "train_split", "test_split", "on_error")
"""Fields of `DataConfig` that say something of streamed sets alone."""


@runtime_checkable
class Data(Protocol):
    """The images of a run."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per label."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the images that a step is given."""
        ...

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of "train", "test" and, where some are held out, "validation"."""
        ...

    def fingerprints(self) -> dict[str, str]:
        """Return by split a hash that changes with which images there are and with their order."""
        ...

    def train_batches(self, order: Order, start: int, group: int) -> Iterator[Batch]:
        """Yield batches from step `start` to the end of its epoch, in dispatches of `group` steps where they fit."""
        ...

    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Yield batches that show every image of a split once; the last one is padded and masked."""
        ...

    def examples(self, split: str, indices: Int32[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 [n h w c], as an evaluation sees them, and labels int32 [n]."""
        ...

    def close(self) -> None:
        """End what reads ahead."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Resident:
    """A data set that fits on the device, as its config asks for it."""

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: datasets.Split
    test: datasets.Split
    validation: datasets.Split | None = None
    layout: Layout = dataclasses.field(default_factory=one_device)

    @property
    def splits(self) -> dict[str, datasets.Split]:
        """The splits by name."""
        carved = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, "test": self.test, **carved}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images by split."""
        return {split: len(part.labels) for split, part in self.splits.items()}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        return self.train.images.shape[1:]

    @functools.cached_property
    def arrays(self) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Images uint8 [m h w c] and labels int32 [m] by split, whole on every device."""
        return {
            split: self.layout.whole((part.images, part.labels), training=split == "train")
            for split, part in self.splits.items()
        }

    def fingerprints(self) -> dict[str, str]:
        """Return by split a hash of the labels; the images' bytes are checked where they are prepared."""
        return {split: hashlib.sha256(part.labels.tobytes()).hexdigest() for split, part in self.splits.items()}

    def train_batches(self, order: Order, start: int, group: int) -> Iterator[Batch]:
        """Yield batches from step `start` to the end of its epoch: rows of the whole split."""
        for indices in order.dispatches(start, group):
            yield Batch(*self.arrays["train"], indices, indices, steps=indices.shape[0], size=indices.shape[1])

    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Yield batches that show every image of a split once: rows of the whole split."""
        for indices, mask in padded_batches(self.sizes[split], batch_size):
            yield Batch(*self.arrays[split], indices, indices, mask, size=batch_size)

    def examples(self, split: str, indices: Int32[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 [n h w c] and labels int32 [n] of some examples."""
        part = self.splits[split]
        return part.images[indices], part.labels[indices]

    def close(self) -> None:
        """Do nothing: nothing reads ahead."""


def evaluated(data: Data) -> str:
    """Return the name of the split that is evaluated after epochs: what is held out, if something is."""
    return "validation" if "validation" in data.sizes else "test"


def open_data(config: Config, loader: Loader, layout: Layout | None = None, *, report: Report | None = None) -> Data:
    """Return the images of a run on its devices (None: one), resident or streamed as the data set is.

    Raises `UsageError` for unknown or missing sets, for what they do not allow, and for fields of the other kind.
    """
    data = config.data
    if datasets.info(data.dataset, data.data_dir).streamed:
        return stream.Stream(data, config.augment, loader, layout, report=report)
    plain, given = DataConfig(), [name for name in STREAMED_ONLY if getattr(data, name) != getattr(DataConfig(), name)]
    faults = [f"data.{name} is {getattr(data, name)!r} but must be {getattr(plain, name)!r}" for name in given]
    if config.augment.crop != "none":
        faults.append(f"augment.crop is {config.augment.crop!r} but must be 'none'")
    if faults:
        raise UsageError(f"{'; '.join(faults)} for {data.dataset}, whose images are not streamed")
    return load(data, layout)


def load(config: DataConfig, layout: Layout | None = None) -> Resident:
    """Read both splits of a resident set. Raises `UsageError` for missing sets and constants of a wrong length."""
    info, (mean, std) = datasets.info(config.dataset), constants(config)
    splits = [
        datasets.load(config.dataset, split, data_dir=config.data_dir, classes=config.classes)
        for split in ("train", "test")
    ]
    if config.image_size is not None:
        splits = [dataclasses.replace(split, images=resize(split.images, config.image_size)) for split in splits]
    train, test, validation = *splits, None
    if config.validation:
        chosen = held_out(train.labels, config.validation)
        train, validation = (datasets.Split(train.images[which], train.labels[which]) for which in (~chosen, chosen))
    names = info.class_names[: config.classes]
    return Resident(names, mean, std, train, test, validation, layout or one_device())


def constants(config: DataConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return normalisation mean and std per channel, the config's or its data set's own; `UsageError` if wrong."""
    info = datasets.info(config.dataset, config.data_dir)
    mean, std = config.mean or info.mean, config.std or info.std
    channels = info.image_shape[-1] if info.image_shape else info.channels
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise UsageError(
            f"data.mean {mean} and data.std {std} must have {channels} numbers each for {config.dataset}, std above 0"
        )
    return mean, std


def image_shape(config: DataConfig) -> tuple[int, int, int]:
    """Return (h, w, c) of the images that a step is given; `UsageError` where only `data.image_size` could say it."""
    return stream.image_shape(config, datasets.info(config.dataset, config.data_dir))


def train_examples(config: DataConfig) -> int:
    """Return the number of training images of all classes, before any are held out; may have to open the set."""
    known = datasets.info(config.dataset, config.data_dir).train_examples
    if known is not None and config.train_split is None:
        return known
    return len(open_sources(dataclasses.replace(config, classes=None, validation=0.0))["train"])


def step_augment(config: Config) -> AugmentConfig:
    """Return what is left for the step to augment: a stream mirrors where it crops."""
    return dataclasses.replace(config.augment, flip=config.augment.flip and config.augment.crop == "none")


def preprocessing(config: DataConfig) -> Preprocessing:
    """Return what brings an image file to the test images that a run of this config was evaluated on."""
    mean, std = constants(config)
    size = image_shape(config)[0]
    short_side = stream.resize_side(config) if datasets.info(config.dataset, config.data_dir).streamed else size
    return Preprocessing(short_side, size, None, config.interpolation, mean, std)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 images [n h w c] to [n size size c] as torchvision's Resize does on PIL images (bilinear)."""
    planes = np.moveaxis(images, 3, 1).reshape(-1, *images.shape[1:3])
    small = [np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR)) for plane in planes]
    return np.moveaxis(np.stack(small).reshape(len(images), images.shape[3], size, size), 1, 3)
