"""Frozen transfer: how well the features that weights compute tell the classes of a data set apart."""

import dataclasses
import functools
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxclf.config import DataConfig, Probing, validate
from jaxclf.data.datasets import resolve
from jaxclf.data.sources import UNREADABLE, Report
from jaxclf.data.transforms import Preprocessing
from jaxclf.devices import compiler
from jaxclf.errors import UsageError
from jaxclf.intervals import student_half_width, wilson
from jaxclf.models.torch_weights import not_finite
from jaxclf.tools import probe
from jaxclf.tools.inputs import BATCH, Inputs, open_inputs
from jaxclf.tools.probe import Labelled, LinearProbe
from jaxclf.training.weights import Weights

PROBING = Probing()


@dataclasses.dataclass(frozen=True)
class Score:
    """Top-1 of one classifier on the test images, in percent, and the ends of its 95 % interval."""

    classifier: str
    top1: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Transfer:
    """How well features tell a data set's classes apart."""

    dataset: str
    num_classes: int
    train_images: int
    test_images: int
    features: int
    """Their number, d."""
    preprocessing: Preprocessing
    penalty: float
    """Of the linear probe, as it was chosen on training images."""
    neighbours: int
    draws: int
    seed: int
    scores: tuple[Score, ...]
    """Linear probe and nearest neighbours, with Wilson's interval over test images; then, for each number of shots,
    the mean over draws, with Student's interval over these: network and test images are the same in all of them."""


def transfer(
    weights: Weights,
    data: DataConfig,
    probing: Probing = PROBING,
    *,
    report: Report | None = None,
) -> Transfer:
    """Measure the features of weights, which stay as they are, on the training and test images of a data set.

    Features are what the head is given: `Classifier.logits_and_features`. Both splits are prepared as test images
    are, and nothing is drawn but the shots, a function of the seed. The set's classes may be others than the weights'.

    Raises:
      UsageError: for a head that stands before the pool; a set that is not there or of other channels; too few images
        of a class for what is asked; images that cannot be read; and weights or features that are not finite.
      RunError: where the linear probe finds no minimum.
    """
    validate(probing)
    dataset = resolve(data)
    if bad := not_finite(traverse_util.flatten_dict(weights.variables, sep=".")):
        raise UsageError(bad)
    inputs = open_inputs(weights, dataset, report)
    size, channels = inputs.preprocessing.crop, len(inputs.preprocessing.mean)
    step = functools.partial(_features, weights.model)
    images = jax.ShapeDtypeStruct((BATCH, size, size, channels), np.float32)
    width = jax.eval_shape(step, weights.variables, images).shape[1]
    _require_images(inputs.labels("train"), dataset.class_names, probing)
    step = compiler.jit(step)
    train, test = (_labelled(step, weights, inputs, split) for split in ("train", "test"))
    linear = probe.linear_probe(train)
    return Transfer(
        dataset=data.dataset,
        num_classes=dataset.num_classes,
        train_images=len(train.labels),
        test_images=len(test.labels),
        features=width,
        preprocessing=inputs.preprocessing,
        penalty=linear.penalty,
        neighbours=probing.neighbours,
        draws=probing.draws,
        seed=probing.seed,
        scores=tuple(_scores(linear, train, test, probing)),
    )


def _features(model: Any, variables: Any, images: jax.Array) -> jax.Array:
    return model.apply(variables, images, method="logits_and_features")[1]


def _require_images(labels: np.ndarray, names: Sequence[str], probing: Probing) -> None:
    """Raise `UsageError` where there are too few training images for what is asked, before any is prepared."""
    labels = labels[labels != UNREADABLE]
    probe.require_each(labels, probe.FEWEST, "the linear probe", names)
    for count in probing.shots:
        probe.require_each(labels, count, f"a draw of {count}", names)
    probe.require_neighbours(len(labels), probing.neighbours)


def _labelled(step: Any, weights: Weights, inputs: Inputs, split: str) -> Labelled:
    """Compute the features of a split, float32."""
    features, labels = [], []
    for images, own in inputs.batches(split, f"features of {split}"):
        features.append(np.asarray(step(weights.variables, images))[: len(own)])
        labels.append(own)
    found = Labelled(np.concatenate(features), np.concatenate(labels))
    if bad := int((~np.isfinite(found.features).all(1)).sum()):
        raise UsageError(f"the features of {bad:,} of {len(found.labels):,} {split} images are not finite")
    return found


def _scores(linear: LinearProbe, train: Labelled, test: Labelled, probing: Probing) -> Iterator[Score]:
    """Yield the scores in the order of `Transfer.scores`."""
    neighbours = probing.neighbours
    yield _counted("linear probe", linear.predict(test.features) == test.labels)
    near = probe.nearest_neighbours(train, test.features, neighbours=neighbours)
    yield _counted(f"{neighbours} nearest neighbour{'s' * (neighbours > 1)}", near == test.labels)
    for count in probing.shots:
        shares = probe.few_shot(train, test, count, draws=probing.draws, seed=probing.seed)
        yield _averaged(f"{count} image{'s' * (count > 1)} a class", shares)


def _counted(name: str, right: np.ndarray) -> Score:
    hits, count = int(right.sum()), len(right)
    low, high = wilson(hits, count)
    return Score(name, 100 * hits / count, 100 * low, 100 * high)


def _averaged(name: str, shares: Sequence[float]) -> Score:
    mean, half = statistics.fmean(shares), student_half_width(shares)
    assert half is not None
    return Score(name, 100 * mean, 100 * (mean - half), 100 * (mean + half))
