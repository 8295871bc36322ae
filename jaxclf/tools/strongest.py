"""The images of a data set that channels of a layer answer most to."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from jaxclf.config import DataConfig
from jaxclf.data.datasets import resolve
from jaxclf.data.sources import Report
from jaxclf.data.transforms import Preprocessing
from jaxclf.errors import UsageError
from jaxclf.models import taps
from jaxclf.models.classifier import Classifier
from jaxclf.models.projection import deconvolve, receptive_field
from jaxclf.tools.activations import require_maps
from jaxclf.tools.inputs import open_inputs
from jaxclf.training.weights import Weights

FIRST = 8
"""Channels that are looked up where none are given."""


class Strongest(NamedTuple):
    """The t images that each of m channels answers most to, strongest first, each at its strongest position."""

    values: Float32[np.ndarray, "m t"]
    images: Int[np.ndarray, "m t"]
    """Their numbers, in the order in which they came."""
    positions: Int[np.ndarray, "m t 2"]
    """Row and column in the layer's output."""


def strongest(
    model: Classifier,
    variables: Mapping[str, Any],
    batches: Iterable[tuple[Float32[np.ndarray, "b h w c"], Int[np.ndarray, " n"]]],
    layer: str,
    channels: Sequence[int],
    *,
    top: int = 9,
) -> Strongest:
    """Find the t = min(`top`, images) images of the largest outputs; of equal ones, the lower number and position.

    `batches` are those of `Inputs.batches`: of b inputs the first n count. Each is dropped before the next is taken.
    Raises `UsageError` for a `top` below 1, an unknown layer, channels that it does not have, and outputs that are not
    finite; the first three before anything is compiled.
    """
    if top < 1:
        raise UsageError(f"top is {top} but must be at least 1")
    chosen = np.asarray(channels, np.int32)
    found: list[np.ndarray] = []
    seen = 0
    for images, labels in batches:
        if not found:
            require_outputs(model, images.shape, layer, channels)
        values, places = (np.asarray(one)[: len(labels)] for one in _largest(model, layer, variables, images, chosen))
        if not np.isfinite(values).all():
            raise UsageError(f"outputs of layer {layer!r} are not finite")
        numbers = np.broadcast_to(seen + np.arange(len(labels))[:, None], values.shape)
        found = _merged(found, [values, numbers, places], top)
        seen += len(labels)
    if not found:
        raise UsageError("there is no image to choose from")
    values, numbers, places = (one.T for one in found)
    width = taps.layers(model, images.shape)[layer].shape[2]
    return Strongest(values, numbers, np.stack(np.divmod(places, width), -1))


@dataclasses.dataclass(frozen=True, eq=False)
class Looked:
    """What `look_up` found: `Strongest` with the images that it is of."""

    found: Strongest
    channels: tuple[int, ...]
    inputs: Float32[np.ndarray, "m t h w c"]
    boxes: Int[np.ndarray, "m t 4"]
    """The part of each image that the position depends on: `receptive_field`."""
    shares: Float[np.ndarray, "m t 2"]
    """The middle of the position in the layer's output, as shares of its height and width."""
    projected: Float32[np.ndarray, "m t h w c"] | None
    """What each activation projects to: `deconvolve`."""
    preprocessing: Preprocessing


def look_up(
    weights: Weights,
    data: DataConfig,
    layer: str = taps.LAST,
    channels: Sequence[int] = (),
    *,
    split: str = "test",
    top: int = 9,
    deconvolved: bool = False,
    report: Report | None = None,
) -> Looked:
    """Find the images of a split that channels of a layer answer most to; without `channels`, its first `FIRST`.

    Raises `UsageError` as `strongest` and `open_inputs` do, and for a split that is not there.
    """
    model, variables = weights.model, weights.variables
    inputs = open_inputs(weights, resolve(data), report)
    if split not in inputs.splits:
        raise UsageError(f"there is no split {split!r}; there: {', '.join(inputs.splits)}")
    side = inputs.preprocessing.crop
    shape = (side, side, len(inputs.preprocessing.mean))
    require_outputs(model, (1, *shape), layer, channels)
    _, i, j, d = taps.layers(model, (1, *shape))[layer].shape
    channels = tuple(channels) or tuple(range(min(FIRST, d)))
    batches = inputs.batches(split, f"searching {split}")
    found = strongest(model, variables, batches, layer, channels, top=top)
    unique, places = np.unique(found.images, return_inverse=True)
    chosen = inputs.some(split, unique.tolist(), f"reading {split} again")[places.reshape(found.images.shape)]
    boxes = receptive_field(model, variables, shape, layer, found.positions.reshape(-1, 2))
    projected = None
    if deconvolved:
        rows = zip(chosen, channels, found.positions, strict=True)
        width = found.images.shape[1]
        projected = np.stack(
            [
                np.asarray(
                    deconvolve(model, variables, images, layer, np.full(width, channel, np.int32), at), np.float32
                )
                for images, channel, at in rows
            ]
        )
    shares = (found.positions + 0.5) / np.array([i, j])
    return Looked(
        found, channels, chosen, boxes.reshape(*found.images.shape, 4), shares, projected, inputs.preprocessing
    )


def require_outputs(model: Classifier, shape: tuple[int, ...], layer: str, channels: Sequence[int]) -> None:
    """Raise `UsageError` unless the layer is one whose output is a map, and has these channels."""
    shapes = taps.layers(model, shape)
    require_maps(shapes, [layer])
    if odd := sorted({one for one in channels if not 0 <= one < shapes[layer].shape[3]}):
        raise UsageError(f"channels {odd} given, but layer {layer!r} has 0 to {shapes[layer].shape[3] - 1}")


def _merged(before: Sequence[np.ndarray], more: Sequence[np.ndarray], top: int) -> list[np.ndarray]:
    """Return the `top` largest of values, numbers and places, each [n m]; equal ones stay in the order they came in."""
    values, *others = (np.concatenate(pair) for pair in zip(before or [one[:0] for one in more], more, strict=True))
    order = np.argsort(-values, axis=0, kind="stable")[:top]
    return [np.take_along_axis(one, order, 0) for one in (values, *others)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _largest(
    model: Classifier, layer: str, variables: Any, images: Float[Array, "b h w c"], channels: Int[Array, " m"]
) -> tuple[Float[Array, "b m"], Int[Array, "b m"]]:
    """Return the largest output of each image and channel, and its place among the positions, row by row."""
    output = taps.tap(model, variables, images, (layer,)).outputs[layer][..., channels]
    flat = output.reshape(len(output), -1, len(channels)).astype(jnp.float32)
    return flat.max(1), flat.argmax(1)
