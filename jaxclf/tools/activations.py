"""What the layers of a network answer for image files: the maps of their strongest channels, and the first filters."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from jaxclf.data.transforms import Preprocessing
from jaxclf.errors import UsageError, unknown
from jaxclf.models import taps
from jaxclf.models.classifier import Classifier
from jaxclf.tools.inputs import stem_kernel
from jaxclf.tools.predict import read_image, require_channels, warn_of_turned

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
    """Some channels of a layer's output for one image."""

    path: str
    """The layer; `taps.LAST` is the last feature map."""
    channels: Int[np.ndarray, " m"]
    """Which of the layer's they are: all in their order, or the largest mean over the positions first."""
    values: Float32[np.ndarray, "i j m"]
    of: int
    """How many channels the layer has."""


@dataclasses.dataclass(frozen=True, eq=False)
class Activations:
    """Maps of one file, layer by layer, or why there are none."""

    file: str
    image: Float32[np.ndarray, "h w c"] | None = None
    """The network's input."""
    layers: tuple[Maps, ...] = ()
    error: str | None = None


def activations(
    model: Classifier,
    variables: Mapping[str, Any],
    preprocessing: Preprocessing,
    files: Sequence[str | Path],
    layers: Sequence[str] = (),
    *,
    channels: int = 16,
) -> list[Activations]:
    """Return the outputs of some layers for each file, in order; without `layers` those of `stages`.

    Each has its `channels` strongest channels, by the mean over the positions, strongest first; a layer that has no
    more, or a single position, has all of them in their order. Files that cannot be read, and images for which an
    output is not finite, have an `error` instead. Raises `UsageError` for unknown layers and those whose output is no
    map, `channels` below 1, and images that the network cannot take, before anything is compiled.
    """
    if channels < 1:
        raise UsageError(f"channels is {channels} but must be at least 1")
    require_channels(model, variables, preprocessing)
    shape = (1, preprocessing.crop, preprocessing.crop, len(preprocessing.mean))
    paths = require_maps(taps.layers(model, shape), layers)
    tapped = jax.jit(functools.partial(taps.tap, model, paths=tuple(paths)))
    turned: list[str] = []
    results = []
    for file in map(str, files):
        image = read_image(file, preprocessing, turned)
        if isinstance(image, str):
            results.append(Activations(file, error=image))
            continue
        outputs = tapped(variables, jnp.asarray(image)[None]).outputs
        results.append(
            _strongest(file, image, {path: np.asarray(outputs[path][0], np.float32) for path in paths}, channels)
        )
    warn_of_turned(turned, len(files))
    return results


def _strongest(file: str, image: np.ndarray, outputs: Mapping[str, np.ndarray], count: int) -> Activations:
    if odd := [path or "the last" for path, output in outputs.items() if not np.isfinite(output).all()]:
        return Activations(file, error=f"outputs of {', '.join(odd)} are not finite")
    found = []
    for path, output in outputs.items():  # [i j d]
        positions, of = output.shape[0] * output.shape[1], output.shape[2]
        means = output.mean((0, 1), dtype=np.float64)
        whole = positions == 1 or count >= of
        chosen = np.arange(of) if whole else np.argsort(-means, kind="stable")[:count]
        found.append(Maps(path, chosen, output[..., chosen], of))
    return Activations(file, image, tuple(found))


def stages(shapes: Shapes) -> list[str]:
    """Return the layers that stand for a network's stages, of `taps.layers`.

    They are the last of the outermost layers at each size of map, and each outermost layer with a single position: the
    linear layers of LeNet, AlexNet and VGG. The backbone's own output stands for the last layer, whose shape it has.
    """
    maps = {path: shape.shape[1:] for path, shape in shapes.items() if len(shape.shape) == 4}
    depths = Counter(path.count("/") for path in maps if path != taps.LAST)
    outermost = min((depth for depth, count in depths.items() if count > 1), default=0)
    # Dropout, whose names are Linen's, hands on what it takes: no layer of its own in an evaluation.
    outer = [path for path in maps if path.count("/") == outermost and "Dropout_" not in path and path != taps.LAST]
    if outer and maps[outer[-1]] == maps[taps.LAST]:
        del outer[-1]
    found: dict[Any, str] = {}
    for path in (*outer, taps.LAST):
        h, w, _ = maps[path]
        found[path if h * w == 1 else (h, w)] = path
    return list(found.values())


def require_maps(shapes: Shapes, layers: Sequence[str]) -> list[str]:
    """Return `layers`, or `stages` without any. Raises `UsageError` for layers that are not there, or are no maps."""
    for path in layers:
        if path not in shapes:
            raise unknown("layer", path, [known for known in shapes if known != taps.LAST])
        if len(shapes[path].shape) != 4:
            raise UsageError(
                f"layer {path!r} answers with the shape {shapes[path].shape}, but must with a map [n i j d]"
            )
    return list(dict.fromkeys(layers)) or stages(shapes)


def filters(model: Classifier, variables: Mapping[str, Any]) -> UInt8[np.ndarray, "d h w c"]:
    """Return the first convolution's kernels, as stored, as images: grey is 0, the largest magnitude black or white."""
    return around_grey(np.moveaxis(np.asarray(stem_kernel(model, variables)), 3, 0))


def around_grey(values: Float[np.ndarray, "*n h w c"]) -> UInt8[np.ndarray, "*n h w c"]:
    """Return values as pixels: grey is 0, the largest magnitude black or white."""
    full = np.abs(values).max() or 1.0
    return (127.5 * (1 + values.astype(np.float64) / full)).round().astype(np.uint8)


def pixels(image: Float32[np.ndarray, "h w c"], preprocessing: Preprocessing) -> UInt8[np.ndarray, "h w c"]:
    """Return the picture that a network's input is of, cut to what pixels can show."""
    values = image * np.asarray(preprocessing.std) + np.asarray(preprocessing.mean)
    return (255 * np.clip(values, 0, 1)).round().astype(np.uint8)
