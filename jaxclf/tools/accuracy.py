"""The accuracy of weights on a data set, as torchvision's --test-only and timm's validate.py measure it."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.config import DataConfig
from jaxclf.data.datasets import resolve
from jaxclf.data.decoding import decode
from jaxclf.data.kinds import ResidentSet, StreamedSet
from jaxclf.data.sources import Report
from jaxclf.data.transforms import Preprocessing, preprocess, to_image
from jaxclf.errors import UsageError, one_line
from jaxclf.tools.inspection import in_threads
from jaxclf.training.losses import means, metric_sums, zeros
from jaxclf.training.run_directory import per_class
from jaxclf.training.weights import Weights

BATCH = 64
"""Images in one compiled call."""


class Accuracy(NamedTuple):
    """Accuracies in percent of a split's images, each counted once."""

    top1: float
    top5: float
    loss: float
    """Mean cross-entropy in nats."""
    per_class: tuple[float | None, ...]
    """Top-1 of each class; None for one without images."""
    images: int
    preprocessing: Preprocessing
    """Steps from an image file to the network's input: those kept with the weights, or else the data set's."""


def accuracy(weights: Weights, data: DataConfig, *, split: str = "test", report: Report | None = None) -> Accuracy:
    """Evaluate weights on a split of a data set: "train", "test", or "validation" of `data.validation`.

    Raises `UsageError` for a set that is not there, of another number of classes or channels, or without that split,
    for images that cannot be read, and for answers that are not finite.
    """
    dataset, record = resolve(data), weights.record
    if record.num_classes != dataset.num_classes:
        raise UsageError(f"the weights know {record.num_classes} classes, but {data.dataset} has {dataset.num_classes}")
    names = record.class_names or dataset.class_names
    if names != dataset.class_names and set(names) == set(dataset.class_names):
        raise UsageError(f"the classes of {data.dataset} are those of the weights in another order")
    preprocessing = record.preprocessing or dataset.preprocessing
    prepared = ("image_size", "resize", "interpolation", "mean", "std")
    if record.preprocessing and (odd := [f"data.{name}" for name in prepared if getattr(data, name) is not None]):
        raise UsageError(f"{', '.join(odd)} given, but the weights say how images are prepared: {preprocessing}")
    channels = dataset.facts.image_shape[2]
    if len(preprocessing.mean) != channels:
        raise UsageError(
            f"the weights take images of {len(preprocessing.mean)} channels, but {data.dataset} has {channels}"
        )
    step = jax.jit(functools.partial(_answers, weights.model))
    sums: dict[str, Any] = dict.fromkeys(zeros(), 0)
    labels, predictions = [], []
    for images, own in _batches(_examples(dataset, preprocessing, split, report)):
        padded = np.zeros((BATCH - len(own), *images.shape[1:]), np.float32)
        mask = np.arange(BATCH) < len(own)
        part, answers = step(
            weights.variables, np.concatenate([images, padded]), np.pad(own, (0, BATCH - len(own))), mask
        )
        sums = {name: sums[name] + part[name].item() for name in sums}
        labels.append(own)
        predictions.append(np.asarray(answers)[: len(own)])
    found = means(sums)
    if not np.isfinite(found["loss"]):
        raise UsageError(f"the loss of the weights on {data.dataset} is {found['loss']}")
    shares = per_class(np.concatenate(labels), np.concatenate(predictions), dataset.num_classes)
    return Accuracy(**found, per_class=shares, images=sums["count"], preprocessing=preprocessing)


def _answers(model: Any, variables: Any, images: jax.Array, labels: jax.Array, mask: jax.Array) -> Any:
    logits = model.apply(variables, images)
    return metric_sums(logits, labels, mask), logits.argmax(-1).astype(jnp.int32)


def _examples(
    dataset: ResidentSet | StreamedSet, preprocessing: Preprocessing, split: str, report: Report | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield inputs [h w c] and labels of a split, in order."""
    splits = dataset.sources(report) if isinstance(dataset, StreamedSet) else dataset.images()
    if split not in splits:
        raise UsageError(f"there is no split {split!r}; there: {', '.join(splits)}")
    chosen: Any = splits[split]
    if isinstance(dataset, ResidentSet):
        for pixels, label in zip(chosen.images, chosen.labels, strict=True):
            yield preprocess(to_image(pixels), preprocessing), int(label)
        return

    def read(index: int) -> tuple[np.ndarray, int]:
        try:
            encoded = chosen[index]
            return preprocess(to_image(decode(encoded.data, len(preprocessing.mean))), preprocessing), encoded.label
        except Exception as error:  # whatever readers and decoders raise for broken bytes
            raise UsageError(f"{chosen.name(index)} cannot be read ({one_line(error)})") from error

    yield from in_threads(read, range(len(chosen)), f"evaluating {split}", report)


def _batches(examples: Iterator[tuple[np.ndarray, int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    images, labels = [], []
    for image, label in examples:
        images.append(image)
        labels.append(label)
        if len(images) == BATCH:
            yield np.stack(images), np.array(labels, np.int32)
            images, labels = [], []
    if images:
        yield np.stack(images), np.array(labels, np.int32)
