"""Train and evaluate a config in a run directory: the only place where order in time matters."""

import dataclasses
import functools
import itertools
import os
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf import losses
from jaxclf.checkpoint import Checkpoints, state_digest
from jaxclf.classifier import Classifier, build
from jaxclf.config import Config, Loader, RunError, UsageError
from jaxclf.data import augment, datasets, pipeline
from jaxclf.data.order import Batch, Fault, Order
from jaxclf.optim import trainable
from jaxclf.progress import Lines, Progress
from jaxclf.ranges import validate, validate_loader
from jaxclf.results import Result, RunDirectory, per_class
from jaxclf.schedules import Timeline, learning_rate
from jaxclf.step import Program, TrainState, eval_step, init_state, recalibrate_step, train_steps
from jaxclf.torch_weights import transfer_torch
from jaxclf.weights import read_state_dict

Workdir = str | os.PathLike[str]
Which = Literal["last", "best"]
Row = dict[str, Any]
IN_THREADS = Loader()
"""Streamed sets are read by threads of this process."""


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A config made ready: what can be wrong with it has been checked, and nothing is compiled yet."""

    config: Config
    data: pipeline.Data
    order: Order
    """Of the training images."""
    program: Program
    fixed_seed: int
    """Seed of random fixed matrices."""
    group: int
    """Training steps in one dispatch."""

    def init_state(self) -> TrainState:
        """Return the state before the first step."""
        return init_state(self.program, self.data.image_shape, self.config.run.seed, self.fixed_seed)

    def __enter__(self) -> "Setup":
        return self

    def __exit__(self, *_: object) -> None:
        """End what reads ahead."""
        self.data.close()


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """A run in progress."""

    setup: Setup
    directory: RunDirectory
    checkpoints: Checkpoints
    progress: Progress
    rows: list[Row]
    """metrics.jsonl so far."""


def prepare(config: Config, loader: Loader = IN_THREADS) -> Setup:
    """Check a config against data and model and open the data; every fault is a `UsageError`."""
    validate(config)
    validate_loader(loader)
    info = datasets.info(config.data.dataset, config.data.data_dir)
    classes = info.num_classes if config.data.classes is None else min(config.data.classes, info.num_classes)
    # The steps read fixed matrices from the state, so the model they are compiled for needs no seed of its own.
    model = build(config, classes, seed=0)
    data = pipeline.open_data(config, loader, report=Lines())
    order = Order(config.run.seed, data.sizes["train"], config.data.batch_size, config.data.drop_last)
    if order.steps_per_epoch < 1:
        raise UsageError(f"data.batch_size {config.data.batch_size} leaves no whole batch of {order.examples}")
    program = _program(config, model, order)
    _check_shapes(program, data.image_shape)
    one = info.streamed or jax.default_backend() == "cpu"
    return Setup(
        config=config,
        data=data,
        order=order,
        program=program,
        fixed_seed=config.run.seed if config.model.head_seed is None else config.model.head_seed,
        group=config.run.steps_per_dispatch or (1 if one else 8),
    )


def _program(config: Config, model: Classifier, order: Order) -> Program:
    mean, std = pipeline.constants(config.data)
    return Program(
        model=model,
        optim=config.optim,
        timeline=Timeline(order.steps_per_epoch, config.run.epochs, order.examples),
        loss=config.loss,
        augment=pipeline.step_augment(config),
        mean=mean,
        std=std,
        init=config.model.init,
        dtype=config.model.dtype,
    )


def _check_shapes(program: Program, image_shape: tuple[int, ...]) -> None:
    """Trace what fails for images or parameters of other shapes than a config thinks of; nothing is compiled."""
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8)
    views = jax.eval_shape(functools.partial(augment.views, program.augment), images)
    apply = functools.partial(augment.augment, program.augment, mean=program.mean, std=program.std)
    batch = jax.eval_shape(lambda x: apply(x, jnp.zeros(2, jnp.int32), jax.random.key(0)), images)
    for shape in {batch.shape[1:], views.shape[2:]}:
        given = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        variables = jax.eval_shape(program.model.init, jax.random.key(0), given)
    trainable(program.optim, variables["params"])


def train(config: Config, workdir: Workdir, *, loader: Loader = IN_THREADS, quiet: bool = False) -> Result:
    """Train a config in a directory, or go on where a run of the same config stopped there.

    Stopped at any moment (kill -9 included) and called again, a run ends with the same bits as one that was never
    stopped: parameters, optimiser, metrics.jsonl. A complete run returns its result at once. `loader` says what reads a
    streamed data set; it changes no bit, and no thread or process of it outlives the call.

    Raises `UsageError`, before anything is compiled, for a config that cannot work and for a directory that cannot
    be written or holds another config or a run on other images; `RunError` when the loss is no number any more, an
    image cannot be read, a reading process ends, the disk is full, or no checkpoint can be read.
    """
    with prepare(config, loader) as setup, RunDirectory(workdir, config) as directory:
        if (done := directory.result()) is not None:
            return done
        directory.write_data(_images(setup.data))
        checkpoints = Checkpoints(directory.path / "checkpoints")
        state, rows = setup.init_state(), []
        if checkpoints.steps():
            state, count = checkpoints.restore(state, step=None, warn=_warn)
            rows = directory.rows(count)
        elif config.model.weights is not None:
            state = _from_weights(setup, state, config.model.weights, quiet=quiet)
        if not rows and (directory.path / "damaged_checkpoints").exists() and not checkpoints.steps():
            _warn(f"every checkpoint of {directory.path} was damaged and set aside; starting again from step 0")
        total = setup.program.timeline.steps_per_epoch * config.run.epochs
        with Progress(
            config.run_id(), epochs=config.run.epochs, step=int(state.step), steps=total, quiet=quiet
        ) as progress:
            session = Session(setup, directory, checkpoints, progress, rows)
            while int(state.step) < total:
                state = _finish_epoch(session, _recalibrate(session, _train_epoch(session, state)))
        test = _evaluate(setup, state, "test", _kept(session))
        _note(session, "test", test.faults)
        directory.write_predictions(test.labels, test.predictions)
        result = _result(setup, directory, state, test, progress.images_per_second)
        directory.write("result.json", result.to_json())
    return result


def _images(data: pipeline.Data) -> dict[str, Any]:
    """Return what a run remembers of its images: on others it does not go on."""
    prints = data.fingerprints()
    splits = {split: {"images": count, "sha256": prints[split]} for split, count in data.sizes.items()}
    return {"class_names": list(data.class_names), "splits": splits}


def evaluate(config: Config, workdir: Workdir, *, checkpoint: Which = "last", loader: Loader = IN_THREADS) -> Result:
    """Evaluate the last or best checkpoint of a run on the test images; writes nothing.

    "best" is the best on these very images: a diagnosis, not a result to report.
    Raises `UsageError` for a directory without checkpoints and for one of another config.
    """
    with prepare(config, loader) as setup, RunDirectory(workdir, config, create=False) as directory:
        state = restore(setup, directory, checkpoint=checkpoint)
        test = _evaluate(setup, state, "test")
        for fault in test.faults:
            _warn(fault.error)
        return _result(setup, directory, state, test, images_per_second=0.0)


def restore(setup: Setup, directory: RunDirectory, *, checkpoint: Which = "last") -> TrainState:
    """Return the state of a run's last or best checkpoint; `UsageError` where there is none."""
    checkpoints = Checkpoints(directory.path / "checkpoints")
    step = max(checkpoints.steps(), default=None) if checkpoint == "last" else checkpoints.best_step()
    if step is None:
        raise UsageError(f"{directory.path} has no {checkpoint} checkpoint; train into it first")
    return checkpoints.restore(setup.init_state(), step=step, warn=_warn)[0]


def _from_weights(setup: Setup, state: TrainState, file: str, *, quiet: bool) -> TrainState:
    """Return the state with the backbone (and the head, if it fits) of a weight file, and say what was taken."""
    variables, sentences = transfer_torch(setup.program.model, state.variables, read_state_dict(file))
    for sentence in sentences if not quiet else ():
        print(f"{file}: {sentence}")
    variables = jax.tree.map(jnp.asarray, variables)
    return state.replace(**{name: variables.get(name, {}) for name in ("params", "batch_stats", "fixed")})


def _train_epoch(session: Session, state: TrainState) -> TrainState:
    """Take the rest of the epoch's steps from wherever the state is, saving on the way as the config asks."""
    setup, progress, shapes = session.setup, session.progress, set()
    per_epoch, every = setup.program.timeline.steps_per_epoch, setup.config.run.checkpoint_every
    step = int(state.step)
    batches = setup.data.train_batches(setup.order, step, setup.group)
    for images, labels, rows, examples, _, faults in _or_say_what_is_kept(batches, _kept(session)):
        _note(session, "train", faults)
        if rows.shape not in shapes:  # may compile: off the clock
            jax.block_until_ready(state)
            progress.stop_clock()
        state = train_steps(setup.program, state, images, labels, rows, examples)
        step += len(rows)
        if rows.shape not in shapes:
            jax.block_until_ready(state)
            progress.run_clock()
            shapes.add(rows.shape)
        else:
            progress.count(rows.size)
        progress.at(step)
        if every and step % per_epoch and step // every > (step - len(rows)) // every:
            jax.block_until_ready(state)
            progress.stop_clock()
            _save(session, state)
            progress.run_clock()
    jax.block_until_ready(state)
    progress.stop_clock()
    return state


def _or_say_what_is_kept(batches: Iterator[Batch], kept: str | None) -> Iterator[Batch]:
    """Yield the batches; where reading them fails, the error also says what is kept of the run, if there is one."""
    try:
        yield from batches
    except RunError as error:
        raise RunError(f"{error}; {kept}" if kept else str(error)) from error


def _note(session: Session, split: str, faults: tuple[Fault, ...]) -> None:
    """Say once of every image that was skipped that it was, and keep it in the run directory."""
    if faults:
        known = {(row["split"], row["index"]) for row in session.directory.skipped()}
        new = [
            {"split": split, **fault._asdict()} for fault in dict.fromkeys(faults) if (split, fault.index) not in known
        ]
        for row in new:
            _warn(f"skipped: {row['error']}")
        if new:
            session.directory.write_skipped([*session.directory.skipped(), *new])


def _recalibrate(session: Session, state: TrainState) -> TrainState:
    """Average BatchNorm's statistics over `run.recalibrate` batches after the last step; the state itself before."""
    setup, config = session.setup, session.setup.config
    total, number = setup.program.timeline.steps_per_epoch * config.run.epochs, 0
    if int(state.step) < total or not state.batch_stats:
        return state
    while number < config.run.recalibrate:  # an epoch of batches at a time, from behind the last one
        batches = setup.data.train_batches(setup.order, total + number, 1)
        batches = itertools.islice(batches, config.run.recalibrate - number)
        for batch in _or_say_what_is_kept(batches, _kept(session)):
            _note(session, "train", batch.faults)
            number += 1
            given = (batch.images, batch.labels, batch.rows[0], jnp.asarray(number), batch.examples[0])
            state = recalibrate_step(setup.program, state, *given)
    return state


def _finish_epoch(session: Session, state: TrainState) -> TrainState:
    """Evaluate if it is due, write the epoch's metric row, then the checkpoint that counts it.

    In this order: a kill between the two means that the row is computed and written once more, never that it is lost.
    """
    setup, run, step = session.setup, session.setup.config.run, int(state.step)
    _check_finite(session, state)
    program, split = setup.program, pipeline.evaluated(setup.data)
    epoch = step // program.timeline.steps_per_epoch
    due, train, held_out = epoch == run.epochs or epoch % run.eval_every == 0, losses.means(state.sums), {}
    if due:
        evaluated = _evaluate(setup, state, split, _kept(session))
        held_out = evaluated.metrics
        _note(session, split, evaluated.faults)
    row = {"epoch": epoch, "step": step, "lr": learning_rate(program.optim, program.timeline, step - 1)}
    row |= {f"train_{name}": train[name] for name in ("loss", "top1")}
    row |= {f"{split}_{name}": held_out.get(name) for name in ("loss", "top1", "top5")}
    row |= {f"train_{name}": float(state.sums[name]) / program.timeline.steps_per_epoch for name in program.terms}
    session.rows.append(row)
    try:
        session.directory.write_rows(session.rows)
    except RunError as error:
        raise RunError(f"step {step}: {error}; {_kept(session)}") from error
    session.progress.epoch(row, split, skipped=len(session.directory.skipped()))
    state = state.replace(sums=losses.zeros(terms=program.terms))
    if due or (run.checkpoint_every and step % run.checkpoint_every == 0):
        _save(session, state, top1=held_out.get("top1"))
    return state


def _save(session: Session, state: TrainState, *, top1: float | None = None) -> None:
    _check_finite(session, state)
    session.checkpoints.save(state, rows=len(session.rows), top1=top1)


def _check_finite(session: Session, state: TrainState) -> None:
    """Stop a run that has diverged; asked before every save, so that every checkpoint is a good one."""
    if bad := int(state.bad_step):
        raise RunError(
            f"step {bad}: loss or update is not finite (lr {session.setup.config.optim.lr:g}); {_kept(session)}"
        )


def _kept(session: Session) -> str:
    """Say what a run that stops leaves."""
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


def _evaluate(setup: Setup, state: TrainState, split: str, kept: str | None = None) -> Evaluation:
    """Evaluate on a split; `kept` is for the error of an image that cannot be read."""
    count, parts, faults = setup.data.sizes[split], [], []
    batches = setup.data.eval_batches(split, min(setup.config.data.eval_batch_size, count))
    for batch in _or_say_what_is_kept(batches, kept):
        sums, predicted = eval_step(setup.program, state, batch.images, batch.labels, batch.rows, batch.mask)
        parts.append((sums, predicted, np.asarray(batch.labels)[batch.rows], batch.mask))  # and not its images
        faults += batch.faults
    sums, predicted, labels, mask = zip(*jax.device_get(parts), strict=True)
    total = {name: sum(part[name].item() for part in sums) for name in losses.zeros()}
    if not total["count"]:
        raise RunError(f"no image of {split} could be read, the first of them: {faults[0].error}")
    labels, predictions = (
        np.where(np.concatenate(mask), np.concatenate(values), -1)[:count] for values in (labels, predicted)
    )
    return Evaluation(losses.means(total), labels.astype(np.int32), predictions.astype(np.int32), tuple(faults))


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
    )


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
