"""The accuracy of weights on a data set, as torchvision's --test-only and timm's validate.py measure it."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxclf.config import DataConfig
from jaxclf.data.datasets import resolve
from jaxclf.data.kinds import ResidentSet, StreamedSet
from jaxclf.data.sources import Report
from jaxclf.data.transforms import Preprocessing
from jaxclf.devices import compiler
from jaxclf.errors import UsageError
from jaxclf.tools.inputs import BATCH, Inputs, open_inputs
from jaxclf.training.losses import means, metric_sums, zeros
from jaxclf.training.run_directory import per_class
from jaxclf.training.weights import Weights


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
    dataset, inputs = open_split(weights, data, split, report)
    step = compiler.jit(functools.partial(_answers, weights.model))
    answers = (
        (own, *step(weights.variables, images, *padded(own, BATCH)))
        for images, own in inputs.batches(split, f"evaluating {split}")
    )
    return total(answers, dataset, inputs.preprocessing)


def open_split(
    weights: Weights, data: DataConfig, split: str, report: Report | None
) -> tuple[ResidentSet | StreamedSet, Inputs]:
    """Return a data set whose classes are those of the weights, and its images, of which `split` are some.

    Raises `UsageError` as `accuracy` does.
    """
    dataset, record = resolve(data), weights.record
    if record.num_classes != dataset.num_classes:
        raise UsageError(f"the weights know {record.num_classes} classes, but {data.dataset} has {dataset.num_classes}")
    names = record.class_names or dataset.class_names
    if names != dataset.class_names and set(names) == set(dataset.class_names):
        raise UsageError(f"the classes of {data.dataset} are those of the weights in another order")
    inputs = open_inputs(weights, dataset, report)
    if split not in inputs.splits:
        raise UsageError(f"there is no split {split!r}; there: {', '.join(inputs.splits)}")
    return dataset, inputs


def padded(labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of a whole batch, and where they are those of images."""
    return np.pad(labels, (0, size - len(labels))), np.arange(size) < len(labels)


def score(
    logits: Float[Array, "n k"], labels: Int[Array, " n"], mask: Bool[Array, " n"]
) -> tuple[dict[str, Array], Int[Array, " n"]]:
    """Return the sums of a batch (losses.metric_sums) and the predicted classes."""
    return metric_sums(logits, labels, mask), logits.argmax(-1).astype(jnp.int32)


def total(
    answers: Iterable[tuple[np.ndarray, Any, Any]], dataset: ResidentSet | StreamedSet, preprocessing: Preprocessing
) -> Accuracy:
    """Return the accuracy out of each batch's labels, which are those of its first images, and `score`."""
    sums: dict[str, Any] = dict.fromkeys(zeros(), 0)
    labels, predictions = [], []
    for own, part, predicted in answers:
        sums = {name: sums[name] + part[name].item() for name in sums}
        labels.append(own)
        predictions.append(np.asarray(predicted)[: len(own)])
    found = means(sums)
    if not np.isfinite(found["loss"]):
        raise UsageError(f"the loss of the weights on {dataset.config.dataset} is {found['loss']}")
    shares = per_class(np.concatenate(labels), np.concatenate(predictions), dataset.num_classes)
    return Accuracy(**found, per_class=shares, images=sums["count"], preprocessing=preprocessing)


def _answers(model: Any, variables: Any, images: jax.Array, labels: jax.Array, mask: jax.Array) -> Any:
    return score(model.apply(variables, images), labels, mask)
