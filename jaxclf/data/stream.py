"""Sets too large for the device: images are read, decoded and cropped while the device works on earlier ones.

The content of a batch is a function of its number (order.py), so a stream can start anywhere, and neither threads nor
processes nor hosts change a pixel. grain runs the function ahead of its use; JAX copies the bytes ahead of the step.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from jaxclf.config import AugmentConfig, DataConfig, Loader
from jaxclf.data.fast_transforms import FastRandomResizedCrop, FastResizeCenterCrop
from jaxclf.data.kinds import StreamedSet
from jaxclf.data.order import Batch, Fault, Order, example_rng, padded_batch, shard
from jaxclf.data.reading import Reading
from jaxclf.data.sources import Report, Source
from jaxclf.data.transforms import RandomResizedCrop, ResizeCenterCrop, pil_filter, resize_side
from jaxclf.devices.layout import Layout, one_device
from jaxclf.errors import RunError, UsageError, one_line

Transform = Callable[[bytes, np.random.Generator], UInt8[np.ndarray, "h w c"]]

PART = 32
"""Most images in one task: small enough that many readers share a batch, large enough that a task's cost is theirs."""
TRIES = 100
"""With data.on_error "skip": images in a row that may be broken before the run stops."""
NOTHING_DRAWN = np.random.default_rng(0)
"""Given to transforms that draw nothing."""
ON_DEVICE = 2
"""Batches that are on the device or on their way while a step runs on an earlier one."""


class ReadError(RunError):
    """An image that cannot be read, by name."""


class Loaded(NamedTuple):
    """A part of a batch, or after `join` one host's whole of it."""

    images: UInt8[np.ndarray, "b h w c"]
    labels: Int32[np.ndarray, " b"]
    examples: Int32[np.ndarray, " b"]
    mask: Bool[np.ndarray, " b"]
    faults: tuple[Fault, ...]


def join(parts: list[Loaded]) -> Loaded:
    """Put the parts of a batch together."""
    if len(parts) == 1:
        return parts[0]
    arrays = [np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[:4]]
    return Loaded(*arrays, faults=tuple(itertools.chain.from_iterable(part.faults for part in parts)))


@dataclasses.dataclass(frozen=True)
class Task:
    """Loads part `number % parts` of batch `number // parts`: the function that a reading runs ahead."""

    source: Source
    transform: Transform
    image_shape: tuple[int, int, int]
    """(h, w, c) of a transformed image."""
    num_classes: int
    on_error: str
    """`data.on_error`."""
    order: Order | None
    """Order of training batches; None: evaluation batches, over and over."""
    batch_size: int
    parts: int
    """Tasks that make up a batch."""
    rank: int
    """Place of this process among the hosts that share each batch."""
    hosts: int
    devices: int
    """Number of devices of all processes; a batch that they do not divide is read whole by each process."""

    def __call__(self, number: int) -> Loaded:
        """Read a part of a batch."""
        batch, part = divmod(number, self.parts)
        if self.order is not None:
            indices, epoch = self.order.indices(batch), self.order.place(batch)[0]
            mask = np.ones(len(indices), bool)
        else:
            batches, epoch = -(-len(self.source) // self.batch_size), 0
            indices, mask = padded_batch(batch % batches * self.batch_size, len(self.source), self.batch_size)
        shared = (self.rank, self.hosts) if len(indices) % self.devices == 0 else (0, 1)
        for place, of in (shared, (part, self.parts)):
            own = shard(len(indices), place, of)
            indices, mask = indices[own], mask[own]
        return self.load(indices, mask, epoch)

    def load(
        self, indices: Int32[np.ndarray, " b"], mask: Bool[np.ndarray, " b"] | None = None, epoch: int = 0
    ) -> Loaded:
        """Read the examples where `mask` holds, all without one; images that are not read are 0.

        With data.on_error "skip", a broken training image is replaced by the next in the stored order that can be read,
        so that batches keep their size, and a broken evaluation image leaves the mask. Raises `ReadError`.
        """
        mask = np.ones(len(indices), bool) if mask is None else mask.copy()
        images = np.zeros((len(indices), *self.image_shape), np.uint8)
        labels, examples, faults = np.zeros(len(indices), np.int32), indices.copy(), []
        for row in np.flatnonzero(mask):
            for tried in range(1 if self.order is None else TRIES):
                index = int(indices[row] + tried) % len(self.source)
                try:
                    images[row], labels[row] = self._read(index, epoch)
                    examples[row] = index
                    break
                except Exception as error:  # decoders and readers raise many types for broken bytes
                    faults.append(self._fault(index, error))
            else:
                mask[row] = False
        if self.order is not None and not mask.all():
            raise ReadError(f"{TRIES} images in a row cannot be read, the first of them {faults[0].name}")
        return Loaded(images, labels, examples, mask, tuple(faults))

    def _read(self, index: int, epoch: int) -> tuple[np.ndarray, int]:
        encoded = self.source[index]
        draws = isinstance(self.transform, RandomResizedCrop)  # a generator costs a tenth of a tiny image
        rng = example_rng(self.order.seed if self.order else 0, epoch, index) if draws else NOTHING_DRAWN
        try:
            image = self.transform(encoded.data, rng)
        except Exception as error:
            raise ReadError(f"{encoded.name} cannot be read ({one_line(error)})") from error
        if not 0 <= encoded.label < self.num_classes:
            raise ReadError(f"{encoded.name} has the label {encoded.label} but must have 0 to {self.num_classes - 1}")
        return image, encoded.label

    def _fault(self, index: int, error: Exception) -> Fault:
        """Return the fault of an example that is skipped, or raise it."""
        name = self.source.name(index)
        text = str(error) if isinstance(error, ReadError) else f"{name} cannot be read ({one_line(error)})"
        if self.on_error == "raise":
            raise ReadError(text) from error
        return Fault(index, name, text)


def to_device(batches: Iterable[Batch], layout: Layout, *, training: bool = False) -> Iterator[Batch]:
    """Copy arrays to the devices ahead: while a step runs, `ON_DEVICE` later batches are there or on the way.

    Copies and steps are asynchronous, so waiting for the next batch here is waiting beside the device, not before it.
    """
    ready: collections.deque[Batch] = collections.deque()
    names = ("images", "labels", "examples") if training else ("images", "labels", "mask")
    for batch in batches:
        arrays = layout.rows({name: getattr(batch, name) for name in names}, batch.size, training=training)
        ready.append(batch._replace(**arrays))
        if len(ready) > ON_DEVICE:
            yield ready.popleft()
    yield from ready


class Feed:
    """The batches of one task, from batch `start` on."""

    def __init__(self, task: Task, start: int, loader: Loader, layout: Layout) -> None:
        """Prepare to read; nothing starts before the first batch is asked for."""
        self.task, self._layout = task, layout
        self.position: int | None = start
        """Number of the next batch; None while batches are taken, and after a taker has left early."""
        self._reading = Reading(task, start * task.parts, loader, ahead=ON_DEVICE * task.parts)

    def take(self, count: int) -> Iterator[Batch]:
        """Yield the next `count` batches, on the device; the reading goes on behind them."""
        start, self.position = self.position, None
        assert start is not None
        batches = (self._next(number) for number in range(start, start + count))
        yield from to_device(batches, self._layout, training=self.task.order is not None)
        self.position = start + count

    def _next(self, number: int) -> Batch:
        loaded, order = join(list(itertools.islice(self._reading, self.task.parts))), self.task.order
        size = self.task.batch_size if order is None else len(order.indices(number))
        return Batch(loaded.images, loaded.labels, None, loaded.examples, loaded.mask, loaded.faults, size=size)

    def close(self) -> None:
        """Stop reading."""
        self._reading.close()


class Stream:
    """The images of a streamed data set. Nothing is read before the first batch is asked for."""

    def __init__(
        self,
        dataset: StreamedSet,
        augment: AugmentConfig,
        loader: Loader,
        layout: Layout | None = None,
        *,
        report: Report | None = None,
    ) -> None:
        """Open the set for one process of the layout (None: alone), which reads its own part of every batch.

        Raises what `StreamedSet.sources` raises, and `UsageError` for a `data.image_size` that is None.
        """
        data = dataset.config
        self.channels: Literal[1, 3] = dataset.facts.decoded
        self.class_names, self.image_shape = dataset.class_names, dataset.image_shape
        self.mean, self.std = dataset.constants
        self._transforms = {
            "train": training_transform(data, augment, self.channels),
            "test": test_transform(data, self.channels),
        }
        self._on_error, self._loader, self._layout = data.on_error, loader, layout or one_device()
        self.sources = dataset.sources(report)
        self._feeds: dict[str, Feed] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images by split."""
        return {split: len(source) for split, source in self.sources.items()}

    def fingerprints(self) -> dict[str, str]:
        """Return by split a hash of the images and their order."""
        return {split: source.fingerprint() for split, source in self.sources.items()}

    def train_batches(self, order: Order, start: int, group: int) -> Iterator[Batch]:
        """Yield batches from step `start` to the end of its epoch, one step each (`group` must be 1)."""
        if group != 1:
            raise UsageError(f"run.steps_per_dispatch is {group} but must be None or 1 for a streamed data set")
        task = self.task("train", order.batch_size, order)
        yield from self._feed("train", task, start).take(order.steps_per_epoch - order.place(start)[1])

    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Yield batches that show every image of a split once; the last one is padded and masked."""
        batches = -(-len(self.sources[split]) // batch_size)
        feed = self._feeds.get(split)
        start = 0 if feed is None or feed.position is None or feed.position % batches else feed.position
        yield from self._feed(split, self.task(split, batch_size), start).take(batches)

    def examples(self, split: str, indices: Int32[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 [n h w c], as an evaluation sees them, and labels int32 [n]."""
        loaded = self.task(split, 1).load(indices)
        return loaded.images, loaded.labels

    def task(self, split: str, batch_size: int, order: Order | None = None) -> Task:
        """Return the function behind a split's batches: of training batches in an order, or of evaluation batches."""
        return Task(
            source=self.sources[split],
            transform=self._transforms["train" if order else "test"],
            image_shape=self.image_shape,
            num_classes=len(self.class_names),
            on_error=self._on_error,
            order=order,
            batch_size=batch_size,
            parts=max(1, -(-batch_size // (self._layout.hosts * PART))),
            rank=self._layout.rank,
            hosts=self._layout.hosts,
            devices=self._layout.devices,
        )

    def _feed(self, split: str, task: Task, start: int) -> Feed:
        """Return the feed that stands at `start` of the same task, or a new one in the place of the old."""
        feed = self._feeds.get(split)
        if feed is None or (feed.position, feed.task) != (start, task):
            if feed is not None:
                feed.close()
            feed = self._feeds[split] = Feed(task, start, self._loader, self._layout)
        return feed

    def close(self) -> None:
        """Stop reading; no thread and no process is left."""
        while self._feeds:
            self._feeds.popitem()[1].close()


def training_transform(data: DataConfig, augment: AugmentConfig, channels: Literal[1, 3]) -> Transform:
    """Return the transform from a file to a training image: it draws the mirror too where it draws the crop."""
    if augment.crop == "none":
        return test_transform(data, channels)
    assert data.image_size is not None
    return (RandomResizedCrop if data.pixels == "exact" else FastRandomResizedCrop)(
        data.image_size,
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
        flip=augment.flip,
        interpolation=pil_filter(data),
        channels=channels,
    )


def test_transform(data: DataConfig, channels: Literal[1, 3]) -> Transform:
    """Return the transform from a file to a test image."""
    assert data.image_size is not None
    return (ResizeCenterCrop if data.pixels == "exact" else FastResizeCenterCrop)(
        resize=resize_side(data), size=data.image_size, interpolation=pil_filter(data), channels=channels
    )
