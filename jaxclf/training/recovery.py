"""Divergence, and the way back from it: to the newest good checkpoint, with other draws from there on."""

import jax.numpy as jnp

from jaxclf.config import RunConfig
from jaxclf.data.order import reseeded
from jaxclf.devices.cluster import warn
from jaxclf.errors import RunError
from jaxclf.training.checkpoint import Checkpoints
from jaxclf.training.run_directory import Rows, RunDirectory
from jaxclf.training.setup import Setup
from jaxclf.training.step import TrainState


class Diverged(RunError):
    """A loss or an update that is not finite, or a loss above run.max_loss."""

    def __init__(self, text: str, step: int) -> None:
        """Keep the step (from 1) beside the text."""
        super().__init__(text)
        self.step = step


def newest(setup: Setup, directory: RunDirectory, checkpoints: Checkpoints) -> tuple[TrainState, Rows]:
    """Return the state of the newest checkpoint that can be read, and the metric rows until there."""
    state, count = checkpoints.restore(setup.init_state())
    return setup.layout.whole(state, training=True), directory.rows(count)


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
    state, rows = newest(setup, directory, checkpoints) if checkpoints.steps() else (setup.init_state(), [])
    other, step = reseeded(run.seed, number), int(state.step)
    directory.write_rollback({"number": number, "diverged": error.step, "back_to": step, "seed": other})
    warn(f"{error}; going back to step {step}, with other draws from there on ({number} of at most {run.rollbacks})")
    return state.replace(seed=setup.layout.whole(jnp.asarray(other, jnp.uint32), training=True)), rows


def _rollbacks(run: RunConfig, seed: int) -> int:
    """Return how many times a run had gone back when its state had this seed."""
    return next(number for number in range(run.rollbacks + 1) if reseeded(run.seed, number) == seed)
