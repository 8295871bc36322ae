"""Evaluate states of a run: every image of a split is counted once."""

import collections
import dataclasses
import functools
import itertools
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxclf.config import Config, Loader
from jaxclf.data.order import Batch, Fault
from jaxclf.devices.cluster import together, warn
from jaxclf.errors import RunError
from jaxclf.models.torch_weights import not_finite
from jaxclf.storage import location
from jaxclf.training import losses
from jaxclf.training.checkpoint import Which, saved, state_digest
from jaxclf.training.collapse import Moments, head_weight, measures, nearest_classes
from jaxclf.training.parallel import recalibrate_step
from jaxclf.training.run_directory import Result, RunDirectory, per_class
from jaxclf.training.setup import IN_THREADS, Setup, set_up
from jaxclf.training.step import TrainState, eval_step, feature_step
from jaxclf.training.weights import with_preprocessing


class Interrupted(Exception):
    """An evaluation that ended early, because its `stop` was true."""


Stop = Callable[[], bool]
"""Tells before each batch whether an evaluation is to end early."""


def never() -> bool:
    """Return False."""
    return False


def evaluate(
    config: Config,
    workdir: str | os.PathLike[str],
    *,
    checkpoint: Which = "last",
    loader: Loader = IN_THREADS,
    devices: int | None = None,
) -> Result:
    """Evaluate a checkpoint of a run on the test images; writes nothing. `devices` is as in `train`.

    "best" is the best on these very images: a diagnosis, not a result to report.
    Raises `UsageError` for a directory without checkpoints and for one of another config, and `RunError` where the
    checkpoint or the loss is not finite.
    """
    place = together(lambda: location(workdir))
    config = together(lambda: with_preprocessing(config, place))
    with (
        together(lambda: set_up(config, loader, devices)) as setup,
        together(lambda: RunDirectory(place, config, create=False, layout=setup.layout)) as directory,
    ):
        state = restore(setup, directory, checkpoint=checkpoint)
        test = evaluate_split(setup, state, "test")
        for fault in test.faults:
            warn(fault.error)
        return result_of(setup, directory, state, test, images_per_second=0.0)


def restore(setup: Setup, directory: RunDirectory, *, checkpoint: Which = "last") -> TrainState:
    """Return the state of a checkpoint of a run; `UsageError` where there is none."""
    with saved(directory.path) as checkpoints:
        state = checkpoints.restore(setup.init_state(), checkpoint)[0]
    return setup.layout.whole(state, training=True)


def recalibrated(
    setup: Setup, state: TrainState, wanted: int, read: Callable[[int], Iterator[Batch]], stop: Stop = never
) -> TrainState:
    """Average BatchNorm's statistics over `wanted` training batches from behind the last step.

    `read` yields the batches of an epoch from a step on. Raises `Interrupted`.
    """
    number = 0
    while number < wanted:  # an epoch of batches at a time
        for batch in itertools.islice(read(setup.total_steps + number), wanted - number):
            if stop():
                raise Interrupted
            number += 1
            given = (batch.images, batch.labels, batch.rows, number, batch.examples)
            state = recalibrate_step(setup.program, state, *given)
            if not setup.layout.ahead:
                jax.block_until_ready(state)
    return state


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A split's answers, each image counted once."""

    metrics: dict[str, float]
    labels: np.ndarray
    """int32 [n], in the data set's order; -1 for an image that was skipped."""
    predictions: np.ndarray
    """Predicted classes int32 [n]; -1 for an image that was skipped."""
    faults: tuple[Fault, ...]


def evaluate_split(setup: Setup, state: TrainState, split: str, stop: Stop = never) -> Evaluation:
    """Evaluate a state on a split.

    Raises `RunError` where an image cannot be read, or none can, or numbers are not finite, and `Interrupted`.
    """
    # Looked for before the loss, too: on a CPU, XLA's maximum of NaN and 0 may be 0.
    if bad := not_finite(traverse_util.flatten_dict(jax.device_get(state.evaluated), sep=".")):
        raise RunError(f"step {int(state.step)}: {bad}")
    count, parts, faults = setup.data.sizes[split], [], []
    for part, batch in _stepped(setup, state, split, eval_step, stop):
        parts.append(part)
        faults += batch.faults
    sums, answers = zip(*jax.device_get(parts), strict=True)
    total = {name: sum(part[name].item() for part in sums) for name in losses.zeros()}
    if not total["count"]:
        raise RunError(f"no image of {split} could be read, the first of them: {faults[0].error}")
    if not np.isfinite(total["loss"]):
        raise RunError(f"step {int(state.step)}: the loss on the {split} images is {total['loss']}")
    labels, predictions = (np.concatenate(values)[:count] for values in zip(*answers, strict=True))
    return Evaluation(losses.means(total), labels, predictions, tuple(faults))


def measure_collapse(setup: Setup, state: TrainState, split: str, stop: Stop = never) -> dict[str, float]:
    """Return the measures of neural collapse that are defined for a split's features, by name (collapse.py).

    One pass over the images gives the class means, a second one the share of images whose prediction is the class with
    the nearest mean, nc4. No batch's features are kept. Raises `RunError` as `evaluate_split` does.
    """
    head, variables = setup.program.model.head, jax.device_get(state.evaluated)
    given = (setup, state, split, stop)
    batches = (Moments.of(features, labels, head.num_classes) for labels, _, features in _features(*given))
    moments = functools.reduce(operator.add, batches)
    if not np.isfinite(moments.squares).all():
        raise RunError(f"step {int(state.step)}: a feature of the {split} images is not finite")
    own = {name: tree["head"] for name, tree in variables.items() if "head" in tree}
    found = measures(moments, head_weight(head, own, len(moments.largest)))
    agreeing, count = 0, 0
    for _, predictions, features in _features(*given):
        agreeing += int((nearest_classes(moments, features) == predictions).sum())
        count += len(predictions)
    return found | {"nc4": agreeing / count}


def _features(
    setup: Setup, state: TrainState, split: str, stop: Stop
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield labels int32 [n], predictions int32 [n] and features float32 [n d], of the images of a batch that count."""
    for part, _ in _stepped(setup, state, split, feature_step, stop):
        answers, features = jax.device_get(part)
        counted = answers.labels >= 0
        yield answers.labels[counted], answers.predictions[counted], features[counted]


def _stepped(
    setup: Setup, state: TrainState, split: str, step: Callable[..., Any], stop: Stop
) -> Iterator[tuple[Any, Batch]]:
    """Yield what a step of evaluation returns for each batch of a split, and the batch.

    The host is as few steps ahead as in training, so that a request to stop is met soon.
    """
    size = min(setup.config.data.eval_batch_size, setup.data.sizes[split])
    program = dataclasses.replace(setup.program, spread=setup.layout.spread())
    if setup.layout.training_mesh is not setup.layout.mesh:
        state = setup.layout.whole(state)
    under_way = collections.deque[Any]()
    for batch in setup.data.eval_batches(split, size + -size % setup.layout.devices):
        if stop():
            raise Interrupted
        part = step(program, state, batch.images, batch.labels, batch.rows, batch.mask)
        under_way.append(part)
        while len(under_way) > setup.layout.ahead:
            jax.block_until_ready(under_way.popleft())
        yield part, batch


def result_of(
    setup: Setup, directory: RunDirectory, state: TrainState, test: Evaluation, images_per_second: float
) -> Result:
    """Return the result of a state that was evaluated on the test images."""
    names = {"trainable": state.params, "fixed": state.fixed, "statistics": (state.batch_stats, state.head_state)}
    return Result(
        top1=test.metrics["top1"],
        top5=test.metrics["top5"],
        loss=test.metrics["loss"],
        per_class=per_class(test.labels, test.predictions, len(setup.data.class_names)),
        step=int(state.step),
        parameters={name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in names.items()},
        sha256=state_digest(state),
        images_per_second=images_per_second,
        workdir=str(directory.path),
        skipped=len(directory.skipped()),
        rollbacks=len(directory.rollbacks()),
    )
