"""Where an image shows what a network recognises: boxes and points of maps, and how well they agree with true boxes.

A box is (y0, x0, y1, x1) in pixels, half-open; pixel (y, x) reaches from there to (y + 1, x + 1). The measures ask n
questions, each a map of one class of one image, which has m places for true boxes; a place without one holds zeros.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Int64, Real
from scipy import ndimage

from jaxclf.errors import UsageError
from jaxclf.models.attribution import attribute
from jaxclf.models.classifier import Classifier

THRESHOLD = 0.2
"""Share of a map's maximum, as in Zhou et al. 2016."""
THRESHOLDS = tuple(step / 20 for step in range(20))
"""Those that `max_box_accuracy` tries: Choe et al. take a step of .001, which may find a larger maximum."""
OVERLAPS = (0.3, 0.5, 0.7)
"""Least intersections over union that count, as in Choe et al."""
NEIGHBOURS = np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))], bool)
"""Positions that are connected with the middle one: the eight around it, in the same map."""


# 1. Boxes and points


class Localised(NamedTuple):
    """The place of t classes in each image."""

    boxes: Int64[np.ndarray, "n t 4"]
    """y0, x0, y1, x1 in pixels, half-open; zeros where the map is constant: it shows no place."""
    points: Float64[np.ndarray, "n t 2"]
    """y, x in pixels of the centre of the map's largest position; not a number where the map is constant."""
    scores: Float[np.ndarray, "n t"]
    """Logits."""


def localise(
    model: Classifier,
    variables: Mapping[str, Any],
    images: Float[Array | np.ndarray, "n h w c"],
    classes: Int[np.ndarray, "n t"],
    *,
    method: str = "maps",
    threshold: float = THRESHOLD,
    layer: str | None = None,
) -> Localised:
    """Find the place of classes in images by their maps.

    A map is enlarged bilinearly to the image and scaled to 0..1 between its minimum and maximum; the box is the
    smallest around the largest region above `threshold`. Source: Zhou et al., "Learning deep features for
    discriminative localization", CVPR 2016, arXiv 1512.04150, who only divide by the maximum; scaled as here by Choe et
    al. (`max_box_accuracy`), so that maps with negative numbers have boxes, too.

    Args:
      model: a classifier.
      variables: its values.
      images: as the model takes them, normalised.
      classes: t classes of each image, whether it shows them or not.
      method: one of `attribution.METHODS`.
      threshold: from 0 to below 1.
      layer: path of the layer that the gradients are of.

    Raises `UsageError` for a threshold outside these bounds, and as `attribute` does.
    """
    _require_share(threshold)
    maps = np.asarray(attribute(model, variables, images, classes, method=method, layer=layer))  # [n t i j]
    logits = np.asarray(jax.jit(model.apply)(variables, jnp.asarray(images)))
    n, t, *grid = maps.shape
    size = (images.shape[1], images.shape[2])
    flat = maps.reshape(n * t, *grid)
    return Localised(
        largest_boxes(bilinear(flat, size), threshold).reshape(n, t, 4),
        peaks(flat, size).reshape(n, t, 2),
        np.take_along_axis(logits, classes, axis=1),
    )


def bilinear(maps: Float[np.ndarray, "*n i j"], size: tuple[int, ...]) -> Float[np.ndarray, "*n a b"]:
    """Resize with half-pixel centres and clamped edges (PyTorch's align_corners=False)."""
    for axis, target in zip((-2, -1), size, strict=True):
        n = maps.shape[axis]
        at = np.clip((np.arange(target) + 0.5) * n / target - 0.5, 0, n - 1)
        lower = np.floor(at).astype(int)
        part = (at - lower).astype(maps.dtype)
        if axis == -2:
            part = part[:, np.newaxis]
        upper = np.minimum(lower + 1, n - 1)
        maps = maps.take(lower, axis=axis) * (1 - part) + maps.take(upper, axis=axis) * part
    return maps


def largest_boxes(maps: Float[np.ndarray, "n h w"], threshold: float) -> Int64[np.ndarray, "n 4"]:
    """Return the smallest box around the largest region of each map, scaled to 0..1, that is above the threshold.

    A region is connected through sides and corners; the first from the top is taken of equally large ones. A constant
    map has none, and the box (0, 0, 0, 0).
    """
    _require_share(threshold)
    found: Any = ndimage.label(_scaled(maps) > threshold, NEIGHBOURS)
    regions, count = found  # [n h w], numbered from 1 map by map
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    sizes[0] = 0
    order = np.argsort(-sizes, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(count + 1)
    largest = order[ranks[regions].min((1, 2))]  # [n], 0 where there is no region
    inside = (regions == largest[:, None, None]) & (regions > 0)
    ends = []
    for axis in (2, 1):
        seen = np.any(inside, axis=axis)
        ends.append((seen.argmax(1), np.where(seen.any(1), seen.shape[1] - seen[:, ::-1].argmax(1), 0)))
    (top, bottom), (left, right) = ends
    return np.stack([top, left, bottom, right], axis=1).astype(np.int64)


def peaks(maps: Float[np.ndarray, "n i j"], size: tuple[int, int]) -> Float64[np.ndarray, "n 2"]:
    """Return where each map is largest in an image of a size: the centre of that position, y and x in pixels.

    There the map's bilinear enlargement is largest, too. The first of equal ones is taken, row by row; a constant map
    is largest nowhere, and its point is not a number.
    """
    n, *grid = maps.shape
    flat = maps.reshape(n, -1)
    positions = np.stack(np.unravel_index(flat.argmax(1), grid), axis=1)  # [n 2]
    points = (positions + 0.5) * np.asarray(size) / np.asarray(grid)
    return np.where((flat.max(1) > flat.min(1))[:, np.newaxis], points, np.nan)


def _scaled(maps: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    """Scale each map to 0..1 between its minimum and maximum; a constant one to 0."""
    low = maps.min((1, 2), keepdims=True)
    span = maps.max((1, 2), keepdims=True) - low
    return (maps - low) / np.where(span > 0, span, 1)


def _require_share(threshold: float) -> None:
    if not 0 <= threshold < 1:
        raise UsageError(f"threshold is {threshold} but must be from 0 to below 1: maps are scaled to 0..1")


# 2. Measures


def intersection_over_union(
    boxes: Real[np.ndarray, "n 4"], truth: Real[np.ndarray, "n m 4"]
) -> Float64[np.ndarray, "n m"]:
    """Return the area that a box shares with each true box over the area of both together; 0 where neither has any."""
    own = boxes[:, np.newaxis].astype(np.float64)
    shared = _area(np.concatenate([np.maximum(own, truth)[..., :2], np.minimum(own, truth)[..., 2:]], axis=-1))
    union = _area(own) + _area(truth) - shared
    return shared / np.where(union > 0, union, 1)


def _area(boxes: Real[np.ndarray, "*n 4"]) -> Real[np.ndarray, "*n"]:
    return np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(-1)


def pointing_game(
    points: Float[np.ndarray, "n 2"], truth: Real[np.ndarray, "n m 4"], *, tolerance: float = 0.0
) -> Bool[np.ndarray, " n"]:
    """Return which points hit: they lie in a true box, or at most `tolerance` pixels from one.

    The point of a constant map, which is not a number, misses. Source: Zhang et al., "Top-down neural attention by
    excitation backprop", ECCV 2016, arXiv 1608.00507. On photographs a tolerance of 15 pixels is usual.
    """
    own = points[:, np.newaxis]
    apart = np.maximum(np.maximum(truth[..., :2] - own, own - truth[..., 2:]), 0)  # [n m 2]
    near = np.hypot(apart[..., 0], apart[..., 1]) <= tolerance
    return np.any(near & (_area(truth) > 0), axis=1)


def max_box_accuracy(
    maps: Float[np.ndarray, "n h w"],
    truth: Real[np.ndarray, "n m 4"],
    *,
    overlaps: Sequence[float] = OVERLAPS,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Float64[np.ndarray, " overlaps"]:
    """Return MaxBoxAcc at each overlap: the largest share, over thresholds, of maps whose box overlaps a true one so.

    The box is that of `largest_boxes`, and its best intersection over union with any true box must be at least the
    overlap. One threshold serves all maps. Source: Choe et al., "Evaluating weakly supervised object localization
    methods right", CVPR 2020, arXiv 2001.07437, and github.com/clovaai/wsolevaluation, evaluation.py. MaxBoxAccV2 of
    their journal version, arXiv 2007.04178, is the mean over the overlaps, but takes the boxes of all regions.
    """
    shares = []
    for threshold in thresholds:
        best = intersection_over_union(largest_boxes(maps, threshold), truth).max(1)
        shares.append((best[:, np.newaxis] >= np.asarray(overlaps)).mean(0))
    return np.max(shares, axis=0)


def energy_inside(maps: Float[np.ndarray, "n h w"], truth: Real[np.ndarray, "n m 4"]) -> Float64[np.ndarray, " n"]:
    """Return the share of each map's positive part that lies in its true boxes, by the centres of pixels.

    A map without a positive number has 0. Source: the energy-based pointing game of Wang et al., "Score-CAM", CVPR
    workshops 2020, arXiv 1910.01279; its maps are not negative.
    """
    positive = np.maximum(maps.astype(np.float64), 0)
    inside = []
    for axis in (0, 1):
        at = np.arange(maps.shape[1 + axis]) + 0.5
        inside.append((truth[..., axis, None] <= at) & (at < truth[..., axis + 2, None]))  # [n m h], [n m w]
    chosen = (inside[0][..., np.newaxis] & inside[1][..., np.newaxis, :]).any(1)  # [n h w]
    whole = positive.sum((1, 2))
    return (positive * chosen).sum((1, 2)) / np.where(whole > 0, whole, 1)
