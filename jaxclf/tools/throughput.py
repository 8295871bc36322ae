"""Speed of each stage of the input, and of a training step: the measurements of `jaxclf data bench`."""

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxclf.config import AugmentConfig, Config, DataConfig, Loader, ModelConfig
from jaxclf.data import datasets, pipeline, reading
from jaxclf.data.augment import augment
from jaxclf.data.decoding import decode
from jaxclf.data.order import Batch, Order, example_rng
from jaxclf.data.sources import Source
from jaxclf.data.stream import Stream
from jaxclf.errors import UsageError
from jaxclf.training.parallel import train_steps
from jaxclf.training.step import Program, TrainState

WINDOWS = 3
"""Every rate is the median over so many windows of time."""
POOL = 128
"""Images that decoding and cropping are measured on, evenly spread over the training images."""
STAGES = ("read", "decode", "transform")
"""Work of a loader thread on each image, in this order."""
ENOUGH = 0.97
"""Share of the step's rate from which on the input is fast enough; closer than that the clock cannot tell."""


class Rate(NamedTuple):
    """Speed of a stage."""

    stage: str
    images_per_second: float
    note: str
    """Description of the measurement."""

    def __str__(self) -> str:
        digits = 0 if self.images_per_second >= 100 else 1
        return f"{self.stage:9}  {self.images_per_second:>11,.{digits}f} images/s  {self.note}"


def bench_config(
    dataset: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    batch_size: int = 64,
    backbone: str | None = None,
) -> Config:
    """Return the run whose input and step are measured.

    A field that is None depends on the set: 224 pixels and resnet18 for a streamed one, its own size and resnet20 for
    others.
    """
    facts = datasets.resolve(DataConfig(dataset, data_dir=data_dir)).facts
    streamed = facts.streamed
    constants = None if facts.mean else (0.5,) * facts.image_shape[2]  # any will do: the result is not looked at
    data = DataConfig(
        dataset=dataset,
        data_dir=data_dir,
        batch_size=batch_size,
        drop_last=True,
        image_size=224 if streamed and image_size is None else image_size,
        mean=constants,
        std=constants,
        test_split=facts.splits[0] if streamed else None,  # unused, and not every set has one
        on_error="skip" if streamed else "raise",
    )
    augmented = AugmentConfig(crop="random_resized", pad=0) if streamed else AugmentConfig()
    return Config(data=data, augment=augmented, model=ModelConfig(backbone or ("resnet18" if streamed else "resnet20")))


def measure(
    config: Config,
    program: Program,
    data: pipeline.Data,
    order: Order,
    init_state: Callable[[], TrainState],
    *,
    group: int,
    loader: Loader,
    seconds: float,
) -> Iterator[str]:
    """Measure the stages of the input and the training step, `seconds` each, and yield lines as they are known.

    Compiling, the first batch, and starting threads or processes are outside the clock. `group` is the steps in a
    dispatch, `loader` what reads the data. Raises `UsageError` for seconds out of range, and for a set of which no
    training image can be read.
    """
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds is {seconds:g} but must be above 0, and finite")
    size, device = f"{data.image_shape[1]} x {data.image_shape[0]}", jax.devices()[0].device_kind
    yield f"{config.data.dataset}, {size}, batches of {order.batch_size}, {config.model.backbone} on {device}"
    rates: dict[str, float] = {}
    if isinstance(data, Stream):
        for stage in _stages(data, order, seconds):
            yield str(stage)
            rates[stage.stage] = stage.images_per_second
        whole, batch = _stream(data, order, loader, seconds)
    else:
        yield "its images are in the device's memory before the first step: there is nothing to stream"
        batch = next(data.train_batches(order, 0, group))
        whole = _augmentation(program, batch, seconds)
    yield str(whole)
    data.close()  # or it would go on beside the step
    step = _step(program, init_state(), batch, seconds)
    yield str(step)
    rates |= {one.stage: one.images_per_second for one in (whole, step)}
    yield stream_verdict(rates, cpu=jax.default_backend() == "cpu") if "stream" in rates else resident_verdict(rates)


def rate(work: Callable[[], int], seconds: float) -> float:
    """Return the images/s of something that is done again and again and returns its images: the median of windows.

    It takes about `seconds` in all, or as long as doing it once, if that is longer.
    """
    rates, begin = [], time.perf_counter()
    while not rates or (len(rates) < WINDOWS and time.perf_counter() - begin < seconds):
        start, images = time.perf_counter(), work()
        while (passed := time.perf_counter() - start) < seconds / WINDOWS:
            images += work()
        rates.append(images / passed)
    return statistics.median(rates)


def _stages(stream: Stream, order: Order, seconds: float) -> Iterator[Rate]:
    """Yield the rate of each stage on one thread, and of copies to the device."""
    source, channels = stream.sources["train"], stream.channels
    # In the order of a run, so that images come from the disk as they do in a run, and not all from memory.
    indices = itertools.chain.from_iterable(order.indices(step).tolist() for step in itertools.count())

    def read() -> int:
        with contextlib.suppress(Exception):  # the time that a broken image takes counts
            _ = source[next(indices)]
        return 1

    yield Rate("read", rate(read, seconds), "stored bytes, one thread")
    stored, pictures = _pool(source, channels)
    files, images, numbers = itertools.cycle(stored), itertools.cycle(pictures), itertools.count()
    transform: Any = stream.task("train", order.batch_size, order).transform

    def decoded() -> int:
        decode(next(files), channels)
        return 1

    def transformed() -> int:
        transform.pixels(next(images), example_rng(order.seed, 0, next(numbers)))
        return 1

    sides = np.median([image.shape[:2] for image in pictures], axis=0)
    yield Rate("decode", rate(decoded, seconds), f"to pixels, median {sides[1]:.0f} x {sides[0]:.0f}, one thread")
    yield Rate("transform", rate(transformed, seconds), "random crop, resized and mirrored, one thread")
    batch = np.random.default_rng(0).integers(0, 256, (order.batch_size, *stream.image_shape), np.uint8)

    def transferred() -> int:
        jax.block_until_ready(jax.device_put(batch))
        return len(batch)

    yield Rate("transfer", rate(transferred, seconds), "batches to the device, one after the other")


def _pool(source: Source, channels: Literal[1, 3]) -> tuple[list[bytes], list[np.ndarray]]:
    """Return files and their pixels; images that cannot be read are left out."""
    files, pictures = [], []
    for number in range(count := min(POOL, len(source))):
        with contextlib.suppress(Exception):  # whatever readers and decoders raise for broken bytes
            data = source[number * len(source) // count].data
            pictures.append(decode(data, channels))
            files.append(data)
    if not files:
        raise UsageError(f"none of {count} training images can be read, the first of them {source.name(0)}")
    return files, pictures


def _stream(stream: Stream, order: Order, loader: Loader, seconds: float) -> tuple[Rate, Batch]:
    """Return the rate of the whole stream, with nothing beside it, and one of its batches."""
    batches = _batches(stream, order)
    batch = next(batches)

    def taken() -> int:
        nonlocal batch
        batch = next(batches)
        jax.block_until_ready(batch.images)
        return len(batch.labels)

    found = rate(taken, seconds)
    batches.close()
    return Rate("stream", found, f"all of it, {readers(loader)}"), batch


def _batches(stream: Stream, order: Order) -> Generator[Batch, None, None]:
    """Yield training batches without end."""
    for epoch in itertools.count():
        yield from stream.train_batches(order, epoch * order.steps_per_epoch, 1)


def readers(loader: Loader) -> str:
    """Return the number of processes and threads that read, as text.

    >>> readers(Loader(workers=2, threads=1)), readers(Loader(threads=3))
    ('2 processes of 1 thread', '3 threads')
    """
    count = reading.thread_count(loader)
    threads = f"{count} thread" + "s" * (count > 1)
    return f"{loader.workers} process{'es' * (loader.workers > 1)} of {threads}" if loader.workers else threads


def _augmentation(program: Program, batch: Batch, seconds: float) -> Rate:
    """Return the rate of a step's augmentation of a resident batch."""
    rows = jax.device_put(batch.rows[0])

    @jax.jit
    def augmented(images: jax.Array, rows: jax.Array) -> jax.Array:
        return augment(program.augment, images, rows, jax.random.key(0), program.mean, program.std)

    def work() -> int:
        jax.block_until_ready(augmented(batch.images, rows))
        return len(rows)

    work()
    return Rate("augment", rate(work, seconds), "crop, mirror and normalisation, compiled alone")


def _step(program: Program, state: TrainState, batch: Batch, seconds: float) -> Rate:
    """Return the rate of training steps on one batch, which stays on the device."""
    given = (batch.images, batch.labels, batch.rows, batch.examples)

    def steps(count: int) -> int:
        nonlocal state
        for _ in range(count):
            state = train_steps(program, state, *given)
        jax.block_until_ready(state)
        return count * batch.steps * batch.size

    steps(1)  # compiles
    start = time.perf_counter()
    images = steps(1)
    passed = time.perf_counter() - start
    note = f"training, {program.model.dtype}, learned head of {program.model.head.num_classes:,} classes"
    if passed >= seconds:
        return Rate("step", images / passed, note)
    # As many as fill a window, without waiting between them: a run does not wait either.
    return Rate("step", rate(lambda: steps(max(1, int(seconds / WINDOWS / passed))), seconds), note)


def stream_verdict(rates: Mapping[str, float], *, cpu: bool) -> str:
    """Return a sentence on whether the input keeps the device busy, and on its slowest stage.

    >>> rates = {"read": 6000.0, "decode": 500.0, "transform": 1000.0, "transfer": 9e4, "stream": 600.0, "step": 2400.0}
    >>> print(stream_verdict(rates, cpu=False))  # doctest: +NORMALIZE_WHITESPACE
    The input gives only 25 % of what the step takes; the slowest stage is decode, 63 % of a thread's time. About 8
    threads with a core each would keep the device busy.
    """
    share, each = rates["stream"] / rates["step"], {stage: 1 / rates[stage] for stage in STAGES}
    slowest = max(each, key=lambda stage: each[stage])
    said = f"the slowest stage is {slowest}, {100 * each[slowest] / sum(each.values()):.0f} % of a thread's time"
    if share >= ENOUGH:
        text = f"The input keeps the device busy: it gives {share:.1f} times what the step takes; {said}."
    else:
        text = f"The input gives only {100 * share:.0f} % of what the step takes; {said}."
        if rates["transfer"] < rates["step"]:
            text += " Copying to the device alone is slower than the step."
        elif not cpu:
            threads = math.ceil(rates["step"] * sum(each.values()))
            text += f" About {threads} threads with a core each would keep the device busy."
    return text + (" Here both need the same cores, and a run is slower than either." if cpu else "")


def resident_verdict(rates: Mapping[str, float]) -> str:
    """Return a sentence on the share of the step that the augmentation takes.

    >>> resident_verdict({"augment": 10_000.0, "step": 500.0})
    'The input keeps the device busy: augmentation is 5.0 % of the step.'
    """
    share = 100 * rates["step"] / rates["augment"]
    return f"The input keeps the device busy: augmentation is {share:.1f} % of the step."
