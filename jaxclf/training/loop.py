"""Train a config in a run directory: the only place where order in time matters."""

import collections
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.config import Config, Loader, Watching
from jaxclf.data.order import Batch
from jaxclf.devices.cluster import Stops, require_same, require_shared, together
from jaxclf.devices.preemption import Requests
from jaxclf.errors import Stopped, one_line
from jaxclf.storage import location
from jaxclf.training.assignment import assigned
from jaxclf.training.checkpoint import Checkpoints
from jaxclf.training.parallel import train_steps
from jaxclf.training.recovery import Diverged
from jaxclf.training.run import Run, opened
from jaxclf.training.run_directory import Result, RunDirectory
from jaxclf.training.setup import IN_THREADS, Setup, set_up
from jaxclf.training.sinks import require_sinks
from jaxclf.training.sorting import sorted_for
from jaxclf.training.step import Program, TrainState
from jaxclf.training.weights import with_preprocessing

A_HEARTBEAT = Watching()
"""A run is watched by its heartbeat alone."""
Advance = Callable[[Program, TrainState, Batch], TrainState]
"""Takes the steps of a dispatch; the state given is consumed."""


def train(
    config: Config,
    workdir: str | os.PathLike[str],
    *,
    loader: Loader = IN_THREADS,
    devices: int | None = None,
    watching: Watching = A_HEARTBEAT,
    extend: bool = False,
    quiet: bool = False,
) -> Result:
    """Train a config in a directory, or go on where a run of the same config stopped there.

    Stopped at any moment (kill -9 included) and called again, a run ends with the same bits as one that was never
    stopped: parameters, optimiser, metrics.jsonl. A complete run returns its result at once. `loader` says what reads a
    streamed data set; it changes no bit, and no thread or process of it outlives the call. `devices` of each process
    share every batch, None for all; processes that `jax.distributed` has connected train one run together, in a
    directory that all of them see. `watching` says what is seen of it meanwhile. `extend` lets a run in `workdir` have
    more epochs than it had: it goes on from its last checkpoint under the schedule of the new length, and
    segments.jsonl records it.

    Raises `UsageError`, before anything is compiled, for a config that cannot work and for a directory that cannot
    be written or holds another config or a run on other images; `RunError` when the loss is no number any more, an
    image cannot be read, a reading process ends, the disk is full, or no checkpoint can be read; and of these `Stopped`
    after SIGTERM, SIGINT or a maintenance notice, when a checkpoint of that moment is written.
    """
    together(lambda: require_sinks(watching))
    fields = [(f"{section}.{name}", value) for section, own in config.to_dict().items() for name, value in own.items()]
    require_same("fields of the config", dict(fields))
    place = together(lambda: location(workdir))
    config = together(lambda: with_preprocessing(config, place))
    with (
        together(lambda: set_up(config, loader, devices)) as setup,
        together(lambda: RunDirectory(place, config, layout=setup.layout, extend=extend)) as directory,
    ):
        require_shared(directory.path)
        if (done := together(directory.result)) is not None:
            return done
        try:
            with (
                Checkpoints(directory.path / "checkpoints") as checkpoints,
                Requests() as requests,
                opened(setup, directory, checkpoints, watching, quiet=quiet, requests=requests) as (run, state),
            ):
                return run.finish(_train_run(run, state))
        except jax.errors.JaxRuntimeError as error:
            if setup.layout.hosts == 1:
                raise
            raise Stopped(f"lost another process of the run ({one_line(error)}); start all of them again") from error


def _train_run(run: Run, state: TrainState) -> TrainState:
    """Return the state after the last step; after divergence the run goes back as often as it may."""

    def advance(program: Program, state: TrainState, batch: Batch) -> TrainState:
        return train_steps(program, state, batch.images, batch.labels, batch.rows, batch.examples)

    if not run.setup.total_steps:
        return run.untrained(state)
    assert run.stops is not None
    loop = Loop(run, advance, run.stops)
    while True:
        seed = int(state.seed)  # steps consume the state
        try:
            return loop.train(state)
        except Diverged as error:
            state = run.go_back(error, seed)


@runtime_checkable
class _Training(Protocol):
    """A `Run`, whose methods say what they are for, or a `Stack` of them (stack.py), as the loop sees it."""

    @property
    def setup(self) -> Setup: ...
    def batches(self, seed: jax.Array, step: int, drain: Callable[[], object]) -> Iterator[Batch]: ...
    def resume(self) -> None: ...
    def pause(self, doing: str) -> None: ...
    def dispatched(self, steps: int, images: int) -> None: ...
    def check(self, bad_step: jax.Array) -> None: ...
    def save(self, state: TrainState) -> None: ...
    def catch_up(self, state: TrainState) -> TrainState: ...
    def finish_epoch(self, state: TrainState) -> TrainState: ...


class Loop:
    """Takes the steps of a run, with the host a few dispatches ahead of the devices."""

    def __init__(self, run: _Training, advance: Advance, stops: Stops) -> None:
        """Train what `run` reads by `advance`, and stop when it is asked for."""
        self._run, self._advance, self._stops = run, advance, stops
        self._compiled: set[tuple[Program, int, int]] = set()  # programs, steps and images of dispatches

    def train(self, state: TrainState) -> TrainState:
        """Return the state after the last step; raises `Diverged`, and `Stopped` when asked to stop."""
        state = self._run.catch_up(state)
        while (step := steps_done(state)) < self._run.setup.total_steps:
            state = sorted_for(self._run.setup, assigned(self._run.setup, state, step), step)
            state = self._run.finish_epoch(self._train_epoch(state, step))
        return state

    def _train_epoch(self, state: TrainState, step: int) -> TrainState:
        """Take the rest of the epoch's steps from wherever the state is, saving on the way as the config asks."""
        run, setup, ahead = self._run, self._run.setup, Ahead(self._run)
        per_epoch, every = setup.program.timeline.steps_per_epoch, setup.config.run.checkpoint_every
        batches = run.batches(state.seed, step, ahead.drain)
        run.resume()
        for batch in batches:
            program = setup.program_of(step)
            new = (dispatch := (program, batch.steps, batch.size)) not in self._compiled  # it may compile
            with ahead.clocks_stopped("compilation") if new else contextlib.nullcontext():
                state = self._advance(program, state, batch)
                ahead.add(state, batch)
                ahead.drain(keep=0 if new else setup.layout.ahead)
            self._compiled.add(dispatch)
            step += batch.steps
            if ahead.diverged:
                run.check(state.bad_step)
            inside = step % per_epoch  # the end of an epoch is saved behind its evaluation, which a stop ends, too
            stop = self._stops.asked() and inside
            if stop or (every and inside and step // every > (step - batch.steps) // every):
                with ahead.clocks_stopped("saving"):
                    run.check(state.bad_step)
                    run.save(state)
            if stop:
                self._stop(state, step)
        ahead.drain()
        run.pause("evaluation")
        run.check(state.bad_step)
        return state

    def _stop(self, state: TrainState, step: int) -> NoReturn:
        """End a run that was asked to stop, when its checkpoint is whole."""
        self._run.check(state.bad_step)
        raise Stopped(f"stopped at step {step} by {self._stops.by}; the same command goes on from there")


class Ahead:
    """The dispatches that the host is ahead of the devices.

    Enough of them keep the devices busy; with few, divergence and requests to stop are met soon.
    """

    def __init__(self, run: _Training) -> None:
        """Begin with none."""
        self._run, self._under_way = run, collections.deque[tuple[jax.Array, Batch]]()
        self.diverged = False
        """Whether the loss or an update of one that is finished was not finite."""

    def add(self, state: TrainState, batch: Batch) -> None:
        """Add the dispatch that gives `state`, which the next one consumes."""
        self._under_way.append((jnp.copy(state.bad_step), batch))

    def drain(self, keep: int = 0) -> None:
        """Wait for all but the newest `keep`."""
        while len(self._under_way) > keep:
            bad_step, batch = self._under_way.popleft()
            self.diverged |= bool(np.any(bad_step))
            self._run.dispatched(batch.steps, batch.steps * batch.size)

    @contextlib.contextmanager
    def clocks_stopped(self, doing: str) -> Iterator[None]:
        """Wait for the devices, and stop all clocks for what is done inside."""
        self.drain()
        self._run.pause(doing)
        yield
        self._run.resume()


def steps_done(state: TrainState) -> int:
    """Return the number of steps behind a state; stacked runs have it in common."""
    [step] = set(np.atleast_1d(np.asarray(state.step)).tolist())
    return step
