"""Train and evaluate a config in a run directory: the only place where order in time matters."""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.config import Config, Loader, RunConfig, Watching
from jaxclf.data import pipeline
from jaxclf.data.order import Batch, Fault, Order, reseeded
from jaxclf.devices.cluster import Votes, gather, together
from jaxclf.devices.preemption import Requests
from jaxclf.errors import RunError, Stopped, UsageError
from jaxclf.models.torch_weights import transfer_torch
from jaxclf.training import losses
from jaxclf.training.checkpoint import Checkpoints, first_line, state_digest
from jaxclf.training.parallel import recalibrate_step, stacked_steps, train_steps
from jaxclf.training.progress import Progress
from jaxclf.training.run_directory import Result, RunDirectory, per_class
from jaxclf.training.schedules import learning_rate
from jaxclf.training.setup import IN_THREADS, Setup, set_up
from jaxclf.training.step import Program, TrainState, eval_step
from jaxclf.training.watch import Watch, check
from jaxclf.training.weights import read_state_dict

Workdir = str | os.PathLike[str]
Which = Literal["last", "best"]
Row = dict[str, Any]
A_HEARTBEAT = Watching()
"""A run is watched by its heartbeat alone."""


class Diverged(RunError):
    """A loss or an update that is not finite, or a loss above run.max_loss."""

    def __init__(self, text: str, step: int) -> None:
        """Keep the step (from 1) beside the text."""
        super().__init__(text)
        self.step = step


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """A run in progress, by itself or stacked with others (stack.py), which share its device and its program."""

    setup: Setup
    directory: RunDirectory
    checkpoints: Checkpoints
    progress: Progress
    watch: Watch
    requests: Requests
    votes: Votes
    rows: list[Row]
    """metrics.jsonl so far."""
    faults: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Images that this process has skipped and the run directory does not name yet."""
    shapes: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    """Steps and images of the dispatches that are compiled."""

    def run_clocks(self) -> None:
        """Let the clocks run; the devices must be idle."""
        self.watch.resume()
        self.progress.run_clock()

    def stop_clocks(self, doing: str) -> None:
        """Stop the clocks for something that is no step; the devices must be idle."""
        self.progress.stop_clock()
        self.watch.pause(doing)


Runs = Sequence[Session]
"""One, or those that are stacked; they stand at one step."""
States = list[TrainState]
"""Of the runs, in their order."""


class Ahead:
    """The dispatches that the host is ahead of the devices.

    Enough of them keep the devices busy; with few, divergence and requests to stop are met soon.
    """

    def __init__(self, runs: Runs) -> None:
        """Begin with none."""
        self._runs, self._under_way = runs, collections.deque()
        self.diverged = False
        """Whether the loss or an update of one that is finished was not finite."""

    def add(self, states: States, batch: Batch) -> None:
        """Add the dispatch that gives `states`, which the next one consumes."""
        self._under_way.append(([jnp.copy(state.bad_step) for state in states], batch))

    def drain(self, keep: int = 0) -> None:
        """Wait for all but the newest `keep`."""
        while len(self._under_way) > keep:
            bad_steps, batch = self._under_way.popleft()
            self.diverged |= any(map(bool, bad_steps))
            for run in self._runs:
                run.watch.dispatched(batch.steps, batch.steps * batch.size)

    @contextlib.contextmanager
    def clocks_stopped(self, doing: str) -> Iterator[None]:
        """Wait for the devices, and stop all clocks for what is done inside."""
        self.drain()
        for run in self._runs:
            run.stop_clocks(doing)
        yield
        for run in self._runs:
            run.run_clocks()


def train(
    config: Config,
    workdir: Workdir,
    *,
    loader: Loader = IN_THREADS,
    devices: int | None = None,
    watching: Watching = A_HEARTBEAT,
    quiet: bool = False,
) -> Result:
    """Train a config in a directory, or go on where a run of the same config stopped there.

    Stopped at any moment (kill -9 included) and called again, a run ends with the same bits as one that was never
    stopped: parameters, optimiser, metrics.jsonl. A complete run returns its result at once. `loader` says what reads a
    streamed data set; it changes no bit, and no thread or process of it outlives the call. `devices` of each process
    share every batch, None for all; processes that `jax.distributed` has connected train one run together, in a
    directory that all of them see. `watching` says what is seen of it meanwhile.

    Raises `UsageError`, before anything is compiled, for a config that cannot work and for a directory that cannot
    be written or holds another config or a run on other images; `RunError` when the loss is no number any more, an
    image cannot be read, a reading process ends, the disk is full, or no checkpoint can be read; and of these `Stopped`
    after SIGTERM, SIGINT or a maintenance notice, when a checkpoint of that moment is written.
    """
    together(lambda: check(watching))
    with (
        together(lambda: set_up(config, loader, devices)) as setup,
        together(lambda: RunDirectory(workdir, config, layout=setup.layout)) as directory,
    ):
        if (done := together(directory.result)) is not None:
            return done
        try:
            with (
                Checkpoints(directory.path / "checkpoints") as checkpoints,
                Requests() as requests,
                opened(setup, directory, checkpoints, requests, watching, quiet=quiet) as (run, state),
            ):
                return run_all([run], [state])[0]
        except jax.errors.JaxRuntimeError as error:
            if setup.layout.hosts == 1:
                raise
            raise Stopped(f"lost another process of the run ({first_line(error)}); start all of them again") from error


@contextlib.contextmanager
def opened(
    setup: Setup,
    directory: RunDirectory,
    checkpoints: Checkpoints,
    requests: Requests,
    watching: Watching,
    *,
    quiet: bool,
) -> Iterator[tuple[Session, TrainState]]:
    """Begin a run in its directory, or go on with it there: yield it, watched, and the state to go on from."""
    together(lambda: directory.write_data(setup.images()))
    config, state, rows = setup.config, setup.init_state(), []
    if checkpoints.steps():
        state, rows = _newest(setup, directory, checkpoints)
    elif config.model.weights is not None:
        state = _from_weights(setup, state, config.model.weights, quiet=quiet)
    if not rows and (directory.path / "damaged_checkpoints").exists() and not checkpoints.steps():
        _warn(f"every checkpoint of {directory.path} was damaged and set aside; starting again from step 0")
    title, place = config.run_id(), {"step": int(state.step), "steps": setup.total_steps}
    quiet = quiet or setup.layout.rank > 0
    with Progress(title, epochs=config.run.epochs, **place, quiet=quiet) as progress, contextlib.ExitStack() as stack:
        given = {"config": config, **place, "say": progress.say}
        watch = Watch(watching, directory.path, **given, active=setup.layout.rank == 0)
        together(lambda: stack.enter_context(watch))
        progress.say(f"{title}: {setup.header()}")
        yield Session(setup, directory, checkpoints, progress, watch, requests, Votes(setup.layout), rows), state


def run_all(runs: Runs, states: States) -> list[Result]:
    """Train to the last step and complete the run directories; the states given are consumed."""
    states = _train(runs, states)
    return [_finish(run, state) for run, state in zip(runs, states, strict=True)]


def _finish(session: Session, state: TrainState) -> Result:
    """Evaluate the last state on the test images, and complete the run directory."""
    setup, directory = session.setup, session.directory
    session.checkpoints.settle()
    test = _evaluate(setup, state, "test", session)
    _note(session, "test", test.faults)
    _report(session)
    directory.write_predictions(test.labels, test.predictions)
    result = _result(setup, directory, state, test, session.progress.images_per_second)
    directory.write("result.json", result.to_json())
    return result


def _newest(setup: Setup, directory: RunDirectory, checkpoints: Checkpoints) -> tuple[TrainState, list[Row]]:
    """Return the state of the newest checkpoint that can be read, and the metric rows until there."""
    state, count = checkpoints.restore(setup.init_state(), step=None, warn=_warn)
    return setup.layout.whole(state, training=True), directory.rows(count)


def _train(runs: Runs, states: States) -> States:
    """Return the states after the last step; a run by itself goes back after divergence as often as it may."""
    setup, number = runs[0].setup, 0
    while int(states[0].step) < setup.total_steps:
        seed = int(states[0].seed)  # steps consume the state
        try:
            states = _finish_epochs(runs, _train_epoch(runs, states))
        except Diverged as error:
            number = 1 + max(number, _rollbacks(setup.config.run, seed))
            if number > setup.config.run.rollbacks:
                raise RunError(str(error)) from error
            [run] = runs
            states = [_go_back(run, error, number)]
    return states


def _rollbacks(run: RunConfig, seed: int) -> int:
    """Return how many times a run had gone back when its state had this seed."""
    return next(number for number in range(run.rollbacks + 1) if reseeded(run.seed, number) == seed)


def _go_back(session: Session, error: Diverged, number: int) -> TrainState:
    """Return the last good state, or that before the first step, with the seed of the `number`-th other draws."""
    setup, kept = session.setup, session.checkpoints
    kept.settle()
    state, rows = _newest(setup, session.directory, kept) if kept.steps() else (setup.init_state(), [])
    session.rows[:] = rows
    seed = reseeded(setup.config.run.seed, number)
    record = {"number": number, "diverged": error.step, "back_to": int(state.step), "seed": seed}
    session.directory.write_rollback(record)
    session.watch.go_back(record["back_to"])
    of = f"{number} of at most {setup.config.run.rollbacks}"
    _warn(f"{error}; going back to step {int(state.step)}, with other draws from there on ({of})")
    return state.replace(seed=setup.layout.whole(jnp.asarray(seed, jnp.uint32), training=True))


def evaluate(
    config: Config,
    workdir: Workdir,
    *,
    checkpoint: Which = "last",
    loader: Loader = IN_THREADS,
    devices: int | None = None,
) -> Result:
    """Evaluate the last or best checkpoint of a run on the test images; writes nothing. `devices` is as in `train`.

    "best" is the best on these very images: a diagnosis, not a result to report.
    Raises `UsageError` for a directory without checkpoints and for one of another config.
    """
    with (
        together(lambda: set_up(config, loader, devices)) as setup,
        together(lambda: RunDirectory(workdir, config, create=False, layout=setup.layout)) as directory,
    ):
        state = restore(setup, directory, checkpoint=checkpoint)
        test = _evaluate(setup, state, "test")
        for fault in test.faults:
            _warn(fault.error)
        return _result(setup, directory, state, test, images_per_second=0.0)


def restore(setup: Setup, directory: RunDirectory, *, checkpoint: Which = "last") -> TrainState:
    """Return the state of a run's last or best checkpoint; `UsageError` where there is none."""
    with Checkpoints(directory.path / "checkpoints") as checkpoints:
        step = max(checkpoints.steps(), default=None) if checkpoint == "last" else checkpoints.best_step()
        if step is None:
            raise UsageError(f"{directory.path} has no {checkpoint} checkpoint; train into it first")
        state = checkpoints.restore(setup.init_state(), step=step, warn=_warn)[0]
    return setup.layout.whole(state, training=True)


def _from_weights(setup: Setup, state: TrainState, file: str, *, quiet: bool) -> TrainState:
    """Return the state with the backbone (and the head, if it fits) of a weight file, and say what was taken."""
    variables, sentences = transfer_torch(setup.program.model, state.variables, read_state_dict(file))
    for sentence in sentences if not quiet else ():
        print(f"{file}: {sentence}")
    variables = setup.layout.whole(jax.tree.map(np.asarray, variables), training=True)
    return state.replace(**{name: variables.get(name, {}) for name in ("params", "batch_stats", "fixed")})


def _train_epoch(runs: Runs, states: States) -> States:
    """Take the rest of the epoch's steps from wherever the states are, saving on the way as the config asks."""
    first, ahead = runs[0], Ahead(runs)
    setup, step = first.setup, int(states[0].step)
    per_epoch, every = setup.program.timeline.steps_per_epoch, setup.config.run.checkpoint_every
    streams = [_train_batches(run, state, step) for run, state in zip(runs, states, strict=True)]
    for run in runs:
        run.run_clocks()
    while batches := _next(runs, streams):
        for run, own in zip(runs, batches, strict=True):
            _note(run, "train", own.faults)
        batch = batches[0]
        first.watch.dispatching(step + 1, step + batch.steps, ahead.drain)
        new = (batch.steps, batch.size) not in first.shapes  # it may compile
        with ahead.clocks_stopped("compilation") if new else contextlib.nullcontext():
            states = _take_steps(setup.program, states, batches)
            ahead.add(states, batch)
            ahead.drain(keep=0 if new else setup.layout.ahead)
        first.shapes.add((batch.steps, batch.size))
        step += batch.steps
        for run in runs:
            run.progress.count(0 if new else batch.steps * batch.size)
            run.progress.at(step)
        if ahead.diverged:
            _check_all(runs, states)
        inside = step % per_epoch  # the end of an epoch is saved behind its evaluation, and a stop waits for that
        stop = first.votes.stop(first.requests.reason is not None) and inside
        if stop or (every and inside and step // every > (step - batch.steps) // every):
            with ahead.clocks_stopped("saving"):
                _check_all(runs, states)
                for run, state in zip(runs, states, strict=True):
                    _save(run, state)
        if stop:
            _stop(runs, step)
    ahead.drain()
    for run in runs:
        run.stop_clocks("evaluation")
    return states


def _train_batches(session: Session, state: TrainState, step: int) -> Iterator[Batch]:
    setup = session.setup
    return iter(_or_say_what_is_kept(setup.data.train_batches(_order(setup, state), step, setup.group), session))


def _next(runs: Runs, streams: Sequence[Iterator[Batch]]) -> list[Batch]:
    """Return the next batch of each run; none at the end of the epoch, which all have together."""
    with contextlib.ExitStack() as waiting:
        for run in runs:
            waiting.enter_context(run.watch.waiting())
        batches = [next(stream, None) for stream in streams]
    return [batch for batch in batches if batch is not None]


def _take_steps(program: Program, states: States, batches: Sequence[Batch]) -> States:
    """Take the steps of a dispatch in every run; the states given are consumed."""
    batch = batches[0]
    if len(states) == 1:
        return [train_steps(program, states[0], batch.images, batch.labels, batch.rows, batch.examples)]
    return stacked_steps(program, states, batch.images, batch.labels, np.stack([own.rows for own in batches]))


def _check_all(runs: Runs, states: States) -> None:
    """Stop if a run has diverged, and wait for what was saved; asked before any run saves.

    So every checkpoint is a good one, and the newest of stacked runs are of one step or of two that follow each other.
    """
    for run, state in zip(runs, states, strict=True):
        _check_finite(run, state)
    for run in runs:
        run.checkpoints.settle()


def _order(setup: Setup, state: TrainState) -> Order:
    """Return the order of the images that the state's seed gives."""
    return dataclasses.replace(setup.order, seed=int(state.seed))


def _stop(runs: Runs, step: int) -> NoReturn:
    """End runs that were asked to stop, when their checkpoints are whole."""
    for run in runs:
        run.checkpoints.settle()
    asked = runs[0].requests.reason or "another process of the run"
    raise Stopped(f"stopped at step {step} by {asked}; the same command goes on from there")


def _or_say_what_is_kept(batches: Iterator[Batch], session: Session | None) -> Iterator[Batch]:
    """Yield the batches; where reading them fails, the error also says what is kept of the run, if there is one."""
    try:
        yield from batches
    except RunError as error:
        raise RunError(f"{error}; {_kept(session)}" if session else str(error)) from error


def _note(session: Session, split: str, faults: tuple[Fault, ...]) -> None:
    """Remember images that were skipped; a process that is alone also says so at once."""
    session.faults.extend({"split": split, **fault._asdict()} for fault in faults)
    if faults and session.setup.layout.hosts == 1:
        _report(session)


def _report(session: Session) -> None:
    """Say once of every image that was skipped, by any process, that it was, and keep it in the run directory."""
    if session.setup.config.data.on_error != "skip":
        return
    everyone = [fault for said in gather(json.dumps(session.faults)) for fault in json.loads(said)]
    session.faults.clear()
    known = {(row["split"], row["index"]) for row in session.directory.skipped()}
    new = {(row["split"], row["index"]): row for row in everyone if (row["split"], row["index"]) not in known}
    for row in new.values():
        _warn(f"skipped: {row['error']}")
    if new:
        session.directory.write_skipped([*session.directory.skipped(), *new.values()])


def _recalibrate(session: Session, state: TrainState) -> TrainState:
    """Average BatchNorm's statistics over `run.recalibrate` batches after the last step; the state itself before."""
    setup, config = session.setup, session.setup.config
    total, number = setup.total_steps, 0
    if int(state.step) < total or not state.batch_stats:
        return state
    while number < config.run.recalibrate:  # an epoch of batches at a time, from behind the last one
        batches = setup.data.train_batches(_order(setup, state), total + number, 1)
        batches = itertools.islice(batches, config.run.recalibrate - number)
        for batch in _or_say_what_is_kept(batches, session):
            _note(session, "train", batch.faults)
            number += 1
            given = (batch.images, batch.labels, batch.rows, number, batch.examples)
            state = recalibrate_step(setup.program, state, *given)
            if not setup.layout.ahead:
                jax.block_until_ready(state)
    return state


def _finish_epochs(runs: Runs, states: States) -> States:
    """Complete an epoch of every run."""
    states = [_recalibrate(run, state) for run, state in zip(runs, states, strict=True)]
    _check_all(runs, states)
    return [_finish_epoch(run, state) for run, state in zip(runs, states, strict=True)]


def _finish_epoch(session: Session, state: TrainState) -> TrainState:
    """Evaluate if it is due, write the epoch's metric row, then the checkpoint that counts it.

    In this order: a kill between the two means that the row is computed and written once more, never that it is lost.
    """
    setup, run, step = session.setup, session.setup.config.run, int(state.step)
    program, split = setup.program, pipeline.evaluated(setup.data)
    epoch = step // program.timeline.steps_per_epoch
    due, train, held_out = epoch == run.epochs or epoch % run.eval_every == 0, losses.means(state.sums), {}
    if due:
        evaluated = _evaluate(setup, state, split, session)
        held_out = evaluated.metrics
        _note(session, split, evaluated.faults)
    _report(session)
    row = {"epoch": epoch, "step": step, "lr": learning_rate(program.optim, program.timeline, step - 1)}
    row |= {f"train_{name}": train[name] for name in ("loss", "top1")}
    row |= {f"{split}_{name}": held_out.get(name) for name in ("loss", "top1", "top5")}
    row |= {f"train_{name}": float(state.sums[name]) / program.timeline.steps_per_epoch for name in program.terms}
    session.rows.append(row)
    try:
        session.directory.write_rows(session.rows)
    except RunError as error:
        raise RunError(f"step {step}: {error}; {_kept(session)}") from error
    session.watch.epoch(row)
    session.progress.epoch(row, split, skipped=len(session.directory.skipped()))
    state = state.replace(sums=setup.layout.whole(losses.zeros(terms=program.terms), training=True))
    if due or (run.checkpoint_every and step % run.checkpoint_every == 0):
        _save(session, state, top1=held_out.get("top1"))
    return state


def _save(session: Session, state: TrainState, *, top1: float | None = None) -> None:
    session.checkpoints.save(state, rows=len(session.rows), top1=top1)


def _check_finite(session: Session, state: TrainState) -> None:
    """Stop a run that has diverged."""
    if bad := int(state.bad_step):
        config, what = session.setup.config, "loss or update is not finite"
        if config.run.max_loss is not None:
            what += f" or the loss above {config.run.max_loss:g}"
        raise Diverged(f"step {bad}: {what} (lr {config.optim.lr:g}); {_kept(session)}", bad)


def _kept(session: Session) -> str:
    """Say what a run that stops leaves."""
    session.checkpoints.settle()
    steps = session.checkpoints.steps()
    last = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint before it"
    return f"{last} in {session.checkpoints.directory}"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A split's answers, each image counted once."""

    metrics: dict[str, float]
    labels: np.ndarray
    """int32 [n], in the data set's order; -1 for an image that was skipped."""
    predictions: np.ndarray
    """Predicted classes int32 [n]; -1 for an image that was skipped."""
    faults: tuple[Fault, ...]


def _evaluate(setup: Setup, state: TrainState, split: str, session: Session | None = None) -> Evaluation:
    """Evaluate on a split; the session is for the error of an image that cannot be read."""
    count, parts, faults = setup.data.sizes[split], [], []
    size = min(setup.config.data.eval_batch_size, count)
    batches = setup.data.eval_batches(split, size + -size % setup.layout.devices)
    program = dataclasses.replace(setup.program, spread=setup.layout.spread())
    if setup.layout.training_mesh is not setup.layout.mesh:
        state = setup.layout.whole(state)
    for batch in _or_say_what_is_kept(batches, session):
        parts.append(eval_step(program, state, batch.images, batch.labels, batch.rows, batch.mask))
        if not setup.layout.ahead:
            jax.block_until_ready(parts[-1])
        faults += batch.faults
    sums, answers = zip(*jax.device_get(parts), strict=True)
    total = {name: sum(part[name].item() for part in sums) for name in losses.zeros()}
    if not total["count"]:
        raise RunError(f"no image of {split} could be read, the first of them: {faults[0].error}")
    labels, predictions = (np.concatenate(values)[:count] for values in zip(*answers, strict=True))
    return Evaluation(losses.means(total), labels, predictions, tuple(faults))


def _result(
    setup: Setup, directory: RunDirectory, state: TrainState, test: Evaluation, images_per_second: float
) -> Result:
    names = {"trainable": state.params, "fixed": state.fixed, "statistics": state.batch_stats}
    return Result(
        **test.metrics,
        per_class=per_class(test.labels, test.predictions, len(setup.data.class_names)),
        step=int(state.step),
        parameters={name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in names.items()},
        sha256=state_digest(state),
        images_per_second=images_per_second,
        workdir=str(directory.path),
        skipped=len(directory.skipped()),
        rollbacks=len(directory.rollbacks()),
    )


def _warn(text: str) -> None:
    if jax.process_index() == 0:
        warnings.warn(text, stacklevel=3)
