"""The compiled steps, one for each meaning: jit over a mesh, jit of vmap for stacked runs, pmap over replicas.

The first is compiled with the options of devices/compiler.py; pmap takes none.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxclf.devices import compiler
from jaxclf.devices.layout import AXIS, ReplicaSpread
from jaxclf.training.recalibration import recalibrate
from jaxclf.training.step import Program, TrainState, take_steps


def train_steps(
    program: Program, state: TrainState, images: Any, labels: Any, rows: Any, examples: Any = None
) -> TrainState:
    """Do what `take_steps` does; the state given is consumed. Under pmap, `rows` are those of all replicas."""
    return _call(take_steps, _take_steps, program, state, images, labels, rows, examples)


def recalibrate_step(
    program: Program, state: TrainState, images: Any, labels: Any, rows: Any, number: int, examples: Any = None
) -> TrainState:
    """Do what `recalibrate` does; under pmap, `rows` are those of all replicas."""
    return _call(
        recalibrate, _recalibrate, program, state, images, labels, rows, examples, np.asarray(number, np.int32)
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def stacked_steps(program: Program, state: TrainState, images: Any, labels: Any, rows: Any) -> TrainState:
    """Take the steps of r stacked runs, each on its own rows, int32 [r s b]; the state given is consumed.

    Every array of the state has a leading axis over the runs, which share the program. They share the resident images,
    [m h w c], or each has its own, [r m h w c].
    """
    pool = None if images.ndim == 4 else 0
    given = (state, images, labels, rows)
    return jax.vmap(functools.partial(take_steps, program), in_axes=(0, pool, pool, 0))(*given)


_take_steps = compiler.jit(take_steps, static_argnums=0, donate_argnums=1)
_recalibrate = compiler.jit(recalibrate, static_argnums=0)


def _call(
    step: Callable[..., TrainState],
    compiled: Callable[..., TrainState],
    program: Program,
    state: TrainState,
    images: Any,
    labels: Any,
    rows: Any,
    examples: Any,
    *more: Any,
) -> TrainState:
    if not isinstance(program.spread, ReplicaSpread):
        return compiled(program, state, images, labels, rows, examples, *more)
    replicated = _replicated(step, program, program.spread, streamed=rows is None)
    if rows is not None:
        rows, examples = (_own_rows(program.spread, one) for one in (rows, examples))
    return replicated(state, images, labels, rows, examples, *more)


@functools.cache
def _replicated(step: Callable[..., TrainState], program: Program, spread: ReplicaSpread, *, streamed: bool) -> Any:
    """Return a step compiled by pmap: the state whole on each device, before and after."""
    pool = 0 if streamed else None
    everywhere = spread.mesh.size == jax.device_count()
    return jax.pmap(
        functools.partial(step, program),
        axis_name=AXIS,
        in_axes=(None, pool, pool, 0, 0, None)[: 5 + (step is recalibrate)],
        out_axes=None,
        donate_argnums=0,
        devices=None if everywhere else list(spread.mesh.devices.flat),
    )


def _own_rows(spread: ReplicaSpread, rows: np.ndarray) -> np.ndarray:
    """Split rows [s b] over the replicas, and return those of this process's devices, [l s b/r]."""
    steps, batch = rows.shape
    replicas, own = spread.mesh.size, spread.mesh.size // jax.process_count()
    each = np.moveaxis(rows.reshape(steps, replicas, batch // replicas), 1, 0)
    return each[jax.process_index() * own :][:own]
