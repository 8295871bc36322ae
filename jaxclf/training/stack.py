"""Runs that differ in their seeds alone, trained in one program: one state with a leading axis, one mapped step.

Each run has its own order of images, its own draws, its own fixed matrix and its own directory, with the files of a
single run, and ends as that does up to rounding, which is that of another program: environment.json says how many were
stacked.
"""

import contextlib
import dataclasses
import operator
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.config import Config, validate
from jaxclf.data import datasets
from jaxclf.data.kinds import ResidentSet, StreamedSet
from jaxclf.data.order import Batch
from jaxclf.devices.cluster import Stops
from jaxclf.devices.preemption import Requests
from jaxclf.errors import UsageError
from jaxclf.storage import Location, location
from jaxclf.training.checkpoint import Checkpoints
from jaxclf.training.loop import A_HEARTBEAT, Loop, steps_done
from jaxclf.training.parallel import stacked_steps, train_steps
from jaxclf.training.run import Run, opened
from jaxclf.training.run_directory import Result, RunDirectory
from jaxclf.training.setup import Setup, set_up
from jaxclf.training.step import Program, TrainState

TIMED = 5
"""Dispatches of one run by itself that are timed."""


class Stacked(NamedTuple):
    """Results and speed of stacked runs."""

    results: list[Result]
    together: float
    """Training images/s of all runs of the program; 0 if nothing was trained."""
    alone: float
    """Training images/s of the first run by itself, measured afterwards in the same process; 0 likewise."""


def but_for_seeds(config: Config) -> Config:
    """Return what runs have in common if they can be stacked."""
    model, run = dataclasses.replace(config.model, head_seed=None), dataclasses.replace(config.run, seed=0)
    return dataclasses.replace(config, model=model, run=run)


def check_stack(configs: Sequence[Config]) -> ResidentSet | StreamedSet:
    """Return the data set of configs that can be trained in one program; `UsageError` with all against that."""
    for config in configs:
        validate(config)
    first, faults = configs[0], []
    for number, other in enumerate(configs[1:], 1):
        differences = but_for_seeds(first).differences(but_for_seeds(other))
        faults += [f"runs 0 and {number} differ in {difference}" for difference in differences]
    if first.run.rollbacks:
        faults.append(f"run.rollbacks is {first.run.rollbacks} but must be 0")
    if not first.run.epochs:
        faults.append("run.epochs is 0 but must be at least 1")
    if first.elastic.start is not None or first.elastic.sizes:
        faults.append("elastic asks for smaller settings or sizes but must ask for none")
    if first.run.parallel != "jit":
        faults.append(f"run.parallel is {first.run.parallel!r} but must be 'jit'")
    if (dataset := datasets.resolve(first.data)).facts.streamed:
        faults.append(f"data.dataset is {first.data.dataset}, which is streamed, but must be resident")
    if faults:
        raise UsageError(
            f"runs cannot be stacked in one program, only run.seed and model.head_seed may differ: {'; '.join(faults)}"
        )
    return dataset


def train_stacked(configs: Sequence[Config], workdirs: Sequence[str | os.PathLike[str]], *, quiet: bool) -> Stacked:
    """Train configs that differ in seeds alone in one program, each in its own directory, or go on where they stopped.

    Stopped at any moment and called again with the same directories, the runs end with the same bits as never stopped.
    One that diverges ends all of them; what is complete already is not trained again. They take one device, the first.

    Raises `UsageError`, before anything is compiled, for configs that cannot be stacked, for several processes, and for
    directories that stand at different steps; otherwise as `loop.train`.
    """
    dataset = check_stack(configs)
    wanted = [(config, location(path)) for config, path in zip(configs, workdirs, strict=True)]
    pending = [(config, path) for config, path in wanted if not (path / "result.json").exists()]
    with _one_device(configs[0], dataset) as setup:
        together = _train(setup, pending, quiet=quiet) if pending else 0.0
        alone = _images_per_second_alone(setup) if together else 0.0
    return Stacked([_result(config, path) for config, path in wanted], together, alone)


def _result(config: Config, path: Location) -> Result:
    """Return the result of a complete run."""
    with RunDirectory(path, config, create=False) as directory:
        result = directory.result()
    assert result is not None
    return result


def _one_device(config: Config, dataset: ResidentSet | StreamedSet) -> Setup:
    setup = set_up(config, devices=1, dataset=dataset)
    if (hosts := setup.layout.hosts) > 1:
        raise UsageError(f"stacked runs take one device of one process, but {hosts} processes share this run")
    return setup


@dataclasses.dataclass(frozen=True)
class Stack:
    """Runs that train as one. Their state has a leading axis, and each run is told of its own slice of it."""

    runs: Sequence[Run]
    """They stand at one step and share all of their setup but seeds."""

    @property
    def setup(self) -> Setup:
        """The setup of the first run."""
        return self.runs[0].setup

    def _each(self, state: TrainState) -> Iterator[tuple[Run, TrainState]]:
        return zip(self.runs, slices(state, len(self.runs)), strict=True)

    def batches(self, seed: jax.Array, step: int, drain: Callable[[], object]) -> Iterator[Batch]:
        """Yield the batches of all runs as one: the epoch's images, and each run's rows, int32 [r s b]."""
        streams = [run.batches(own, step, drain) for run, own in zip(self.runs, seed, strict=True)]
        shown: Any = None
        for batches in zip(*streams, strict=True):
            shown = _images(batches) if shown is None else shown
            rows = np.stack([batch.rows for batch in batches])
            yield batches[0]._replace(images=shown[0], labels=shown[1], rows=rows, examples=None)

    def advance(self, program: Program, state: TrainState, batch: Batch) -> TrainState:
        """Take the steps of a dispatch in every run; the state given is consumed."""
        return stacked_steps(program, state, batch.images, batch.labels, batch.rows)

    def resume(self) -> None:
        """Let the clocks of all runs run."""
        for run in self.runs:
            run.resume()

    def pause(self, doing: str) -> None:
        """Stop the clocks of all runs."""
        for run in self.runs:
            run.pause(doing)

    def dispatched(self, steps: int, images: int) -> None:
        """Count a dispatch that is finished; `images` are those of each run."""
        for run in self.runs:
            run.dispatched(steps, images)

    def check(self, bad_step: jax.Array) -> None:
        """Check every run. None saves before, so their newest checkpoints are of one step or of two that follow."""
        for run, own in zip(self.runs, bad_step, strict=True):
            run.check(own)

    def save(self, state: TrainState) -> None:
        """Begin to write a checkpoint of every run."""
        for run, own in self._each(state):
            run.save(own)

    def catch_up(self, state: TrainState) -> TrainState:
        """Complete the epoch of every run that was stopped, by itself, in the evaluation of it."""
        if not any(run.is_unevaluated(steps_done(state)) for run in self.runs):
            return state
        return stacked([run.catch_up(own) for run, own in self._each(state)])

    def finish_epoch(self, state: TrainState) -> TrainState:
        """Complete an epoch of every run; a request to stop waits for it."""
        return stacked([run.finish_epoch(own) for run, own in self._each(state)])

    def finish(self, state: TrainState) -> None:
        """Complete the run directories."""
        for run, own in self._each(state):
            run.finish(own)


def _images(batches: Sequence[Batch]) -> tuple[Any, Any]:
    """Return images [m h w c] and labels [m] that runs share; where each has its own, [r m h w c] and [r m]."""
    if all(batch.images is batches[0].images for batch in batches):
        return batches[0].images, batches[0].labels
    return jnp.stack([batch.images for batch in batches]), jnp.stack([batch.labels for batch in batches])


def stacked(states: Sequence[TrainState]) -> TrainState:
    """Return the states of some runs as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def slices(state: TrainState, count: int) -> Iterator[TrainState]:
    """Yield the states of stacked runs one by one."""
    return (jax.tree.map(operator.itemgetter(number), state) for number in range(count))


def _train(setup: Setup, pending: Sequence[tuple[Config, Location]], *, quiet: bool) -> float:
    """Train to the end, and return training images/s of all runs."""
    with contextlib.ExitStack() as stack:
        directories = [
            stack.enter_context(RunDirectory(path, config, layout=setup.layout, stacked=len(pending)))
            for config, path in pending
        ]
        kept = [stack.enter_context(Checkpoints(directory.path / "checkpoints")) for directory in directories]
        _align(directories, kept)
        requests = stack.enter_context(Requests())
        begun: list[tuple[Run, TrainState]] = []
        for (config, _), directory, checkpoints in zip(pending, directories, kept, strict=True):
            given = (setup.seeded(config), directory, checkpoints, A_HEARTBEAT)
            begun.append(stack.enter_context(opened(*given, quiet=quiet or bool(begun))))
        runs, states = zip(*begun, strict=True)
        if len(steps := sorted({int(state.step) for state in states})) > 1:
            raise UsageError(f"damaged checkpoints left the runs at steps {steps}; the same command goes on")
        one = Stack(runs)
        one.finish(Loop(one, one.advance, Stops(requests, setup.layout)).train(stacked(states)))
        return sum(run.progress.images_per_second for run in runs)


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
    with _one_device(configs[0], check_stack(configs)) as setup:
        limit = (setup.layout.mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
        count = len(configs)
        while limit is not None and count > 1 and step_bytes(setup, count) > limit:
            count = (count + 1) // 2
        return count


def step_bytes(setup: Setup, count: int) -> int:
    """Return the memory that a compiled step of `count` stacked runs takes: the images, the states, what is between."""
    leaves, structure = jax.tree.flatten(setup.init_state())
    orders = [dataclasses.replace(setup.order, seed=seed) for seed in range(count)]
    batches = [next(setup.data.train_batches(order, 0, setup.group)) for order in orders]

    def step(leaves: list[jax.Array], *given: Any) -> TrainState:
        return stacked_steps(setup.program, jax.tree.unflatten(structure, leaves), *given)

    shapes = [jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype) for leaf in leaves]  # `count` states may not fit
    given = (*_images(batches), np.stack([batch.rows for batch in batches]))
    sizes: Any = jax.jit(step, donate_argnums=0).lower(shapes, *given).compile().memory_analysis()
    # The new state lies where the old one was.
    new = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + new
