"""Divergence, and the way back from it: to the newest good checkpoint, with other draws from there on."""

import contextlib

import jax
import jax.numpy as jnp

from jaxclf.config import RunConfig
from jaxclf.data.order import reseeded
from jaxclf.devices.cluster import gather, together, warn
from jaxclf.errors import RunError
from jaxclf.storage import remove
from jaxclf.training.checkpoint import Checkpoints, NoCheckpoint
from jaxclf.training.run_directory import UNEVALUATED, Rows, RunDirectory
from jaxclf.training.setup import Setup
from jaxclf.training.step import TrainState


class Diverged(RunError):
    """A loss or an update that is not finite, or a loss above run.max_loss."""

    def __init__(self, text: str, step: int) -> None:
        """Keep the step (from 1) beside the text."""
        super().__init__(text)
        self.step = step


def newest(setup: Setup, directory: RunDirectory, checkpoints: Checkpoints) -> tuple[TrainState, Rows] | None:
    """Return the state of the newest checkpoint that can be read, and the metric rows until there; None: there is none.

    It may be one that still waits for its evaluation.
    """
    last = max(checkpoints.steps(), default=-1)
    there = together(lambda: (directory.path / UNEVALUATED).exists())
    if gather("there" if there else "")[0]:  # as process 0 sees it: a file system may tell another later
        with Checkpoints(directory.path / UNEVALUATED) as waiting, contextlib.suppress(NoCheckpoint):
            if max(waiting.steps(), default=-1) > last:
                return _restored(setup, directory, waiting)
        forget_unevaluated(directory)  # it is evaluated, or damaged and set aside
    return _restored(setup, directory, checkpoints) if last >= 0 else None


def _restored(setup: Setup, directory: RunDirectory, checkpoints: Checkpoints) -> tuple[TrainState, Rows]:
    state, count = checkpoints.restore(setup.init_state())
    return setup.layout.whole(state, training=True), directory.rows(count)


def keep_unevaluated(directory: RunDirectory, state: TrainState, *, rows: int) -> None:
    """Write the checkpoint of an epoch whose evaluation was stopped, beside the others; it is whole on return.

    Among them it would keep out the one of the same step that is evaluated.
    """
    with Checkpoints(directory.path / UNEVALUATED) as waiting:
        waiting.save(state, rows=rows, top1=None)


def forget_unevaluated(directory: RunDirectory) -> None:
    """Delete what `keep_unevaluated` wrote."""
    together(lambda: remove(directory.path / UNEVALUATED) if jax.process_index() == 0 else None)


def go_back(
    setup: Setup, directory: RunDirectory, checkpoints: Checkpoints, error: Diverged, seed: int
) -> tuple[TrainState, Rows]:
    """Return the last good state, or that before the first step, with the seed of other draws; and its metric rows.

    `seed` is the one that diverged. Raises `RunError` if the run has gone back as often as run.rollbacks allows.
    """
    run = setup.config.run
    number = 1 + _rollbacks(run, seed)
    if number > run.rollbacks:
        raise RunError(str(error)) from error
    checkpoints.settle()
    state, rows = newest(setup, directory, checkpoints) or (setup.init_state(), [])
    other, step = reseeded(run.seed, number), int(state.step)
    directory.write_rollback({"number": number, "diverged": error.step, "back_to": step, "seed": other})
    warn(f"{error}; going back to step {step}, with other draws from there on ({number} of at most {run.rollbacks})")
    return state.replace(seed=setup.layout.whole(jnp.asarray(other, jnp.uint32), training=True)), rows


def _rollbacks(run: RunConfig, seed: int) -> int:
    """Return how many times a run had gone back when its state had this seed."""
    return next(number for number in range(run.rollbacks + 1) if reseeded(run.seed, number) == seed)
