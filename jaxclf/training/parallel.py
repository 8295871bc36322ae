"""Training steps compiled by jit over a mesh, or by pmap over replicas, as the program says; by vmap for several runs.

Runs that are stacked share a program and have each its own state and its own rows of the images, which are the same.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.config import Config
from jaxclf.data.order import Order
from jaxclf.devices.layout import AXIS, Layout, check_batch
from jaxclf.errors import UsageError
from jaxclf.training import step
from jaxclf.training.step import Program, TrainState


def check_layout(config: Config, layout: Layout, order: Order) -> None:
    """Check that the devices can share the batches of a config; `UsageError`, with what they can share."""
    size, run = config.data.batch_size, config.run
    check_batch(layout, "data.batch_size", size)
    if run.parallel == "jit":
        return
    if run.replicas not in (None, layout.devices):
        raise UsageError(f"run.replicas is {run.replicas} but there are {layout.devices} devices; choose by --devices")
    if (last := order.examples % size) and not order.drop_last and not layout.splits(last):
        raise UsageError(
            f"run.parallel is 'pmap', but an epoch's last batch has {last} images, which {layout.devices} devices do "
            "not divide; leave it out by data.drop_last"
        )


def split(program: Program, config: Config, layout: Layout) -> Program:
    """Return the program whose steps are computed on the devices of a layout."""
    return dataclasses.replace(
        program,
        mesh=layout.mesh if layout.devices > 1 else None,
        replicas=layout.devices if layout.replicas else None,
        replica_statistics=config.run.replica_statistics,
    )


def stacked_steps(
    program: Program, states: list[TrainState], images: Any, labels: Any, rows: np.ndarray
) -> list[TrainState]:
    """Take the steps of `step.take_steps` in r runs of a resident set, each on its own rows, int32 [r s b], by vmap.

    The states given are consumed.
    """
    structure, each = jax.tree.structure(states[0]), [jax.tree.leaves(state) for state in states]
    return [
        jax.tree.unflatten(structure, new) for new in stacked_leaves(program, structure, each, images, labels, rows)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def stacked_leaves(
    program: Program, structure: Any, each: list[list[jax.Array]], images: Any, labels: Any, rows: Any
) -> list[list[jax.Array]]:
    """Do what `stacked_steps` does on the leaves of states of a structure."""

    def take(leaves: list[jax.Array], own: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(step.take_steps(program, jax.tree.unflatten(structure, leaves), images, labels, own))

    new = jax.vmap(take)([jnp.stack(same) for same in zip(*each, strict=True)], rows)
    return [[leaf[run] for leaf in new] for run in range(len(each))]


def train_steps(
    program: Program, state: TrainState, images: Any, labels: Any, rows: Any, examples: Any = None
) -> TrainState:
    """Do what `step.train_steps` does, compiled as the program says; under pmap `rows` are those of all replicas."""
    if program.replicas is None:
        return step.train_steps(program, state, images, labels, rows, examples)
    steps = _replicated(step.take_steps, program, streamed=rows is None)
    if rows is None:
        return steps(state, images, labels, None, examples)
    return steps(state, images, labels, _own_rows(program, rows), _own_rows(program, examples))


def recalibrate_step(
    program: Program, state: TrainState, images: Any, labels: Any, rows: Any, number: int, examples: Any = None
) -> TrainState:
    """Do what `step.recalibrate_step` does on a batch of one step, compiled as the program says."""
    count = np.asarray(number, np.int32)
    if rows is not None:
        rows, examples = (_own_rows(program, one) if program.replicas else one for one in (rows, examples))
        rows, examples = (one.squeeze(-2) for one in (rows, examples))  # [s b] with s = 1
    if program.replicas is None:
        return step.recalibrate_step(program, state, images, labels, rows, count, examples)
    take = _replicated(step.recalibrate, program, streamed=rows is None)
    return take(state, images, labels, rows, np.full(_own_count(program), count), examples)


@functools.cache
def _replicated(take: Callable[..., TrainState], program: Program, *, streamed: bool) -> Any:
    """Return a step compiled by pmap: the state whole on each device, before and after."""
    pool = 0 if streamed else None
    everywhere = program.mesh is None or program.mesh.size == jax.device_count()
    axes = (None, pool, pool, 0, 0) if take is step.take_steps else (None, pool, pool, 0, 0, 0)
    return jax.pmap(
        functools.partial(take, program),
        axis_name=AXIS,
        in_axes=axes,
        out_axes=None,
        donate_argnums=0,
        devices=None if everywhere or program.mesh is None else list(program.mesh.devices.flat),
    )


def _own_rows(program: Program, rows: np.ndarray) -> np.ndarray:
    """Split rows [s b] over the replicas, and return those of this process's devices, [l s b/r]."""
    assert program.replicas is not None
    steps, batch = rows.shape
    each = np.moveaxis(rows.reshape(steps, program.replicas, batch // program.replicas), 1, 0)
    own = _own_count(program)
    return each[jax.process_index() * own :][:own]


def _own_count(program: Program) -> int:
    """Return how many of the replicas are on this process's devices: as many as on every other's."""
    assert program.replicas is not None
    return program.replicas // jax.process_count()
