"""The images of a run: one interface, two ways. Small sets are resident on the device; large ones are streamed."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jaxtyping import Int32

from jaxclf.config import AugmentConfig, DataConfig, Loader
from jaxclf.data.kinds import DrawnSet, Images, ResidentSet, StreamedSet
from jaxclf.data.order import Batch, Order, padded_batches
from jaxclf.data.sources import Report
from jaxclf.data.stream import Stream
from jaxclf.devices.layout import Layout, one_device
from jaxclf.errors import UsageError

STREAMED_ONLY = ("resize", "interpolation", "pixels", "on_error")
"""Fields of `DataConfig` that only streamed sets have a use for."""
SPLIT_NAMES = ("train_split", "test_split")
"""Those that only sets of TFDS and folders have a use for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Resident:
    """The images of a data set that fits on the device."""

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: Mapping[str, Images]
    layout: Layout = dataclasses.field(default_factory=one_device)
    drawn: Callable[[int, int], Images] | None = None
    """Draws the training images of (seed, epoch); None: all epochs show those of `splits`."""

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images by split."""
        return {split: len(part.labels) for split, part in self.splits.items()}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        return self.splits["train"].images.shape[1:]

    @functools.cached_property
    def arrays(self) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Images uint8 [m h w c] and labels int32 [m] by split, whole on every device."""
        return {
            split: self.layout.whole((part.images, part.labels), training=split == "train")
            for split, part in self.splits.items()
        }

    def fingerprints(self) -> dict[str, str]:
        """Return by split a hash of the labels; the images' bytes are checked where they are prepared.

        Images that are drawn are prepared nowhere, so theirs are in the hash.
        """
        shown = {split: [part.labels, *([part.images] if self.drawn else [])] for split, part in self.splits.items()}
        return {split: hashlib.sha256(b"".join(map(bytes, arrays))).hexdigest() for split, arrays in shown.items()}

    def train_batches(self, order: Order, start: int, group: int) -> Iterator[Batch]:
        """Yield batches from step `start` to the end of its epoch: rows of the whole split."""
        images, labels = self.arrays["train"]
        if self.drawn is not None:
            part = self.drawn(order.seed, order.place(start)[0])
            images, labels = self.layout.whole((part.images, part.labels), training=True)
        for indices in order.dispatches(start, group):
            yield Batch(images, labels, indices, indices, steps=indices.shape[0], size=indices.shape[1])

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


Data = Resident | Stream
"""The images of a run: both have the same batches, facts and splits, whichever way their images come."""


def evaluated(data: Data) -> str:
    """Return the name of the split that is evaluated after epochs: "validation" where images are held out."""
    return "validation" if "validation" in data.sizes else "test"


def open_data(
    dataset: ResidentSet | StreamedSet,
    augment: AugmentConfig,
    loader: Loader,
    layout: Layout | None = None,
    *,
    report: Report | None = None,
) -> Data:
    """Return the images of a run on its devices (None: one), resident or streamed as the data set is.

    Raises `UsageError` for a set that is missing, for images that the config wants and the set does not have, and for
    fields of the other kind of set.
    """
    if isinstance(dataset, StreamedSet):
        return Stream(dataset, augment, loader, layout, report=report)
    names = STREAMED_ONLY if dataset.divisible else STREAMED_ONLY + SPLIT_NAMES
    given = {name: (getattr(dataset.config, name), getattr(DataConfig(), name)) for name in names}
    faults = [
        f"data.{name} is {value!r} but must be {plain!r}" for name, (value, plain) in given.items() if value != plain
    ]
    if augment.crop != "none":
        faults.append(f"augment.crop is {augment.crop!r} but must be 'none'")
    if faults:
        raise UsageError(f"{'; '.join(faults)} for {dataset.facts.name}, whose images are not streamed")
    return load(dataset, layout)


def load(dataset: ResidentSet, layout: Layout | None = None) -> Resident:
    """Read a resident set. Raises `UsageError` for a missing set and constants of a wrong length."""
    mean, std = dataset.constants
    drawn = dataset.epoch if isinstance(dataset, DrawnSet) else None
    return Resident(dataset.class_names, mean, std, dataset.images(), layout or one_device(), drawn)


def step_augment(config: AugmentConfig) -> AugmentConfig:
    """Return the augmentation that is left for the step: a stream mirrors where it crops."""
    return dataclasses.replace(config, flip=config.flip and config.crop == "none")
