"""Runs that differ in their seeds alone trained in one program: their states stacked, the step mapped over them.

Each run has its own order of images, its own draws, its own fixed matrix and its own directory, with the files of a
single run, and ends as that does up to rounding, which is that of another program: environment.json says how many were
stacked.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxclf.config import Config, validate
from jaxclf.data import datasets
from jaxclf.devices.preemption import Requests
from jaxclf.errors import UsageError
from jaxclf.training.checkpoint import Checkpoints
from jaxclf.training.loop import A_HEARTBEAT, Session, opened, run_all
from jaxclf.training.parallel import stacked_leaves, train_steps
from jaxclf.training.run_directory import Result, RunDirectory
from jaxclf.training.setup import Setup, set_up
from jaxclf.training.step import TrainState

TIMED = 5
"""Dispatches of one run by itself that are timed."""


class Stacked(NamedTuple):
    """What stacked runs ended with."""

    results: list[Result]
    together: float
    """Training images/s of all runs of the program; 0 if nothing was trained."""
    alone: float
    """Training images/s of the first run by itself, measured afterwards in the same process; 0 likewise."""


def but_for_seeds(config: Config) -> Config:
    """Return what runs that can be stacked have in common."""
    model, run = dataclasses.replace(config.model, head_seed=None), dataclasses.replace(config.run, seed=0)
    return dataclasses.replace(config, model=model, run=run)


def check_stack(configs: Sequence[Config]) -> None:
    """Check that configs can be trained in one program; `UsageError` with all that stands against it."""
    for config in configs:
        validate(config)
    first, faults = configs[0], []
    for number, other in enumerate(configs[1:], 1):
        differences = but_for_seeds(first).differences(but_for_seeds(other))
        faults += [f"runs 0 and {number} differ in {difference}" for difference in differences]
    if first.run.rollbacks:
        faults.append(f"run.rollbacks is {first.run.rollbacks} but must be 0")
    if first.run.parallel != "jit":
        faults.append(f"run.parallel is {first.run.parallel!r} but must be 'jit'")
    if datasets.resolve(first.data).facts.streamed:
        faults.append(f"data.dataset is {first.data.dataset}, which is streamed, but must be resident")
    if faults:
        raise UsageError(
            f"runs cannot be stacked in one program, only run.seed and model.head_seed may differ: {'; '.join(faults)}"
        )


def train_stacked(configs: Sequence[Config], workdirs: Sequence[str | os.PathLike[str]], *, quiet: bool) -> Stacked:
    """Train configs that differ in seeds alone in one program, each in its own directory, or go on where they stopped.

    Stopped at any moment and called again with the same directories, the runs end with the same bits as never stopped.
    One that diverges ends all of them; what is complete already is not trained again. They take one device, the first.

    Raises `UsageError`, before anything is compiled, for configs that cannot be stacked, for several processes, and for
    directories that stand at different steps; otherwise as `loop.train`.
    """
    check_stack(configs)
    pending = [
        (config, Path(path))
        for config, path in zip(configs, workdirs, strict=True)
        if not (Path(path) / "result.json").exists()
    ]
    done: dict[Path, Result] = {}
    together = alone = 0.0
    with _one_device(configs[0]) as setup:
        if pending:
            done, together = _train(setup, pending, quiet=quiet)
        if together:
            alone = _images_per_second_alone(setup)
    for config, path in zip(configs, map(Path, workdirs), strict=True):
        if path not in done:
            with RunDirectory(path, config, create=False) as directory:
                result = directory.result()
            assert result is not None
            done[path] = result
    return Stacked([done[Path(path)] for path in workdirs], together, alone)


def _one_device(config: Config) -> Setup:
    setup = set_up(config, devices=1)
    if (hosts := setup.layout.hosts) > 1:
        raise UsageError(f"stacked runs take one device of one process, but {hosts} processes share this run")
    return setup


def _train(setup: Setup, pending: Sequence[tuple[Config, Path]], *, quiet: bool) -> tuple[dict[Path, Result], float]:
    """Train to the end; return results by directory, and training images/s of all runs."""
    with contextlib.ExitStack() as stack:
        directories = [
            stack.enter_context(RunDirectory(path, config, layout=setup.layout, stacked=len(pending)))
            for config, path in pending
        ]
        kept = [stack.enter_context(Checkpoints(directory.path / "checkpoints")) for directory in directories]
        _align(directories, kept)
        requests = stack.enter_context(Requests())
        runs: list[Session] = []
        states: list[TrainState] = []
        for (config, _), directory, checkpoints in zip(pending, directories, kept, strict=True):
            given = (setup.seeded(config), directory, checkpoints, requests, A_HEARTBEAT)
            run, state = stack.enter_context(opened(*given, quiet=quiet or bool(runs)))
            runs.append(run)
            states.append(state)
        if len(steps := sorted({int(state.step) for state in states})) > 1:
            raise UsageError(f"damaged checkpoints left the runs at steps {steps}; the same command goes on")
        results = run_all(runs, states)
        together = sum(run.progress.images_per_second for run in runs)
        return {directory.path: result for directory, result in zip(directories, results, strict=True)}, together


def _align(directories: Sequence[RunDirectory], kept: Sequence[Checkpoints]) -> None:
    """Go back to the last step that all runs have a checkpoint of, or to the start.

    A kill may come between the checkpoints of one moment, so runs may be one ahead. What is more than that ahead was
    not trained in this stack and is not thrown away: `UsageError`.
    """
    steps = [checkpoints.steps() for checkpoints in kept]
    common = max(set.intersection(*({0, *own} for own in steps)))
    ahead = [[step for step in own if step > common] for own in steps]
    if max(map(len, ahead)) > 1:
        stand = ", ".join(
            f"{directory.path} at {max(own, default=0)}" for directory, own in zip(directories, steps, strict=True)
        )
        raise UsageError(f"runs stand at different steps and cannot be stacked; train them singly: {stand}")
    for checkpoints, own in zip(kept, ahead, strict=True):
        for step in own:
            checkpoints.drop(step)


def _images_per_second_alone(setup: Setup) -> float:
    """Time a few dispatches of a run by itself, after one that may compile."""
    state = setup.init_state()
    batch = next(iter(setup.data.train_batches(setup.order, 0, setup.group)))
    given = (batch.images, batch.labels, batch.rows, batch.examples)
    state = jax.block_until_ready(train_steps(setup.program, state, *given))
    began = time.perf_counter()
    for _ in range(TIMED):
        state = train_steps(setup.program, state, *given)
    jax.block_until_ready(state)
    return TIMED * batch.steps * batch.size / (time.perf_counter() - began)


def room(configs: Sequence[Config]) -> int:
    """Return how many of the runs the device has memory for in one program, halving; all, where it does not say."""
    check_stack(configs)
    with _one_device(configs[0]) as setup:
        limit = (setup.layout.mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
        count = len(configs)
        while limit is not None and count > 1 and step_bytes(setup, count) > limit:
            count = (count + 1) // 2
        return count


def step_bytes(setup: Setup, count: int) -> int:
    """Return the memory that a compiled step of `count` stacked runs takes: the images, the states, what is between."""
    state = setup.init_state()
    batch = next(iter(setup.data.train_batches(setup.order, 0, setup.group)))
    rows = np.stack([batch.rows] * count)
    given = ([jax.tree.leaves(state)] * count, batch.images, batch.labels, rows)
    step = stacked_leaves.lower(setup.program, jax.tree.structure(state), *given).compile()
    sizes: Any = step.memory_analysis()
    # The new states lie where the old ones were.
    new = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + new
