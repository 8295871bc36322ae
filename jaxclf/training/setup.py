"""A config made ready to train or to evaluate: checked against data, model and devices, and nothing compiled yet."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxclf.config import Config, Loader, validate
from jaxclf.data import augment, datasets, pipeline
from jaxclf.data.datasets import ResidentSet, StreamedSet
from jaxclf.data.order import Order
from jaxclf.devices.layout import Layout, check_batch, over_devices
from jaxclf.errors import UsageError
from jaxclf.models.classifier import Classifier, build
from jaxclf.training.optim import trainable
from jaxclf.training.progress import Lines
from jaxclf.training.schedules import Timeline
from jaxclf.training.step import Program, TrainState, init_state

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
    """Training steps in one dispatch."""

    def init_state(self) -> TrainState:
        """Return the state before the first step."""
        state = init_state(self.program, self.data.image_shape, self.config.run.seed, self.fixed_seed)
        return self.layout.whole(state, training=True)

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
    where = over_devices(devices, replicas=config.run.parallel == "pmap")
    data = pipeline.open_data(dataset, config.augment, loader, where, report=Lines())
    order = Order(config.run.seed, data.sizes["train"], config.data.batch_size, config.data.drop_last)
    if order.steps_per_epoch < 1:
        raise UsageError(f"data.batch_size {config.data.batch_size} leaves no whole batch of {order.examples}")
    _check_layout(config, where, order)
    program = _program(config, model, data, order, where)
    _check_shapes(program, data.image_shape)
    one = dataset.facts.streamed or jax.default_backend() == "cpu"
    return Setup(
        config=config,
        layout=where,
        data=data,
        order=order,
        program=program,
        fixed_seed=_fixed_seed(config),
        group=config.run.steps_per_dispatch or (1 if one else 8),
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
        augment=pipeline.step_augment(config.augment),
        mean=data.mean,
        std=data.std,
        model_config=dataclasses.replace(config.model, head_seed=None, weights=None),
        max_loss=config.run.max_loss,
        spread=layout.spread(training=True, kept=config.run.replica_statistics),
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
