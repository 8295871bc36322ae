"""The accuracy of weights that slide over whole images at several sizes: multi-scale dense evaluation.

Simonyan & Zisserman 2014, sections 3.2 and 4.2: logits averaged over the windows of an image, their softmax over the
sizes and the mirrored images. OverFeat (Sermanet et al. 2013, section 3.3): each class's largest score among the
windows instead of the mean, its windows set closer than the network's stride by shift and stitch, averaged likewise.
"""

import collections
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8
from PIL import Image

from jaxclf.config import DataConfig
from jaxclf.data.decoding import to_array
from jaxclf.data.sources import Report
from jaxclf.data.transforms import resize, standardise
from jaxclf.errors import UsageError, unknown
from jaxclf.models.dense import SlidingClassifier, convolutionise, count_shifts, stitch
from jaxclf.tools.accuracy import Accuracy, open_split, padded, score, total
from jaxclf.training.weights import Weights

BATCH = 8
"""Images in one compiled call: few, as images of each shape wait for one another, and the last ones are padded."""
MANY = 32
"""Shapes of images, and programs to compile, that a warning tells of."""
WINDOWS: Mapping[str, Callable[..., Any]] = {"mean": np.mean, "max": np.max}
"""What stands for the windows of an image: the mean of each class's logits, or the largest."""

Sized = tuple[UInt8[np.ndarray, "_ _ c"], ...]
"""An image at every size."""
Batch = tuple[list[UInt8[np.ndarray, "b _ _ c"]], Int32[np.ndarray, " n"]]
"""b = `BATCH` images, of one shape, at every size; the labels of the first n of them."""


class DenseAccuracy(NamedTuple):
    """What `dense_accuracy` found, and what it did."""

    accuracy: Accuracy
    sizes: tuple[int, ...]
    """Short sides of the images, pixels."""
    side: int
    """Side of a window, pixels."""
    step: int
    """Pixels from one window to the next."""
    shapes: int
    """Different shapes of the images at all sizes."""


def dense_accuracy(
    weights: Weights,
    data: DataConfig,
    *,
    sizes: Sequence[int] = (),
    step: int | None = None,
    windows: str = "mean",
    mirrored: bool = False,
    split: str = "test",
    report: Report | None = None,
) -> DenseAccuracy:
    """Evaluate weights on whole images of a split, at each of `sizes`.

    A window has the side of the crop that the weights are for. The short side of an image is resized to each size
    (none given: the side of a window), with the filter, mean and std of the weights' preprocessing, and nothing is
    cropped but what no window covers: less than the network's stride along each axis, half of it at either end. Images
    therefore have few shapes, each of which is compiled once. Windows are `step` pixels apart: the stride (None), or a
    part of it, by shift and stitch. `windows` is a name of `WINDOWS`. `mirrored` asks for each image's mirror image as
    well. Probabilities are averaged over sizes and mirror images.

    Raises `UsageError` where `accuracy` does, for networks that cannot slide, sizes smaller than a window, steps that
    do not divide the stride, and unknown `windows`. Warns of more than `MANY` shapes.
    """
    if windows not in WINDOWS:
        raise unknown("windows", windows, WINDOWS)
    dataset, inputs = open_split(weights, data, split, report)
    preprocessing = inputs.preprocessing
    model = convolutionise(weights.model, preprocessing.crop)
    sizes, step = _check_sizes(model, sizes), model.stride if step is None else step
    count_shifts(model, step)
    examples = inputs.examples(
        split, f"evaluating {split}", lambda image: _at_sizes(image, sizes, model, preprocessing.interpolation)
    )
    shapes: set[tuple[int, ...]] = set()
    variables = jax.device_put(weights.variables)

    def answer(images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n k"]:
        found = stitch(model, variables, standardise(images, preprocessing), step=step)
        return WINDOWS[windows](found, (1, 2))

    def views(batch: Sequence[UInt8[np.ndarray, "n _ _ c"]]) -> list[UInt8[np.ndarray, "n _ _ c"]]:
        return [*batch, *(images[:, :, ::-1] for images in batch)] if mirrored else [*batch]

    add = jax.jit(score_of_views)
    answers = (
        (labels, *add(np.stack([answer(images) for images in views(batch)]), *padded(labels, BATCH)))
        for batch, labels in _noted(_batches(examples), shapes)
    )
    found = total(answers, dataset, preprocessing)
    return DenseAccuracy(found, sizes, model.side, step, len(shapes))


def score_of_views(
    logits: Float[Array, "s n k"], labels: Int[Array, " n"], mask: Bool[Array, " n"]
) -> tuple[dict[str, Array], Int[Array, " n"]]:
    """Return `score` of the logarithms of the class probabilities' means over s views: sizes, and mirror images."""
    each = jax.nn.log_softmax(logits, axis=-1)
    return score(jax.nn.logsumexp(each, axis=0) - math.log(len(logits)), labels, mask)


def whole_windows(pixels: UInt8[np.ndarray, "h w c"], side: int, stride: int) -> UInt8[np.ndarray, "i j c"]:
    """Return the centre of an image that windows of `side` pixels, `stride` apart, cover.

    >>> whole_windows(np.zeros((256, 341, 3), np.uint8), 224, 32).shape
    (256, 320, 3)
    """
    kept = [length - (length - side) % stride for length in pixels.shape[:2]]
    top, left = ((length - rest) // 2 for length, rest in zip(pixels.shape[:2], kept, strict=True))
    return pixels[top : top + kept[0], left : left + kept[1]]


def _check_sizes(model: SlidingClassifier, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes, or that of a window where none is given; raise `UsageError` for those that hold no window."""
    if small := [str(size) for size in sizes if size < model.side]:
        raise UsageError(f"sizes has {', '.join(small)} but must be {model.side}, the side of a window, or larger")
    return tuple(sizes) or (model.side,)


def _at_sizes(image: Image.Image, sizes: Sequence[int], model: SlidingClassifier, interpolation: str) -> Sized:
    """Return an image at every size, as bytes: thousands wait while others are evaluated."""
    resized = (to_array(resize(image, size, interpolation)) for size in sizes)
    return tuple(whole_windows(pixels, model.side, model.stride) for pixels in resized)


def _batches(examples: Iterable[tuple[Sized, int]]) -> Iterator[Batch]:
    """Yield batches of images of the same shapes; zeros follow the last images of such."""
    waiting: dict[tuple[tuple[int, ...], ...], list[tuple[Sized, int]]] = collections.defaultdict(list)
    for images, label in examples:
        alike = tuple(one.shape for one in images)
        waiting[alike].append((images, label))
        if len(waiting[alike]) == BATCH:
            yield _batch(waiting.pop(alike))
    yield from map(_batch, waiting.values())


def _batch(group: Sequence[tuple[Sized, int]]) -> Batch:
    images, labels = zip(*group, strict=True)
    missing = BATCH - len(group)
    stacked = [np.pad(np.stack(same), [(0, missing), *[(0, 0)] * 3]) for same in zip(*images, strict=True)]
    return stacked, np.array(labels, np.int32)


def _noted(batches: Iterable[Batch], shapes: set[tuple[int, ...]]) -> Iterator[Batch]:
    """Hand batches on, add their shapes to `shapes`, and warn once that there are many."""
    for images, labels in batches:
        before = len(shapes)
        shapes |= {one.shape for one in images}
        if before <= MANY < len(shapes):
            warnings.warn(f"the images have more than {MANY} shapes, and each takes a compilation", stacklevel=2)
        yield images, labels
