"""Which examples, in which order, in which batches: pure functions of seed, epoch and sizes."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from jaxclf.errors import UsageError


class Fault(NamedTuple):
    """An example that could not be read and was left out."""

    index: int
    """Its number in the split."""
    name: str
    error: str


class Batch(NamedTuple):
    """Input of a compiled step: some rows of a resident split, or streamed images as they are."""

    images: Any
    """uint8 [m h w c], on the devices."""
    labels: Any
    """int32 [m]."""
    rows: Any
    """Numbers of the images, int32 [s b] in training (s steps), [b] in evaluation; None: all, and one step."""
    examples: Any
    """int32, as `rows`, or [m] without: their numbers in the split, which augmentation draws from."""
    mask: Any = None
    """Rows that count, bool [b] in evaluation."""
    faults: tuple[Fault, ...] = ()
    """Examples that this process left out on the way."""
    steps: int = 1
    """Number of training steps."""
    size: int = 0
    """Number of images in each step, over all processes."""


@dataclasses.dataclass(frozen=True)
class Order:
    """The batches of a run, by step. Epochs past its last one exist too: recalibration takes its batches there."""

    seed: int
    examples: int
    batch_size: int
    drop_last: bool

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return steps_per_epoch(self.examples, self.batch_size, self.drop_last)

    def place(self, step: int) -> tuple[int, int]:
        """Return a step's epoch, and its place in the epoch."""
        return divmod(step, self.steps_per_epoch)

    def indices(self, step: int) -> Int32[np.ndarray, " b"]:
        """Return the examples of a step's batch; the last one of an epoch may be smaller."""
        epoch, place = self.place(step)
        return self._epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def dispatches(self, start: int, group: int) -> Iterator[Int32[np.ndarray, "s b"]]:
        """Yield the batches from step `start` to the end of its epoch: s = `group` steps at a time, then single ones.

        The grouping hangs on the position in the epoch only: a resumed run calls the same compiled programs on the same
        batches, which is what makes it end with the same bits.
        """
        epoch, place = self.place(start)
        order, full = self._epoch(epoch), self.examples // self.batch_size
        while place < self.steps_per_epoch:
            size = group if place % group == 0 and place + group <= full else 1
            yield order[place * self.batch_size : (place + size) * self.batch_size].reshape(size, -1)
            place += size

    def _epoch(self, epoch: int) -> Int32[np.ndarray, " n"]:
        return _cached_order(self.seed, epoch, self.examples)


def steps_per_epoch(examples: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches in an epoch (torch DataLoader's length)."""
    return examples // batch_size if drop_last else math.ceil(examples / batch_size)


def epoch_order(seed: int, epoch: int, examples: int) -> Int32[np.ndarray, " n"]:
    """Return the epoch's permutation of the training examples: a function of (seed, epoch) alone."""
    return np.random.default_rng((seed, epoch)).permutation(examples).astype(np.int32)


@functools.lru_cache(maxsize=2)  # a stream reads ahead into the next epoch
def _cached_order(seed: int, epoch: int, examples: int) -> Int32[np.ndarray, " n"]:
    order = epoch_order(seed, epoch, examples)
    order.setflags(write=False)
    return order


def reseeded(seed: int, number: int) -> int:
    """Return the seed of a run that has gone back `number` times after divergence: its own for 0.

    >>> reseeded(7, 0), reseeded(7, 1)
    (7, 369571992)
    """
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0]) if number else seed


def example_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator of one example's transform: a function of (seed, epoch, index) alone.

    numpy's seeds (a, b) and (a, b, 0) are the same; the last word keeps examples apart from `epoch_order`.
    """
    return np.random.default_rng((seed, epoch, index, 1))


def padded_batches(examples: int, batch_size: int) -> Iterator[tuple[Int32[np.ndarray, " b"], Bool[np.ndarray, " b"]]]:
    """Yield (indices, mask) that show every example once; the last batch is padded with index 0."""
    for start in range(0, examples, batch_size):
        yield padded_batch(start, examples, batch_size)


def padded_batch(start: int, examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices from `start` on, int32 [b], and which of them exist, bool [b]; the others are 0."""
    indices = np.arange(start, start + batch_size, dtype=np.int32)
    mask = indices < examples
    return np.where(mask, indices, 0), mask


def shard(batch: int, rank: int, hosts: int) -> slice:
    """Return which rows of a batch host `rank` of `hosts` reads: a contiguous part, sizes differing by one at most.

    >>> [shard(10, rank, 4) for rank in range(4)]
    [slice(0, 2, None), slice(2, 5, None), slice(5, 7, None), slice(7, 10, None)]
    """
    return slice(batch * rank // hosts, batch * (rank + 1) // hosts)


def held_out(labels: Int32[np.ndarray, " n"], share: float) -> Bool[np.ndarray, " n"]:
    """Return which examples are held out: `share` of every class, rounded down, evenly spread.

    A function of the stored order alone, so every seed and every later run holds out the same images. A class of
    which nothing is held out raises `UsageError`.
    """
    chosen = np.zeros(len(labels), bool)
    for label in range(labels.max() + 1):
        own = np.flatnonzero(labels == label)
        passed = np.floor(np.arange(len(own) + 1) * share)
        chosen[own[passed[1:] > passed[:-1]]] = True
        if not chosen[own].any():
            raise UsageError(f"holding out {share} of each class leaves no image of class {label} ({len(own)} images)")
    return chosen
