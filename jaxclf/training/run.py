"""One run in its directory: it reads its batches and, as the loop tells it, watches, evaluates, writes and saves."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.config import Watching
from jaxclf.data import pipeline
from jaxclf.data.order import Batch, Fault
from jaxclf.data.stream import Stream
from jaxclf.data.transforms import pil_filter, resize_side
from jaxclf.devices.cluster import Stops, gather, require_same, together, warn
from jaxclf.devices.preemption import Requests
from jaxclf.errors import RunError, Stopped
from jaxclf.models.torch_weights import transfer_torch
from jaxclf.training import losses, recovery
from jaxclf.training.checkpoint import COLLECTIONS, Checkpoints
from jaxclf.training.collapse import MEASURES
from jaxclf.training.evaluation import (
    Evaluation,
    Interrupted,
    evaluate_split,
    measure_collapse,
    recalibrated,
    result_of,
)
from jaxclf.training.progress import Progress
from jaxclf.training.recovery import Diverged
from jaxclf.training.run_directory import Result, Rows, RunDirectory
from jaxclf.training.schedules import learning_rate
from jaxclf.training.setup import Setup
from jaxclf.training.step import TrainState
from jaxclf.training.watch import Watch, utc
from jaxclf.training.weights import read_state_dict


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run in progress."""

    setup: Setup
    directory: RunDirectory
    checkpoints: Checkpoints
    progress: Progress
    watch: Watch
    rows: Rows
    """Rows of metrics.jsonl so far."""
    stops: Stops | None = None
    """Requests that end an evaluation early; None: it goes on to its end."""
    began: float | None = None
    """Clock at the start of a run that has no step behind it."""
    faults: Rows = dataclasses.field(default_factory=list)
    """Images that this process has skipped and the run directory does not name yet."""

    def batches(self, seed: jax.Array, step: int, drain: Callable[[], object]) -> Iterator[Batch]:
        """Yield the training batches from a step to the end of its epoch, in the order that the seed gives.

        A trace begins and ends between two of them: then `drain` is called, which waits until the devices are idle.
        """
        for batch in self._read(int(seed), step, self.setup.group):
            self.watch.dispatching(step + 1, step + batch.steps, drain)
            step += batch.steps
            yield batch

    def _read(self, seed: int, step: int, group: int) -> Iterator[Batch]:
        batches = self.setup.data.train_batches(dataclasses.replace(self.setup.order, seed=seed), step, group)
        while True:
            with self.watch.waiting(), self._saying_what_is_kept():
                batch = next(batches, None)
            if batch is None:
                return
            self._note("train", batch.faults)
            yield batch

    def resume(self) -> None:
        """Let the clocks run; the devices must be idle."""
        self.watch.resume()
        self.progress.resume()

    def pause(self, doing: str) -> None:
        """Stop the clocks for something that is no step; the devices must be idle."""
        self.progress.pause()
        self.watch.pause(doing)

    def dispatched(self, steps: int, images: int) -> None:
        """Count the steps of one more dispatch, which is finished."""
        self.watch.dispatched(steps, images)
        self.progress.dispatched(steps, images)

    def check(self, bad_step: jax.Array) -> None:
        """Raise `Diverged` after a bad step; else wait until the last checkpoint is whole: so every one is good."""
        if bad := int(bad_step):
            config, what = self.setup.config, "loss or update is not finite"
            if config.run.max_loss is not None:
                what += f" or the loss above {config.run.max_loss:g}"
            raise Diverged(f"step {bad}: {what} (lr {config.optim.lr:g}); {self._kept()}", bad)
        self.checkpoints.settle()

    def save(self, state: TrainState, *, top1: float | None = None) -> None:
        """Begin to write a checkpoint."""
        self.checkpoints.save(state, rows=len(self.rows), top1=top1)

    def is_unevaluated(self, step: int) -> bool:
        """Tell whether the run was stopped in the evaluation behind a step."""
        epoch, inside = divmod(step, self.setup.program.timeline.steps_per_epoch)
        return not inside and len(self.rows) < epoch

    def catch_up(self, state: TrainState) -> TrainState:
        """Finish the epoch of a state that a run was stopped in the evaluation of."""
        if not self.is_unevaluated(int(state.step)):
            return state
        state = self.finish_epoch(state)
        self.checkpoints.settle()
        recovery.forget_unevaluated(self.directory)
        return state

    def finish_epoch(self, state: TrainState) -> TrainState:
        """Complete an epoch; where a request to stop comes meanwhile, keep the state as it is and raise `Stopped`."""
        try:
            return self._complete(state)
        except Interrupted as error:
            self.checkpoints.settle()
            recovery.keep_unevaluated(self.directory, state, rows=len(self.rows))
            raise self._stopped(int(state.step)) from error

    def _stopped(self, step: int) -> Stopped:
        assert self.stops is not None
        return Stopped(f"stopped in the evaluation behind step {step} by {self.stops.by}; the same command goes on")

    def _complete(self, state: TrainState) -> TrainState:
        """Evaluate if it is due, write the epoch's metric row, then the checkpoint that counts it.

        In this order: a kill between the two means that the row is computed and written once more, never that it is
        lost. After the last step, BatchNorm's statistics are averaged anew first, if run.recalibrate asks for it.
        """
        setup, run, step = self.setup, self.setup.config.run, int(state.step)
        per_epoch, split = setup.program.timeline.steps_per_epoch, pipeline.evaluated(setup.data)
        epoch = step // per_epoch
        if epoch == run.epochs and state.batch_stats:
            state = self._recalibrated(state)
        due = epoch == run.epochs or epoch % run.eval_every == 0
        held_out = self._evaluated(state, split).metrics if due else {}
        measured = {part: self._measured(state, part) if due else {} for part in ("train", split) if run.collapse}
        self._report()
        program, train = setup.program, losses.means(state.sums)
        row = {"epoch": epoch, "step": step, "lr": learning_rate(program.optim, program.timeline, step - 1)}
        row |= {f"train_{name}": train[name] for name in ("loss", "top1")}
        row |= {f"{split}_{name}": held_out.get(name) for name in ("loss", "top1", "top5")}
        row |= {f"train_{name}": float(state.sums[name]) / per_epoch for name in program.terms}
        row |= {f"{part}_{name}": found.get(name) for part, found in measured.items() for name in MEASURES}
        self.rows.append(row)
        with self._saying_what_is_kept(f"step {step}: "):
            self.directory.write_rows(self.rows)
        self.watch.epoch(row)
        self.progress.epoch(row, split, skipped=len(self.directory.skipped()))
        state = state.replace(sums=setup.layout.whole(losses.zeros(terms=program.terms), training=True))
        if due or (run.checkpoint_every and step % run.checkpoint_every == 0):
            self.save(state, top1=held_out.get("top1"))
        return state

    def untrained(self, state: TrainState) -> TrainState:
        """Return the state of a run of no epochs, saved; run.recalibrate averages BatchNorm's statistics anew first."""
        if state.batch_stats:
            state = self._recalibrated(state)
        self.save(state)
        return state

    def finish(self, state: TrainState) -> Result:
        """Evaluate the last state on the test images, and complete the run directory."""
        self.checkpoints.settle()
        plain = None
        try:
            test = self._evaluated(state, "test")
            if state.average:
                trained = state.replace(average={name: getattr(state, name) for name in state.average})
                plain = self._evaluated(trained, "test").metrics["top1"]
        except Interrupted as error:
            raise self._stopped(int(state.step)) from error
        self._report()
        self.directory.write_predictions(test.labels, test.predictions)
        result = result_of(self.setup, self.directory, state, test, self.progress.images_per_second)
        seconds = None if self.began is None else time.perf_counter() - self.began
        result = dataclasses.replace(result, finished=utc(time.time()), seconds=seconds, plain_top1=plain)
        self.directory.write("result.json", result.to_json())
        return result

    def go_back(self, error: Diverged, seed: int) -> TrainState:
        """Return the state to go on from after divergence under a seed; `RunError` if there may be none."""
        state, self.rows[:] = recovery.go_back(self.setup, self.directory, self.checkpoints, error, seed)
        self.watch.go_back(int(state.step))
        self.progress.go_back(int(state.step))
        return state

    def _evaluated(self, state: TrainState, split: str) -> Evaluation:
        with self._saying_what_is_kept():
            evaluation = evaluate_split(self.setup, state, split, self._stop)
        self._note(split, evaluation.faults)
        return evaluation

    def _measured(self, state: TrainState, split: str) -> dict[str, float]:
        with self._saying_what_is_kept():
            return measure_collapse(self.setup, state, split, self._stop)

    def _recalibrated(self, state: TrainState) -> TrainState:
        """Average BatchNorm's statistics over `run.recalibrate` batches from behind the last step."""
        seed = int(state.seed)
        wanted = self.setup.config.run.recalibrate
        if self.setup.layout.replicas and wanted:  # pmap consumes what it is given, which a stop would have to keep
            state = jax.tree.map(jnp.copy, state)
        return recalibrated(self.setup, state, wanted, lambda step: self._read(seed, step, 1), self._stop)

    def _stop(self) -> bool:
        return self.stops is not None and self.stops.asked()

    def _note(self, split: str, faults: tuple[Fault, ...]) -> None:
        """Remember images that were skipped; a process that is alone also says so at once."""
        self.faults.extend({"split": split, **fault._asdict()} for fault in faults)
        if faults and self.setup.layout.hosts == 1:
            self._report()

    def _report(self) -> None:
        """Say once of every image that was skipped, by any process, that it was, and keep it in the run directory."""
        if self.setup.config.data.on_error != "skip":
            return
        everyone = [fault for said in gather(json.dumps(self.faults)) for fault in json.loads(said)]
        self.faults.clear()
        known = {(row["split"], row["index"]) for row in self.directory.skipped()}
        new = {(row["split"], row["index"]): row for row in everyone if (row["split"], row["index"]) not in known}
        for row in new.values():
            warn(f"skipped: {row['error']}")
        if new:
            self.directory.write_skipped([*self.directory.skipped(), *new.values()])

    @contextlib.contextmanager
    def _saying_what_is_kept(self, prefix: str = "") -> Iterator[None]:
        """Add to a `RunError` what the run leaves."""
        try:
            yield
        except RunError as error:
            raise RunError(f"{prefix}{error}; {self._kept()}") from error

    def _kept(self) -> str:
        """Say what a run that stops leaves."""
        self.checkpoints.settle()
        steps = self.checkpoints.steps()
        last = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint before it"
        return f"{last} in {self.checkpoints.directory}"


@contextlib.contextmanager
def opened(
    setup: Setup,
    directory: RunDirectory,
    checkpoints: Checkpoints,
    watching: Watching,
    *,
    quiet: bool,
    requests: Requests | None = None,
) -> Iterator[tuple[Run, TrainState]]:
    """Begin a run in its directory, or go on with it there: yield it, watched, and the state to go on from.

    `requests` end its evaluations early, too.
    """
    stops = None if requests is None else Stops(requests, setup.layout)
    images = together(setup.images)
    require_same("data", _told_apart(images))
    together(lambda: directory.write_data(images))
    config, state, rows = setup.config, setup.init_state(), []
    if (found := recovery.newest(setup, directory, checkpoints)) is not None:
        state, rows = found
    elif config.model.weights is not None:
        state = _from_weights(setup, state, config.model.weights, quiet=quiet)
    if not rows and (directory.path / "damaged_checkpoints").exists() and not checkpoints.steps():
        warn(f"every checkpoint of {directory.path} was damaged and set aside; starting again from step 0")
    title, place = config.run_id(), {"step": int(state.step), "steps": setup.total_steps}
    quiet = quiet or setup.layout.rank > 0
    with Progress(title, epochs=config.run.epochs, **place, quiet=quiet) as progress, contextlib.ExitStack() as stack:
        given = {"config": config, **place, "say": progress.say}
        watch = Watch(watching, directory.path, **given, active=setup.layout.rank == 0)
        together(lambda: stack.enter_context(watch))
        going_on = f", going on from step {place['step']:,} of {place['steps']:,}" if place["step"] else ""
        progress.say(f"{title}: {setup.header()}{going_on}")
        began = None if place["step"] else time.perf_counter()
        yield Run(setup, directory, checkpoints, progress, watch, rows, stops, began), state


def _told_apart(images: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells the images of two processes apart, in a few words each: `images` is that of data.json."""
    names = hashlib.sha256("\n".join(images["class_names"]).encode()).hexdigest()
    found: dict[str, Any] = {"classes": len(images["class_names"]), "class names of SHA-256": names[:12]}
    for split, facts in images["splits"].items():
        found |= {f"{split} images": facts["images"], f"{split} images of SHA-256": facts["sha256"][:12]}
    return found


def _from_weights(setup: Setup, state: TrainState, file: str, *, quiet: bool) -> TrainState:
    """Return the state with the backbone (and the head, if it fits) of a weight file, and say what was taken."""
    variables, sentences = transfer_torch(setup.program.model, state.variables, read_state_dict(file))
    data = setup.data
    sentences.append(f"images are normalised by mean {data.mean} and std {data.std}")
    if isinstance(data, Stream):
        given = setup.config.data
        cut = f"resized to {resize_side(given)} and cut to {given.image_size} pixels"
        sentences.append(f"images are resized by the {pil_filter(given)} filter, test images {cut}")
    for sentence in sentences if not quiet else ():
        print(f"{file}: {sentence}")
    variables = setup.layout.whole(jax.tree.map(np.asarray, variables), training=True)
    # Donated: no two may share memory.
    average = {name: jax.tree.map(jnp.copy, variables.get(name, {})) for name in state.average}
    return state.replace(**{name: variables.get(name, {}) for name in COLLECTIONS}, average=average)
