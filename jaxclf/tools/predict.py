"""Classify image files: any size and mode; a broken file is named and the rest still answered."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxclf.data.decoding import decode, is_turned
from jaxclf.data.transforms import Preprocessing, preprocess, to_image
from jaxclf.devices import compiler
from jaxclf.errors import UsageError
from jaxclf.models.classifier import Classifier
from jaxclf.tools.inputs import image_channels

T = TypeVar("T")
BATCH = 32
"""Most images in one compiled call."""


@dataclasses.dataclass(frozen=True)
class Guess:
    """One class as an answer."""

    index: int
    name: str
    """The class's name, or its index as text where there are no names."""
    probability: float
    logit: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for one file: guesses, likeliest first, or why there are none."""

    file: str
    guesses: tuple[Guess, ...] = ()
    error: str | None = None


def predict(
    model: Classifier,
    variables: Mapping[str, Any],
    preprocessing: Preprocessing,
    files: Sequence[str | Path],
    class_names: Sequence[str] | None = None,
    *,
    top: int = 5,
) -> list[Prediction]:
    """Return one `Prediction` per file, in order, with the `top` likeliest classes (all, if there are fewer).

    Files that cannot be read, and images whose logits are not finite, have an `error` instead. `class_names` has one
    name per class, or is None. Images are read as training reads them: not turned by EXIF, of which a warning tells.
    Raises `UsageError` for a wrong number of names, a `top` below 1, and preprocessing for another number of channels.
    """
    count, channels = model.head.num_classes, len(preprocessing.mean)
    if class_names is not None and len(class_names) != count:
        raise UsageError(f"there are {len(class_names)} class names for {count} classes")
    if top < 1:
        raise UsageError(f"top is {top} but must be at least 1")
    require_channels(model, variables, preprocessing)
    names = class_names if class_names is not None else [str(index) for index in range(count)]
    apply, size = compiler.jit(model.apply), min(BATCH, len(files))
    results: list[Prediction] = []
    turned: list[str] = []
    for start in range(0, len(files), BATCH):
        read = [(str(file), read_image(str(file), preprocessing, turned)) for file in files[start : start + BATCH]]
        good = [image for _, image in read if isinstance(image, np.ndarray)]
        batch = np.zeros((size, preprocessing.crop, preprocessing.crop, channels), np.float32)
        if good:
            batch[: len(good)] = good
        rows = iter(np.asarray(apply(variables, batch), np.float64))
        for file, image in read:
            if isinstance(image, str):
                results.append(Prediction(file, error=image))
            else:
                results.append(_answer(file, next(rows), names, top))
    warn_of_turned(turned, len(files))
    return results


def require_channels(model: Classifier, variables: Mapping[str, Any], preprocessing: Preprocessing) -> None:
    """Raise `UsageError` for preprocessing of another number of channels than the model takes."""
    channels = image_channels(model, variables)
    if channels != len(preprocessing.mean):
        raise UsageError(
            f"the model takes images of {channels} channels, but the preprocessing is for {len(preprocessing.mean)}"
        )


def warn_of_turned(turned: Sequence[str], count: int) -> None:
    """Warn of those of `count` files that EXIF turns."""
    if turned:
        warnings.warn(
            f"EXIF says that {len(turned)} of {count} images are stored turned or mirrored, as {turned[0]}; "
            "they are read as they are stored, as in training",
            stacklevel=3,
        )


def read_image(file: str, preprocessing: Preprocessing, turned: list[str]) -> np.ndarray | str:
    """Return the preprocessed image [h w c], or the fault of the file; add it to `turned` if EXIF turns it."""

    def prepared(data: bytes) -> np.ndarray:
        image = preprocess(to_image(decode(data, len(preprocessing.mean))), preprocessing)
        turned.extend([file] if is_turned(data) else [])
        return image

    return made_of_file(file, prepared)


def made_of_file(file: str, make: Callable[[bytes], T]) -> T | str:
    """Return what `make` makes of a file's bytes, or the fault of the file."""
    try:
        return make(Path(file).read_bytes())
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # PIL's decoders raise many types for broken files; the file is named with it
        return str(error) or type(error).__name__


def _answer(file: str, logits: np.ndarray, names: Sequence[str], top: int) -> Prediction:
    """Return the likeliest classes, or what is wrong with the logits."""
    if fault := not_finite(logits):
        return Prediction(file, error=fault)
    return Prediction(file, _guesses(logits, names, top))


def not_finite(logits: np.ndarray) -> str | None:
    """Return that logits are not finite, so that no class is likelier than another; None where they are."""
    odd = np.sum(~np.isfinite(logits))
    return f"{odd} of its {len(logits)} logits are not finite" if odd else None


def _guesses(logits: np.ndarray, names: Sequence[str], top: int) -> tuple[Guess, ...]:
    """Return the likeliest classes of logits [k]; the lower index first among equals."""
    exponents = np.exp(logits - logits.max())
    probabilities = exponents / exponents.sum()
    order = [int(i) for i in np.argsort(-logits, kind="stable")[:top]]
    return tuple(Guess(i, names[i], float(probabilities[i]), float(logits[i])) for i in order)
