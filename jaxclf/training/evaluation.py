"""Evaluate states of a run: every image of a split is counted once."""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from jaxclf.config import Config, Loader
from jaxclf.data.order import Fault
from jaxclf.devices.cluster import together, warn
from jaxclf.errors import RunError
from jaxclf.models.torch_weights import not_finite
from jaxclf.training import losses
from jaxclf.training.checkpoint import Which, saved, state_digest
from jaxclf.training.run_directory import Result, RunDirectory, per_class
from jaxclf.training.setup import IN_THREADS, Setup, set_up
from jaxclf.training.step import TrainState, eval_step
from jaxclf.training.weights import with_preprocessing


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
    config = together(lambda: with_preprocessing(config, Path(workdir)))
    with (
        together(lambda: set_up(config, loader, devices)) as setup,
        together(lambda: RunDirectory(workdir, config, create=False, layout=setup.layout)) as directory,
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


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A split's answers, each image counted once."""

    metrics: dict[str, float]
    labels: np.ndarray
    """int32 [n], in the data set's order; -1 for an image that was skipped."""
    predictions: np.ndarray
    """Predicted classes int32 [n]; -1 for an image that was skipped."""
    faults: tuple[Fault, ...]


def evaluate_split(setup: Setup, state: TrainState, split: str) -> Evaluation:
    """Evaluate a state on a split; `RunError` where an image cannot be read, or none can, or numbers are not finite."""
    # Looked for before the loss, too: on a CPU, XLA's maximum of NaN and 0 may be 0.
    if bad := not_finite(traverse_util.flatten_dict(jax.device_get(state.evaluated), sep=".")):
        raise RunError(f"step {int(state.step)}: {bad}")
    count, parts, faults = setup.data.sizes[split], [], []
    size = min(setup.config.data.eval_batch_size, count)
    program = dataclasses.replace(setup.program, spread=setup.layout.spread())
    if setup.layout.training_mesh is not setup.layout.mesh:
        state = setup.layout.whole(state)
    for batch in setup.data.eval_batches(split, size + -size % setup.layout.devices):
        parts.append(eval_step(program, state, batch.images, batch.labels, batch.rows, batch.mask))
        if not setup.layout.ahead:
            jax.block_until_ready(parts[-1])
        faults += batch.faults
    sums, answers = zip(*jax.device_get(parts), strict=True)
    total = {name: sum(part[name].item() for part in sums) for name in losses.zeros()}
    if not total["count"]:
        raise RunError(f"no image of {split} could be read, the first of them: {faults[0].error}")
    if not np.isfinite(total["loss"]):
        raise RunError(f"step {int(state.step)}: the loss on the {split} images is {total['loss']}")
    labels, predictions = (np.concatenate(values)[:count] for values in zip(*answers, strict=True))
    return Evaluation(losses.means(total), labels, predictions, tuple(faults))


def result_of(
    setup: Setup, directory: RunDirectory, state: TrainState, test: Evaluation, images_per_second: float
) -> Result:
    """Return the result of a state that was evaluated on the test images."""
    names = {"trainable": state.params, "fixed": state.fixed, "statistics": state.batch_stats}
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
