"""A config made ready to train or to evaluate: checked against data, model and devices, and nothing compiled yet."""

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.config import Config, Loader, OptimConfig, validate
from jaxclf.data import augment, datasets, pipeline
from jaxclf.data.kinds import ResidentSet, StreamedSet
from jaxclf.data.order import Order
from jaxclf.devices.cluster import warn
from jaxclf.devices.layout import Layout, check_batch, over_devices
from jaxclf.errors import UsageError, one_line
from jaxclf.models.classifier import Classifier, build
from jaxclf.training import elastic
from jaxclf.training.losses import cosine_scale
from jaxclf.training.optim import trainable
from jaxclf.training.progress import Lines
from jaxclf.training.schedules import Timeline
from jaxclf.training.step import Program, TrainState, init_state

COLD = 0.1
"""Share of the initial parameters in a moving average above which a run warns."""
IN_THREADS = Loader()
"""Streamed sets are read by threads of this process."""


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A config made ready: what can be wrong with it has been checked, and nothing is compiled yet."""

    config: Config
    layout: Layout
    data: pipeline.Data
    order: Order
    """Order of the training images, until a run goes back after divergence."""
    program: Program
    fixed_seed: int
    """Seed of random fixed matrices."""
    group: int
    """Training steps in one dispatch; 1 where each has images of a size of its own."""

    def init_state(self) -> TrainState:
        """Return the state before the first step."""
        state = init_state(self.program, self.data.image_shape, self.config.run.seed, self.fixed_seed)
        return self.layout.whole(state, training=True)

    def program_of(self, step: int) -> Program:
        """Return the program of a training step."""
        program, given = self.program, self.config.elastic
        if given.start is None and not given.sizes:
            return program
        epoch = step // program.timeline.steps_per_epoch
        return dataclasses.replace(program.phase(epoch), image_size=elastic.size_of(self.config, step))

    @property
    def total_steps(self) -> int:
        """Training steps of the whole run."""
        return self.program.timeline.steps_per_epoch * self.config.run.epochs

    def seeded(self, config: Config) -> "Setup":
        """Return the setup of a config that differs in seeds alone; images and program are shared."""
        order = dataclasses.replace(self.order, seed=config.run.seed)
        return dataclasses.replace(self, config=config, order=order, fixed_seed=_fixed_seed(config))

    def header(self) -> str:
        """Say what a run computes on, and how."""
        where, config = self.layout, self.config
        device = where.mesh.devices.flat[0].device_kind
        words = [f"{where.devices} device{'s' * (where.devices > 1)} ({device})"]
        if where.hosts > 1:
            words += [f"{where.hosts} processes"]
        if where.devices > 1:
            seen = f"BatchNorm by {'replica' if where.replicas else 'batch'}"
            words += [f"{config.run.parallel}, {config.data.batch_size // where.devices} images each, {seen}"]
        precision = config.model.precision
        if precision == "default":
            precision = str(jax.config.values["jax_default_matmul_precision"] or "default")
        return ", ".join([*words, config.model.dtype, f"matmul precision {precision}"])

    def images(self) -> dict[str, Any]:
        """Return what a run remembers of its images, and of its replicas: with others it does not go on."""
        data, prints = self.data, self.data.fingerprints()
        splits = {split: {"images": count, "sha256": prints[split]} for split, count in data.sizes.items()}
        replicas = {"replicas": self.layout.devices} if self.layout.replicas else {}
        return {"class_names": list(data.class_names), "splits": splits, **replicas}

    def __enter__(self) -> "Setup":
        return self

    def __exit__(self, *_: object) -> None:
        """End what reads ahead."""
        self.data.close()


def set_up(
    config: Config,
    loader: Loader = IN_THREADS,
    devices: int | None = None,
    *,
    dataset: ResidentSet | StreamedSet | None = None,
) -> Setup:
    """Check a config against data, model and devices and open the data; every fault is a `UsageError`.

    `devices` is how many of each process's devices are used, None for all; `dataset` is the config's, if the caller
    has resolved it already.
    """
    validate(config)
    validate(loader, "loader.")
    dataset = dataset or datasets.resolve(config.data)
    # The steps read fixed matrices from the state, so the model they are compiled for needs no seed of its own.
    model = build(config, dataset.num_classes, seed=0)
    if config.run.collapse and model.head.before_pool:
        given = f"for model.head {config.model.head}, which stands before the pool and takes no pooled features"
        raise UsageError(f"run.collapse is True but must be False {given}")
    cosine_scale(config.loss, model.head)
    elastic.check(config, model)
    where = over_devices(devices, replicas=config.run.parallel == "pmap")
    _check_memory(dataset, config.data.batch_size)
    data = pipeline.open_data(dataset, config.augment, loader, where, report=Lines())
    order = Order(config.run.seed, data.sizes["train"], config.data.batch_size, config.data.drop_last)
    if order.steps_per_epoch < 1:
        raise UsageError(f"data.batch_size {config.data.batch_size} leaves no whole batch of {order.examples}")
    _check_layout(config, where, order)
    program = _program(config, model, data, order, where)
    variables = _check_shapes(program, data.image_shape)
    _check_parts(program, variables, data.image_shape, order, replicas=where.devices if where.replicas else 1)
    _warn_of_cold_average(config.optim, program.timeline.steps)
    one = dataset.facts.streamed or jax.default_backend() == "cpu"
    return Setup(
        config=config,
        layout=where,
        data=data,
        order=order,
        program=program,
        fixed_seed=_fixed_seed(config),
        group=1 if config.elastic.sizes else config.run.steps_per_dispatch or (1 if one else 8),
    )


def _fixed_seed(config: Config) -> int:
    return config.run.seed if config.model.head_seed is None else config.model.head_seed


def _check_layout(config: Config, layout: Layout, order: Order) -> None:
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


def _program(config: Config, model: Classifier, data: pipeline.Data, order: Order, layout: Layout) -> Program:
    return Program(
        model=model,
        optim=config.optim,
        timeline=Timeline(order.steps_per_epoch, config.run.epochs, order.examples),
        loss=config.loss,
        elastic=config.elastic,
        augment=pipeline.step_augment(config.augment),
        mean=data.mean,
        std=data.std,
        model_config=dataclasses.replace(config.model, head_seed=None, weights=None),
        max_loss=config.run.max_loss,
        spread=layout.spread(training=True, kept=config.run.replica_statistics),
    )


def _check_memory(dataset: ResidentSet | StreamedSet, batch_size: int) -> None:
    """Check that a batch, and the images of a resident set, fit into this machine's memory."""
    height, width, channels = dataset.image_shape
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    sizes = {f"a batch of {batch_size:,} images": 4 * batch_size}  # float32
    if isinstance(dataset, ResidentSet):
        sizes[f"the {dataset.train_examples():,} training images"] = dataset.train_examples()
    for what, bytes_per_value in sizes.items():
        if (needed := bytes_per_value * height * width * channels) > memory:
            raise UsageError(
                f"{what} of {width} x {height} pixels would take {needed / 2**30:,.0f} GiB and this machine has "
                f"{memory / 2**30:,.0f}; choose a smaller data.image_size or data.batch_size"
            )


def _check_parts(
    program: Program, variables: Any, image_shape: tuple[int, ...], order: Order, *, replicas: int
) -> None:
    """Check that BatchNorm can train on the smallest part of a batch that it sees: one value has no variance."""
    last = order.examples % order.batch_size
    ghost, found = program.model_config.ghost_batch, []
    for batch in {order.batch_size, last if last and not order.drop_last else order.batch_size}:
        own = batch // replicas
        parts = np.diff(np.linspace(0, own, min(program.optim.accumulate, own) + 1).astype(int)).tolist()
        rest = [part % ghost or ghost for part in parts] if ghost else parts
        found += [(min(part, other), batch) for part, other in zip(parts, rest, strict=True)]
    smallest, batch = min(found)
    if smallest > 1:
        return
    apply = functools.partial(program.model.apply, train=True, mutable=["batch_stats"])
    image, key = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), jax.random.key(0)
    try:
        jax.eval_shape(lambda given, x: apply(given, x, rngs={"dropout": key}), variables, image)
    except ValueError as error:
        if batch == last:
            cause = (
                f"data.batch_size {order.batch_size} leaves 1 of {order.examples:,} images for an epoch's last batch"
            )
            cure = "leave it out by data.drop_last, or choose another data.batch_size"
        else:
            cause = "data.batch_size, optim.accumulate, model.ghost_batch and the replicas leave a part of 1 image"
            cure = "choose parts of more images"
        raise UsageError(f"{cause}, on which BatchNorm cannot train ({one_line(str(error))}); {cure}") from error


def _warn_of_cold_average(optim: OptimConfig, steps: int) -> None:
    """Warn of a moving average that still holds much of the initial parameters at the end."""
    updates = steps // optim.ema_every
    if optim.ema is None or optim.ema_warmup or not updates:
        return
    if (left := optim.ema**updates) > COLD:
        warn(
            f"optim.ema {optim.ema:g} over {updates:,} updates keeps {left:.0%} of the initial parameters in what is "
            "evaluated; set optim.ema_warmup, or a smaller decay"
        )


def _check_shapes(program: Program, image_shape: tuple[int, ...]) -> Any:
    """Trace what fails for images or parameters of other shapes than a config thinks of; return the variables' shapes.

    Nothing is compiled.
    """
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8)
    views = jax.eval_shape(functools.partial(augment.views, program.augment), images)
    apply = functools.partial(augment.augment, program.augment, mean=program.mean, std=program.std)
    batch = jax.eval_shape(lambda x: apply(x, jnp.zeros(2, jnp.int32), jax.random.key(0)), images)
    variables: Any = None
    for shape in {views.shape[2:], batch.shape[1:]}:
        given = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        variables = jax.eval_shape(program.model.init, jax.random.key(0), given)
    if sizes := program.elastic.sizes:
        smallest = jax.ShapeDtypeStruct((2, min(sizes), min(sizes), batch.shape[-1]), jnp.float32)
        jax.eval_shape(program.model.apply, variables, smallest)
    trainable(program.optim, variables["params"])
    return variables
