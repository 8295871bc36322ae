"""Where a network sees classes in image files: maps of each picture, at one size or several, by one method or several.

A picture is turned as its EXIF says, for people look at it, whereas training and `predict` read it as it is stored.
"""

import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int, UInt8
from PIL import Image

from jaxclf.data.decoding import decode, to_array, upright
from jaxclf.data.sources import Report
from jaxclf.data.transforms import Preprocessing, resize, square, standardise, to_image
from jaxclf.devices import compiler
from jaxclf.errors import UsageError, unknown
from jaxclf.models import taps
from jaxclf.models.attribution import METHODS, attribute, require_layer
from jaxclf.models.classifier import Classifier
from jaxclf.models.dense import count_shifts, fine_maps, finest
from jaxclf.tools.predict import made_of_file, not_finite, require_channels
from jaxclf.training.weights import Weights

BATCH = 8
"""Squares in one compiled call; whole pictures, whose shapes differ, go through one by one."""
OWN, ORIGINAL = "own", "original"
"""Sizes: the square that the weights are used on, and the whole picture as it is; a number is a short side."""


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A picture at one size."""

    size: str
    pixels: UInt8[np.ndarray, "h w c"]
    """What the network was given, before normalisation."""
    logits: Float32[np.ndarray, " k"]
    classes: Int[np.ndarray, " t"]
    """The classes that maps are of: those asked for, or the strongest at the first size."""
    maps: Mapping[str, Float32[np.ndarray, "t i j"]]
    """By method."""


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What the network sees in one file, at each size; or why there is nothing."""

    file: str
    views: tuple[View, ...] = ()
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of every picture."""

    classes: tuple[str, ...] = ()
    """Classes by name or number; none: the `top` strongest of each picture."""
    top: int = 3
    sizes: tuple[str, ...] = (OWN,)
    methods: tuple[str, ...] = ("maps",)
    layer: str | None = None
    """Layer of the methods that take one; None is the last feature map."""
    stride: int | None = None
    """Pixels from one position of the class maps to the next (`dense.fine_maps`); None is the network's stride."""


def see(weights: Weights, files: Sequence[str | Path], asked: Asked, report: Report | None = None) -> Iterator[Seen]:
    """Yield what a network sees in each file, in order; a file that cannot be seen has an `error`.

    Raises `UsageError`, before the first file is read, for weights that do not say how images are prepared, and for
    classes, sizes, methods and layers that do not exist.
    """
    preprocessing = _require_possible(weights, asked)
    chosen = [class_number(weights, name) for name in asked.classes]
    files = [str(file) for file in files]
    batch = min(BATCH, len(files)) if asked.sizes == (OWN,) else 1
    return _each(Eye(weights.model, weights.variables, preprocessing, asked, chosen), files, batch, report)


def _each(eye: "Eye", files: Sequence[str], batch: int, report: Report | None) -> Iterator[Seen]:
    for start in range(0, len(files), batch):
        yield from eye.look(files[start : start + batch], batch)
        if report is not None:
            report("pictures", min(start + batch, len(files)), len(files))


def class_number(weights: Weights, name: str) -> int:
    """Return the number of a class by its name or number. Raises `UsageError` with the nearest names."""
    count, names = weights.record.num_classes, weights.record.class_names or ()
    if name in names:
        return names.index(name)
    if name.isdecimal():
        if int(name) >= count:
            raise UsageError(f"class {name} given, but the model has 0 to {count - 1}")
        return int(name)
    raise unknown("class", name, names or [f"0 to {count - 1}; the weights name none"])


def _require_possible(weights: Weights, asked: Asked) -> Preprocessing:
    """Return how the weights want their images prepared, or raise `UsageError`."""
    record = weights.record
    if (preprocessing := record.preprocessing) is None:
        raise UsageError(f"the weights do not say how {record.model} wants its images prepared")
    require_channels(weights.model, weights.variables, preprocessing)
    if not 1 <= asked.top <= record.num_classes:
        raise UsageError(f"top is {asked.top} but must be from 1 to {record.num_classes}, the number of classes")
    for size in asked.sizes:
        if size not in (OWN, ORIGINAL) and not (size.isdecimal() and int(size)):
            raise UsageError(f"size is {size!r} but must be {OWN}, {ORIGINAL} or a short side in pixels")
    for name in ("classes", "sizes", "methods"):
        if len(set(given := getattr(asked, name))) < len(given):
            raise UsageError(f"{name} {', '.join(given)} given, but each can be given once")
    for method in asked.methods:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
    if asked.stride is not None:
        if asked.methods != ("maps",):
            raise UsageError(f"stride given with {', '.join(asked.methods)}, but only maps take one")
        count_shifts(finest(weights.model), asked.stride)
    shape = (1, preprocessing.crop, preprocessing.crop, len(preprocessing.mean))
    taking = [method for method in asked.methods if method.startswith("grad_cam")]
    if asked.layer is not None:
        require_layer(weights.model, shape, (taking or list(asked.methods))[0], asked.layer)
    return preprocessing


class Eye:
    """A network that looks at pictures."""

    def __init__(
        self,
        model: Classifier,
        variables: Mapping[str, Any],
        preprocessing: Preprocessing,
        asked: Asked,
        chosen: Sequence[int],
    ) -> None:
        """Compile nothing yet; `chosen` are the classes, empty: the strongest ones."""
        self._model, self._variables, self._preprocessing = model, variables, preprocessing
        self._asked, self._chosen = asked, np.array(chosen, np.int64)
        self._apply = compiler.jit(model.apply)
        self._fine = None if asked.stride is None else finest(model)
        self._backward = any(method != "maps" for method in asked.methods)

    def look(self, files: Sequence[str], batch: int) -> list[Seen]:
        """Return what is seen in at most `batch` files, which go through together at the size `OWN`."""
        read = {file: self._read(file) for file in dict.fromkeys(files)}
        errors = {file: found for file, found in read.items() if isinstance(found, str)}
        good = {file: found for file, found in read.items() if not isinstance(found, str)}
        views: dict[str, list[View]] = {file: [] for file in good}
        for size in self._asked.sizes:
            pictures = {file: self._sized(good[file], size) for file in views if file not in errors}
            for file, pixels in pictures.items():
                if why := obstacle(self._model, (batch, *pixels.shape), backward=self._backward):
                    errors[file] = why
            pictures = {file: pixels for file, pixels in pictures.items() if file not in errors}
            classes = [views[file][0].classes if views[file] else None for file in pictures]
            for file, view in zip(pictures, self._views(list(pictures.values()), size, classes, batch), strict=True):
                if isinstance(view, str):
                    errors[file] = view
                else:
                    views[file].append(view)
        return [Seen(file, error=errors[file]) if file in errors else Seen(file, tuple(views[file])) for file in files]

    def _read(self, file: str) -> Image.Image | str:
        channels = len(self._preprocessing.mean)
        return made_of_file(file, lambda data: upright(to_image(decode(data, channels)), data))

    def _sized(self, image: Image.Image, size: str) -> UInt8[np.ndarray, "h w c"]:
        if size == OWN:
            return to_array(square(image, self._preprocessing))
        return to_array(image if size == ORIGINAL else resize(image, int(size), self._preprocessing.interpolation))

    def _views(
        self, pictures: Sequence[np.ndarray], size: str, classes: Sequence[np.ndarray | None], batch: int
    ) -> Iterator[View | str]:
        """Yield the view of each of some pictures of one shape, or what is wrong with its logits."""
        if not pictures:
            return
        inputs = np.zeros((batch, *pictures[0].shape), np.float32)
        inputs[: len(pictures)] = [standardise(pixels, self._preprocessing) for pixels in pictures]
        logits = np.asarray(self._apply(self._variables, inputs))
        wanted = np.zeros((batch, len(self._chosen) or self._asked.top), np.int64)
        for n, (own, given) in enumerate(zip(logits[: len(pictures)], classes, strict=True)):
            strongest = np.argsort(-own, kind="stable")[: wanted.shape[1]]
            wanted[n] = self._chosen if len(self._chosen) else strongest if given is None else given
        maps = {method: self._maps(inputs, wanted, method) for method in self._asked.methods}
        for n, pixels in enumerate(pictures):
            own = {method: found[n] for method, found in maps.items()}
            yield not_finite(logits[n]) or View(size, pixels, logits[n], wanted[n], own)

    def _maps(self, inputs: np.ndarray, classes: np.ndarray, method: str) -> Float32[np.ndarray, "n t i j"]:
        if self._fine is not None and self._asked.stride is not None:
            found = fine_maps(self._fine, self._variables, inputs, step=self._asked.stride)
            return np.moveaxis(np.take_along_axis(found, classes[:, None, None, :], 3), 3, 1)
        layer = self._asked.layer if method.startswith("grad_cam") else None
        return attribute(self._model, self._variables, inputs, classes, method=method, layer=layer)


def obstacle(model: Classifier, shape: tuple[int, ...], *, backward: bool) -> str | None:
    """Return why a network cannot look at images [n h w c] of a shape; None where it can.

    They may be too small for it, or need more memory than is free. Nothing is compiled.
    """
    try:
        needed, free = memory(model, shape, backward=backward), free_memory()
    except UsageError as error:
        return str(error)
    if needed <= free:
        return None
    share = (free / needed) ** 0.5
    height, width = (int(side * share) for side in shape[1:3])
    return (
        f"it is {shape[2]}x{shape[1]} pixels, for which the network needs about {needed / 2**30:.1f} GiB, but "
        f"{free / 2**30:.1f} GiB are free; about {width}x{height} fits"
    )


def memory(model: Classifier, shape: tuple[int, ...], *, backward: bool) -> int:
    """Return about how many bytes a pass over images [n h w c] needs.

    They are twice the output of the largest layer, and with a pass `backward` the outputs of all layers.
    """
    sizes = [4 * math.prod(output.shape) for output in taps.layers(model, shape).values()]
    return 2 * max(sizes) + backward * sum(sizes)


def free_memory() -> int:
    """Return the bytes that are free on the device that computes."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # no Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def costs(
    model: Classifier,
    variables: Mapping[str, Any],
    images: Float32[np.ndarray, "n h w c"],
    methods: Sequence[str] = METHODS,
    *,
    layer: str | None = None,
    rounds: int = 7,
) -> dict[str, float]:
    """Measure what the maps of one class cost by each method, as a multiple of the forward pass to the logits.

    The median over rounds of ratios within a round, in which all are run once, one after another. All are compiled by
    XLA's defaults.
    """
    apply, classes = jax.jit(model.apply), np.zeros((len(images), 1), np.int64)

    def maps(method: str) -> Callable[[], Any]:
        own = layer if method.startswith("grad_cam") else None
        return lambda: attribute(model, variables, images, classes, method=method, layer=own)

    runs = {"forward": lambda: np.asarray(apply(variables, images)), **{method: maps(method) for method in methods}}
    ratios: dict[str, list[float]] = {method: [] for method in methods}
    for number in range(rounds + 1):
        seconds = {}
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - start
        if number:  # the first compiles
            for method in methods:
                ratios[method].append(seconds[method] / seconds["forward"])
    return {method: statistics.median(found) for method, found in ratios.items()}
