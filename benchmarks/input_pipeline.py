"""Images/s per core of this package's input, of torch's DataLoader and of tf.data, side by side in one run.

Run:  python benchmarks/input_pipeline.py [--cores 1] [--rounds 3] [--seconds 5] [--directory DIR] [--json FILE]

About 12 minutes, 1.3 GB of disk and 10 GB of memory, on a machine that does nothing else. It takes everything that
`make full` installs; what is missing is listed as not installed. There are three sets of images:

    imagenet    synthetic_imagenet.py's JPEGs (5,000 of 110 kB), RandomResizedCrop(224) and flip, batches of 64
    cifar       10,000 images of 32 x 32 in memory, RandomCrop(32, padding=4) and flip, batches of 128
    cifar_png   the same 10,000 as PNG files, not augmented, batches of 128

All read the same encoded images: we from TFDS's array_record, torch and tf.data from a folder of the same bytes,
because tf.data has no reader of array_record. Ours is all that a run does until uint8 batches are on the device;
"resident" is the whole split on the device, cropped, mirrored and normalised by one compiled call for each batch.
torch runs torchvision's transforms on PIL in two forms: "uint8" ends with PILToTensor and delivers what we deliver, the
most favourable form for torch; "float" ends with ToTensor and Normalize, as recipes have it. tf.data delivers uint8;
its crops are other pixels than PIL's, with and without antialiasing.

Before anything is timed, our pixels are compared with torchvision's for the same crops; if one differs, there is no
result. Every contestant is a process pinned to the same cores, with as many threads as cores. All of them live through
the whole run and are measured in turn, round by round; the others are stopped (SIGSTOP) with all their workers, so that
no read-ahead runs beside the one that is measured. Before its clock starts, a contestant delivers at least as many
batches as it can have read ahead. torch's epochs are joined to one endless pass, so that its workers never wait for a
new one. A ratio is taken within a round, to the fastest of torch's that round; medians and ranges are over the rounds.
The last column divides by the CPU time of the process and its workers instead of the clock's: where it is another
number than the first ratio, something else ran on the cores, or a contestant left them idle.

Last comes what a training step pays for the resident path: ResNet-20's step with it against the same step on a fixed
batch, in turn; the path compiled alone; and what the host does for each step.
"""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from PIL import Image

# Nothing of jaxclf up here: it imports JAX, and torch's and TensorFlow's processes are to be as their users have them.

SIZE, RESIZE, SIDE, PAD, CLASSES = 224, 256, 32, 4, 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
QUICK = {"classes": 8, "train_per_class": 8, "kilobytes": 3}
"""The synthetic ImageNet of --quick."""
CHECKED = 128
"""Images of each set whose pixels are compared, in ImageNet's with a grey, a CMYK, a turned one and a PNG."""
STEP = "resident step"
RATES = ("images_per_second_per_core", "images_per_cpu_second")
RATIOS = {
    "to_torch_uint8": ("uint8", RATES[0]),
    "to_torch_float": ("float", RATES[0]),
    "to_torch_uint8_by_cpu_time": ("uint8", RATES[1]),
}
KEPT: list[Any] = []
"""Declarations of torch operators, which live as long as their object does."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure images/s per core of jaxclf's input, torch's DataLoader and tf.data."""

    directory: Path = Path("build/synthetic_imagenet")
    """Where the images are, or are written to; --quick has its own below it."""
    cores: int = 1
    """Cores that every contestant is pinned to."""
    rounds: int = 3
    """Times that every contestant is measured."""
    seconds: float = 5.0
    """Of each measurement."""
    json: Path | None = None
    """Write every round, the ratios and the environment to this file."""
    quick: bool = False
    """A few small images and one short round: does it run at all?"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every process has to know."""

    directory: str
    cores: tuple[int, ...]
    """Their numbers."""
    small_images: int = 10_000
    batch: int = 64
    small_batch: int = 128
    network: str = "resnet20"
    """Whose step pays for the resident path."""

    def batch_size(self, which: str) -> int:
        """Return the images in a batch of a set."""
        return self.batch if which == "imagenet" else self.small_batch

    @property
    def folder(self) -> Path:
        """ImageNet as files."""
        return Path(self.directory) / "folder"

    @property
    def png(self) -> Path:
        """The small images as files."""
        return Path(self.directory) / f"cifar_png_{self.small_images}"


class Contestant(NamedTuple):
    """Something that delivers batches."""

    set: str
    name: str
    open: Callable[[Plan], Iterator[int]]
    """Delivers a batch at every `next`, and yields its number of images."""
    packages: tuple[str, ...] = ()
    """What it needs beside this package's own dependencies."""
    form: str | None = None
    """Of torch's: "uint8" or "float"."""

    @property
    def key(self) -> str:
        """Its name in the whole run."""
        return f"{self.set}: {self.name}"

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def contestants(cores: int) -> list[Contestant]:
    """List all that are measured."""
    tensorflow, antialias = ("tensorflow",), functools.partial(tensorflow_imagenet, antialias=True)
    processes = f"{cores} process" + "es" * (cores > 1)
    return [
        _ours("imagenet", "jaxclf stream, threads"),
        _ours("imagenet", f"jaxclf stream, {processes}", workers=cores),
        _ours("imagenet", "jaxclf stream, threads, fast, other pixels", pixels="fast")._replace(packages=("cv2",)),
        *_torchs("imagenet", cores),
        Contestant("imagenet", "tf.data, no antialias, other pixels", tensorflow_imagenet, tensorflow),
        Contestant("imagenet", "tf.data, antialias, other pixels", antialias, tensorflow),
        Contestant("cifar", "jaxclf resident, float", resident),
        *_torchs("cifar", cores),
        Contestant("cifar", "tf.data, uint8", tensorflow_arrays, tensorflow),
        _ours("cifar_png", "jaxclf stream, threads"),
        *_torchs("cifar_png", cores),
    ]


def _ours(which: str, name: str, **options: Any) -> Contestant:
    return Contestant(which, name, functools.partial(stream, which=which, **options))


def _torchs(which: str, cores: int) -> Iterator[Contestant]:
    for form, workers in itertools.product(("uint8", "float"), (0, cores)):
        opened = functools.partial(torch_batches, which=which, form=form, workers=workers)
        name = f"torch DataLoader, {form}, num_workers={workers}"
        yield Contestant(which, name, opened, ("torch", "torchvision"), form)


# What is measured of ours


def configs(plan: Plan, which: str, pixels: str = "exact") -> tuple[Any, Any]:
    """Return what a streamed set is read by: data and augmentation."""
    from jaxclf.config import AugmentConfig, DataConfig

    if which == "cifar_png":
        return DataConfig(f"folder:{plan.png}", image_size=SIDE, resize=SIDE), AugmentConfig(pad=0, flip=False)
    data: dict[str, Any] = {"data_dir": plan.directory, "pixels": pixels}
    data |= {"image_size": SIZE, "resize": RESIZE}
    return DataConfig("synthetic_imagenet", **data), AugmentConfig(crop="random_resized", pad=0)


def stream(plan: Plan, which: str, pixels: str = "exact", workers: int = 0) -> Iterator[int]:
    """Read files, decode and crop them, and deliver batches to the device."""
    import jax

    from jaxclf.config import Loader
    from jaxclf.data.datasets import resolve
    from jaxclf.data.order import Order
    from jaxclf.data.stream import Stream

    loader = Loader(workers=workers, threads=1 if workers else len(plan.cores))
    data, augment = configs(plan, which, pixels)
    dataset: Any = resolve(data)
    opened = Stream(dataset, augment, loader)
    order = Order(0, opened.sizes["train"], plan.batch_size(which), drop_last=True)
    try:
        for epoch in itertools.count():
            for batch in opened.train_batches(order, epoch * order.steps_per_epoch, 1):
                jax.block_until_ready((batch.images, batch.labels))
                yield len(batch.labels)
    finally:
        opened.close()


def resident(plan: Plan) -> Iterator[int]:
    """Gather, crop, mirror and normalise the small images on the device."""
    import jax

    program, _, batches = _resident_run(plan)
    augmented = _augmentation(program)
    for batch in batches:
        jax.block_until_ready(augmented(batch.images, batch.rows[0]))
        yield batch.rows.size


def _resident_run(plan: Plan) -> tuple[Any, Any, Iterator[Any]]:
    """Return a network's program on the small images, the images, and endless batches of them."""
    from jaxclf.config import AugmentConfig, Config, DataConfig, ModelConfig
    from jaxclf.data.datasets import Images
    from jaxclf.data.order import Order
    from jaxclf.data.pipeline import Resident
    from jaxclf.models.classifier import build
    from jaxclf.training.schedules import Timeline
    from jaxclf.training.step import Program

    data = DataConfig(batch_size=plan.small_batch, drop_last=True)
    config = Config(data, AugmentConfig(pad=PAD), ModelConfig(plan.network))
    split = Images(*small_images(plan))
    held = Resident(tuple(map(str, range(CLASSES))), MEAN, STD, {"train": split, "test": split})
    order = Order(0, plan.small_images, plan.small_batch, drop_last=True)
    timeline = Timeline(order.steps_per_epoch, config.run.epochs, order.examples)
    model = build(config, CLASSES, seed=0)
    program = Program(model, config.optim, timeline, config.loss, config.augment, MEAN, STD)
    epochs = (held.train_batches(order, epoch * order.steps_per_epoch, 1) for epoch in itertools.count())
    return program, held, itertools.chain.from_iterable(epochs)


def _augmentation(program: Any) -> Callable[[Any, Any], Any]:
    import jax

    from jaxclf.data.augment import augment

    return jax.jit(lambda images, rows: augment(program.augment, images, rows, jax.random.key(0), MEAN, STD))


def step_costs(plan: Plan) -> Callable[[float], dict[str, float]]:
    """Return what measures, for so many seconds, the resident path's part of a training step."""
    import jax

    from jaxclf.config import AugmentConfig
    from jaxclf.training.parallel import train_steps
    from jaxclf.training.step import init_state

    program, held, batches = _resident_run(plan)
    plain = dataclasses.replace(program, augment=AugmentConfig(pad=0, flip=False))
    images, labels = (jax.device_put(array[: plan.small_batch]) for array in small_images(plan))
    fixed = (images, labels, jax.device_put(np.arange(plan.small_batch, dtype=np.int32)[None]))
    states = {name: init_state(program, held.image_shape, 0, 0) for name in ("resident", "fixed")}
    augmented = _augmentation(program)

    def timed(work: Callable[..., Any], *given: Any) -> tuple[Any, float, float]:
        """Return a result, the seconds that it took, and those until the host was free again."""
        start = time.perf_counter()
        result = work(*given)
        dispatched = time.perf_counter()
        jax.block_until_ready(result)
        return result, time.perf_counter() - start, dispatched - start

    def pair(resident_first: bool) -> tuple[float, ...]:
        """Return the seconds of a step, of it on the host, and of one without the path."""
        times = {}
        for name in ("resident", "fixed") if resident_first else ("fixed", "resident"):
            batch = next(batches)
            moving = (program, batch.images, batch.labels, batch.rows)
            step, *given = (plain, *fixed) if name == "fixed" else moving
            states[name], *times[name] = timed(train_steps, step, states[name], *given)
        return *times["resident"], times["fixed"][0]

    def measure(seconds: float) -> dict[str, float]:
        rows: list[tuple[float, ...]] = []
        end = time.perf_counter() + seconds
        while len(rows) < 4 or time.perf_counter() < end:
            rows.append(pair(len(rows) % 2 == 0))
        # Many in a row: just after a step, its process still works for 20 ms, it seems at giving its memory back.
        alone = [timed(augmented, one.images, one.rows[0])[1] for one in itertools.islice(batches, 50)]
        begin, steps = time.perf_counter(), 10 * (plan.small_images // plan.small_batch)
        for _ in itertools.islice(batches, steps):  # whole epochs: the first step of each pays for its permutation
            pass
        order = (time.perf_counter() - begin) / steps
        path = statistics.median(alone)
        step, dispatch, without = (statistics.median(column) for column in zip(*rows, strict=True))
        share = statistics.median((row[0] - row[2]) / row[0] for row in rows)
        named = {"step": step, "fixed": without, "path_alone": path, "order": order, "dispatch": dispatch}
        costs = {f"{name}_ms": 1000 * value for name, value in named.items()}
        return costs | {"share": share, "path_alone_share": path / step, "order_share": order / step}

    measure(0)  # compiles
    return measure


# torch


def import_torchvision() -> Any:
    """Import torchvision beside any build of torch."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        # The PyPI wheel's C++ part loads under CUDA builds alone. Nothing here needs it, but importing the package
        # registers Python functions for two of its operators, so they must be declared.
        library = importlib.import_module("torch").library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)
        return importlib.import_module("torchvision")


def torch_batches(plan: Plan, which: str, form: str, workers: int) -> Iterator[int]:
    """Read images as torchvision's recipes do."""
    vision = import_torchvision()
    torch, loader = importlib.import_module("torch"), importlib.import_module("torch.utils.data").DataLoader
    torch.set_num_threads(len(plan.cores))
    t = vision.transforms
    steps = {
        "imagenet": [t.RandomResizedCrop(SIZE), t.RandomHorizontalFlip()],
        "cifar": [t.RandomCrop(SIDE, padding=PAD), t.RandomHorizontalFlip()],
        "cifar_png": [t.Resize(SIDE), t.CenterCrop(SIDE)],
    }[which]
    steps += [t.PILToTensor()] if form == "uint8" else [t.ToTensor(), t.Normalize(MEAN, STD)]
    if which == "cifar":
        images = Arrays(*small_images(plan), t.Compose(steps))
    else:
        directory = plan.folder if which == "imagenet" else plan.png
        images = vision.datasets.ImageFolder(directory / "train", t.Compose(steps))
    sampler = Endless(len(images), torch.randperm)
    for _, labels in loader(images, plan.batch_size(which), sampler=sampler, num_workers=workers):
        yield len(labels)


class Arrays:
    """Images in memory, a PIL image for every item, as in torchvision.datasets.CIFAR10."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Image.Image], Any]) -> None:
        """Take the images and what makes a tensor of each."""
        self._images, self._labels, self._transform = images, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


class Endless:
    """A sampler of one random order after the other."""

    def __init__(self, size: int, permutation: Callable[[int], Any]) -> None:
        """Take the number of images, and what draws an order."""
        self._size, self._permutation = size, permutation

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from self._permutation(self._size).tolist()


# tf.data


def _tensorflow(plan: Plan) -> Any:
    tf = importlib.import_module("tensorflow")
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(len(plan.cores))
    tf.config.threading.set_inter_op_parallelism_threads(len(plan.cores))
    return tf


def tensorflow_imagenet(plan: Plan, antialias: bool = False) -> Iterator[int]:
    """Decode what the crop needs of a JPEG and resize it, as TensorFlow's recipes do."""
    tf = _tensorflow(plan)
    files = [str(file) for file in sorted(plan.folder.glob("train/*/*"))]
    names = {name: label for label, name in enumerate(sorted({Path(file).parent.name for file in files}))}
    labels = [names[Path(file).parent.name] for file in files]

    def box(shape: Any) -> tuple[Any, Any]:
        drawn = {"area_range": (0.08, 1.0), "aspect_ratio_range": (3 / 4, 4 / 3), "max_attempts": 10}
        drawn["use_image_if_no_bounding_boxes"] = True
        return tf.image.sample_distorted_bounding_box(shape, tf.zeros((1, 0, 4)), **drawn)[:2]

    def read(file: Any, label: Any) -> tuple[Any, Any]:
        data = tf.io.read_file(file)

        def jpeg() -> Any:
            begin, size = box(tf.io.extract_jpeg_shape(data))
            return tf.image.decode_and_crop_jpeg(data, tf.concat([begin[:2], size[:2]], 0), channels=3)

        def other() -> Any:
            image = tf.io.decode_image(data, channels=3, expand_animations=False)
            return tf.slice(image, *box(tf.shape(image)))

        image = tf.image.resize(tf.cond(tf.io.is_jpeg(data), jpeg, other), (SIZE, SIZE), antialias=antialias)
        return tf.cast(tf.image.random_flip_left_right(image), tf.uint8), label

    return _tensorflow_batches(tf, plan, (files, labels), read, plan.batch)


def tensorflow_arrays(plan: Plan) -> Iterator[int]:
    """Crop and mirror the small images from memory."""
    tf = _tensorflow(plan)

    def augment(image: Any, label: Any) -> tuple[Any, Any]:
        padded = tf.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)))
        return tf.image.random_flip_left_right(tf.image.random_crop(padded, (SIDE, SIDE, 3))), label

    return _tensorflow_batches(tf, plan, small_images(plan), augment, plan.small_batch)


def _tensorflow_batches(tf: Any, plan: Plan, pool: Any, read: Callable[..., Any], batch_size: int) -> Iterator[int]:
    dataset = tf.data.Dataset.from_tensor_slices(pool).shuffle(len(pool[1])).repeat()
    dataset = dataset.map(read, num_parallel_calls=len(plan.cores), deterministic=False)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = len(plan.cores)
    options.threading.max_intra_op_parallelism = 1
    for _, labels in dataset.with_options(options):
        yield len(labels)


# The images, and whether all make the same pixels of them


def small_images(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [n h w c], coarse patterns with noise, and labels int32 [n]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(16, 240, (plan.small_images, SIDE // 4, SIDE // 4, 3), np.uint8)
    noise = rng.integers(-16, 16, (plan.small_images, SIDE, SIDE, 3), np.int8)
    images = (coarse.repeat(4, 1).repeat(4, 2) + noise).astype(np.uint8)
    return images, np.arange(plan.small_images, dtype=np.int32) % CLASSES


def write_images(plan: Plan, recipe: Mapping[str, int]) -> None:
    """Write what is not there yet of all sets."""
    import synthetic_imagenet

    synthetic_imagenet.build(Path(plan.directory), **recipe, progress=True)
    synthetic_imagenet.write_folder(plan.folder, **recipe, progress=True)
    if plan.png.exists():
        return
    with tempfile.TemporaryDirectory(dir=plan.directory) as temporary:
        for number, (image, label) in enumerate(zip(*small_images(plan), strict=True)):
            for split in ("train", "test") if number < CLASSES else ("train",):
                directory = Path(temporary) / "png" / split / str(label)
                directory.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(directory / f"{number:06}.png")
        (Path(temporary) / "png").rename(plan.png)


def pixel_pairs(plan: Plan) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Yield set, image, our pixels and torchvision's on PIL for the same crops.

    Raises `UsageError` where records and files are not the same images.
    """
    import jax
    import jax.numpy as jnp

    from jaxclf.data.augment import crop_flip, draw_crop
    from jaxclf.data.datasets import resolve
    from jaxclf.data.order import example_rng
    from jaxclf.data.stream import test_transform, training_transform
    from jaxclf.errors import UsageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision has no C++ part
        vision = import_torchvision()
    functional, compose = vision.transforms.functional, vision.transforms.Compose
    data, augment = configs(plan, "imagenet")
    dataset: Any = resolve(data)
    source = dataset.sources()["train"]
    folder = vision.datasets.ImageFolder(plan.folder / "train")
    records = sorted(hashlib.sha256(source[number].data).digest() for number in range(len(source)))
    if records != sorted(hashlib.sha256(Path(file).read_bytes()).digest() for file, _ in folder.samples):
        raise UsageError(f"the records in {plan.directory} are not the images in {plan.folder}; delete both")
    train, test = training_transform(data, augment, 3), test_transform(data, 3)
    fitted = compose([vision.transforms.Resize(RESIZE), vision.transforms.CenterCrop(SIZE)])
    for number, (file, _) in enumerate(folder.samples[:CHECKED]):
        image, encoded = folder.loader(file), Path(file).read_bytes()
        box, mirrored = train.draw(example_rng(0, 0, number), image.height, image.width)
        cut = functional.resized_crop(image, *box, [SIZE, SIZE])
        cut = functional.hflip(cut) if mirrored else cut
        yield "imagenet", file, train(encoded, example_rng(0, 0, number)), np.asarray(cut)
        yield "imagenet", file, test(encoded, example_rng(0, 0, number)), np.asarray(fitted(image))

    small = training_transform(*configs(plan, "cifar_png"), 3)
    fitted = compose([vision.transforms.Resize(SIDE), vision.transforms.CenterCrop(SIDE)])
    for file, _ in vision.datasets.ImageFolder(plan.png / "train").samples[:CHECKED]:
        ours = small(Path(file).read_bytes(), np.random.default_rng(0))
        yield "cifar_png", file, ours, np.asarray(fitted(folder.loader(file)))

    images, numbers, key = small_images(plan)[0], jnp.arange(CHECKED), jax.random.key(0)
    drawn = jax.vmap(lambda number: draw_crop(PAD, jax.random.fold_in(key, number)))(numbers)
    ours = np.asarray(crop_flip(jnp.asarray(images), numbers, key, pad=PAD, flip=True))
    for number in range(CHECKED):
        top, left = np.asarray(drawn.offset[number]).tolist()
        padded = functional.pad(Image.fromarray(images[number]), PAD)
        cut = functional.crop(padded, PAD + top, PAD + left, SIDE, SIDE)
        cut = functional.hflip(cut) if drawn.mirrored[number] else cut
        yield "cifar", f"image {number}", ours[number], np.asarray(cut)


def check_pixels(pairs: Iterator[tuple[str, str, np.ndarray, np.ndarray]]) -> dict[str, int]:
    """Return how many crops were compared by set; `UsageError` for the first that is not the same."""
    from jaxclf.errors import UsageError

    counts: dict[str, int] = {}
    for which, name, ours, theirs in pairs:
        if not identical(ours, theirs):
            raise UsageError(f"{which}: our pixels of {name} are not torchvision's, so there is nothing to compare")
        counts[which] = counts.get(which, 0) + 1
    return counts


def identical(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two images are the same to the last bit."""
    return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


# The processes, and the rounds


def rate(batches: Iterator[int], seconds: float, *, cores: int) -> dict[str, float]:
    """Return a contestant's images/s, by core and by CPU second."""
    # What may have been read ahead is outside: two batches for each of torch's workers, two on our device, less by all
    # others.
    for _ in range(4 + 4 * cores):
        next(batches)
    images, spent, start = 0, cpu_seconds(), time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        images += next(batches)
    spent = max(cpu_seconds() - spent, 0.01)  # what the system counts in
    return {"images_per_second_per_core": images / passed / cores, "images_per_cpu_second": images / spent}


def cpu_seconds() -> float:
    """Return the CPU time of this process and its workers, which are those of its process group."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = file.read_text().rpartition(")")[2].split()  # from the third on, see proc(5)
            ticks += int(fields[11]) + int(fields[12]) if int(fields[2]) == os.getpgrp() else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def serve(key: str, plan: Plan) -> int:
    """Be a contestant: answer every number of seconds on a line of stdin with what was measured, as JSON on stdout."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # see Process
    os.sched_setaffinity(0, plan.cores)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    if key == STEP:
        measure = step_costs(plan)
    else:
        batches: Any = next(one for one in contestants(len(plan.cores)) if one.key == key).open(plan)
        next(batches)
        measure = functools.partial(rate, batches, cores=len(plan.cores))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(float(line))), file=answers, flush=True)
    if key != STEP:
        batches.close()  # its processes and shared memory too
    return 0


class Process:
    """A contestant in a process of its own, which runs only while it measures."""

    def __init__(self, key: str, plan: Plan) -> None:
        """Start it, wait for its first batch and stop it."""
        self._key, self._errors = key, tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        # A process group for it and its workers, but no session: if this process dies, the system wakes a stopped group
        # with SIGHUP and SIGCONT, and it finds its stdin closed.
        self._process = subprocess.Popen(
            [sys.executable, __file__, "serve", key, json.dumps(dataclasses.asdict(plan))],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors},
            **{"text": True, "process_group": 0, "env": environment},
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def measure(self, seconds: float) -> Any:
        """Return what it measures in so many seconds."""
        os.killpg(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)
        return json.loads(self._answer())

    def _answer(self) -> str:
        from jaxclf.errors import RunError

        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            self._errors.seek(0)
            said = self._errors.read().split("\n")
            raise RunError(f"{self._key}: the process ended: {next((one for one in said[::-1] if one.strip()), '')}")
        os.killpg(self._process.pid, signal.SIGSTOP)
        return line

    def close(self) -> None:
        """Let it end by itself, or else kill it."""
        with self._errors:
            end_process(self._process)


def end_process(process: subprocess.Popen[str]) -> None:
    """Let a process end by itself, stopped or not, by closing its stdin, or else kill its group."""
    with process, contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def measure(everyone: Sequence[Contestant], plan: Plan, rounds: int, seconds: float) -> dict[str, list[Any]]:
    """Return what each contestant measured in each round, and last what a training step costs."""
    with contextlib.ExitStack() as stack:
        processes: dict[str, Process] = {}
        for key in (*(one.key for one in everyone if not one.missing), STEP):
            print(f"starting {key}", file=sys.stderr)
            processes[key] = Process(key, plan)
            stack.callback(processes[key].close)
        found: dict[str, list[Any]] = {key: [] for key in processes}
        for number in range(rounds):
            for key, process in processes.items():
                print(f"round {number + 1} of {rounds}, {key}", file=sys.stderr)
                found[key].append(process.measure(seconds))
    return found


# The report


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the values of the rounds, their median and their range."""
    return {"rounds": list(values), "median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(own: Sequence[float], rivals: Sequence[Sequence[float]]) -> list[float]:
    """Return round by round how many times faster than the fastest rival."""
    return [mine / max(theirs) for mine, *theirs in zip(own, *rivals, strict=True)]


def compare(everyone: Sequence[Contestant], found: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return a row for every contestant: its rates, and their ratios to each form of torch's on the same set."""
    rows = []
    for one in everyone:
        row: dict[str, Any] = {"set": one.set, "name": one.name, "missing": one.missing}
        for column in RATES if one.key in found else ():
            row[column] = spread(_column(found[one.key], column))
        for name, (form, column) in RATIOS.items() if one.key in found else ():
            group = [other.key for other in everyone if (other.set, other.form) == (one.set, form)]
            if rivals := [_column(found[key], column) for key in group if key in found]:
                row[name] = spread(ratios(_column(found[one.key], column), rivals))
        rows.append(row)
    return rows


def _column(rounds: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [one[name] for one in rounds]


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report as text."""
    same = ", ".join(f"{count} of {which}" for which, count in report["same_pixels"].items())
    yield f"crops with the same pixels as torchvision's: {same or 'not checked, torchvision is not installed'}"
    yield from table(report["contestants"])
    yield from step_lines(report["resident_step"], *(report["settings"][name] for name in ("small_batch", "network")))


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table."""
    heads = ("images/s per core", "x torch uint8", "x torch float", "x uint8, CPU time")
    yield f"{'set':10}{'':40}{heads[0]:>27}" + "".join(f"{head:>20}" for head in heads[1:])
    for row in rows:
        start = f"{row['set']:10}{row['name']:40}"
        if row["missing"]:
            yield f"{start}not installed: {', '.join(row['missing'])}"
        else:
            cells = "".join(f"{_cell(row.get(name), 2):>20}" for name in RATIOS)
            yield f"{start}{_cell(row[RATES[0]], 0):>27}{cells}"


def _cell(values: Mapping[str, Any] | None, digits: int, factor: float = 1, unit: str = "") -> str:
    if values is None:
        return "-"
    median, low, high = (f"{factor * values[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{median}{unit} ({low} to {high})" if unit else f"{median} ({low}-{high})"


def step_lines(costs: Mapping[str, Mapping[str, Any]], batch: int, network: str) -> Iterator[str]:
    """Yield what a training step pays for its input."""
    ms = {name: _cell(costs[name], 3, unit=" ms") for name in costs if name.endswith("_ms")}
    percent = {name: _cell(costs[name], 2, 100, " %") for name in costs if name.endswith("share")}
    yield f"A training step of {network} on cifar, batch {batch}, on the same cores:"
    yield f"  with the resident path {ms['step_ms']}, on a fixed batch {ms['fixed_ms']}"
    yield f"  the difference is {percent['share']} of the step"
    yield f"  the path compiled alone, with normalisation, {ms['path_alone_ms']}: {percent['path_alone_share']}"
    yield f"  on the host, the order {ms['order_ms']}: {percent['order_share']}"
    yield f"  on the host, until the step is dispatched {ms['dispatch_ms']}"


def environment() -> dict[str, Any]:
    """Return what the numbers depend on."""
    from jaxclf.training import run_directory as results

    packages = ("grain", "array-record", "pillow", "simplejpeg", "opencv-python-headless", "torch", "torchvision")
    found: dict[str, Any] = dict(results.environment())
    for name in (*packages, "tensorflow", "tensorflow-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    found["cpu"] = models[0].partition(":")[2].strip() if models else platform.processor()
    found["cpu_cores"] = os.cpu_count()
    found["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found["load_average"] = os.getloadavg()
    return found


def run(chosen: Arguments) -> dict[str, Any]:
    """Measure everything."""
    from jaxclf.errors import UsageError

    allowed = sorted(os.sched_getaffinity(0))
    rules = {"cores": 1 <= chosen.cores <= len(allowed), "rounds": chosen.rounds >= 1, "seconds": chosen.seconds > 0}
    if wrong := [f"{name} is {getattr(chosen, name)}" for name, good in rules.items() if not good]:
        raise UsageError(f"{', '.join(wrong)}; cores must be 1 to {len(allowed)}, rounds at least 1, seconds above 0")
    cores, rounds, seconds = tuple(allowed[: chosen.cores]), chosen.rounds, chosen.seconds
    plan, recipe = Plan(str(chosen.directory.absolute()), cores), {}
    if chosen.quick:
        small = {"small_images": 256, "batch": 16, "small_batch": 16, "network": "resnet8"}
        plan = Plan(str(chosen.directory.absolute() / "quick"), cores, **small)
        recipe, rounds, seconds = QUICK, 1, 0.2
    report: dict[str, Any] = {"environment": environment()}
    report["settings"] = dataclasses.asdict(plan) | {"rounds": rounds, "seconds": seconds, "quick": chosen.quick}
    write_images(plan, recipe)
    everyone = contestants(len(cores))
    missing = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is None]
    report["same_pixels"] = {} if missing else check_pixels(pixel_pairs(plan))
    found = measure(everyone, plan, rounds, seconds)
    report["contestants"] = compare(everyone, found)
    report["resident_step"] = {name: spread(_column(found[STEP], name)) for name in found[STEP][0]}
    return report


def main(args: list[str]) -> int:
    """Run the command line; return 0, or 2 after one line on stderr that says what was wrong."""
    from jaxclf.errors import RunError, UsageError

    try:
        chosen = tyro.cli(Arguments, prog="input_pipeline.py", args=args)
        report = run(chosen)
        for line in lines(report):
            print(line)
        if chosen.json is not None:
            chosen.json.write_text(json.dumps(report, indent=2) + "\n")
    except (UsageError, RunError, OSError) as error:
        print(f"input_pipeline: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        sys.exit(serve(sys.argv[2], Plan(**json.loads(sys.argv[3]))))
    sys.exit(main(sys.argv[1:]))
