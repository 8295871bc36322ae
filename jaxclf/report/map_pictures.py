"""The pictures of class maps: an image, and over it the map of its true class and of the strongest other one. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy import ndarray

from jaxclf.report.pictures import NEGATIVE, POSITIVE, axes_at, canvas, short, write
from jaxclf.tools.localisation import THRESHOLD, bilinear, largest_boxes, peaks


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """Some test images and the per-position logits that one row of the table gives them."""

    label: str
    """Label of the row."""
    images: UInt8[ndarray, "n h w c"]
    maps: Float32[ndarray, "n i j k"]
    """Logits per position; their mean over positions is the image's logits."""
    labels: Int[ndarray, " n"]
    class_names: Sequence[str]

    def one(self, index: int) -> "ClassMaps":
        """Return the same with only image `index`."""
        part = slice(index, index + 1)
        return ClassMaps(self.label, self.images[part], self.maps[part], self.labels[part], self.class_names)

    @property
    def logits(self) -> Float32[ndarray, "n k"]:
        """The logits: each map's mean."""
        return self.maps.mean(axis=(1, 2))


def strongest_other(logits: Float[ndarray, " k"], label: int) -> int | None:
    """Return the class of the largest logit that is not `label`; None with one class."""
    return max((c for c in range(len(logits)) if c != label), key=lambda c: logits[c], default=None)


def _chosen(logits: Float[ndarray, " k"], label: int) -> list[int]:
    other = strongest_other(logits, label)
    return [label] if other is None else [label, other]


def bound(maps: ClassMaps) -> float:
    """Return the largest magnitude in the drawn maps of the first image: its scale is symmetrical around 0."""
    chosen = _chosen(maps.logits[0], int(maps.labels[0]))
    return float(np.abs(maps.maps[0][..., chosen]).max()) or 1.0


def draw_class_maps(maps: ClassMaps) -> Figure:
    """Draw one line per image: it, the true class's map over it, the strongest other class's map over it.

    Both maps of a line share one symmetrical scale: full colour is the largest magnitude in either.
    """
    panel, gap, head, foot = 108, 8, 20, 20
    line = head + panel + foot
    figure = canvas(3 * panel + 2 * gap, line * max(len(maps.images), 1))
    for n, (image, label, logits) in enumerate(zip(maps.images, maps.labels, maps.logits, strict=True)):
        chosen, base = _chosen(logits, int(label)), _enlarged(image)
        full = bound(maps.one(n))
        words = [("image", "", base)]
        for kind, c in zip(("true", "other"), chosen, strict=False):
            painted = overlay(base, bilinear(maps.maps[n][..., c], base.shape[:2]), full)
            words.append((f"{kind}: {_name(maps, c)}", f"logit {_signed(float(logits[c]))}", painted))
        for column, (above, below, pixels) in enumerate(words):
            axes = axes_at(figure, column * (panel + gap), n * line + head, panel, panel)
            axes.set(xticks=[], yticks=[])
            axes.imshow(pixels, interpolation="none", aspect="equal")
            write(axes, 0, 1.05, above, transform=axes.transAxes, size=9)
            write(axes, 0, -0.05, below, transform=axes.transAxes, size=8.5, va="top", colour="muted")
    return figure


@dataclass(frozen=True, eq=False)
class Place:
    """The map of one class that a method gives of an image."""

    label: str
    """Name of the method."""
    map: Float[ndarray, "i j"]


def draw_places(image: UInt8[ndarray, "h w c"], truth: Int[ndarray, "m 4"], places: Sequence[Place]) -> Figure:
    """Draw a line: the image, then each map over it, with its box and a cross where it is largest; true boxes in white.

    Each map has a symmetrical scale of its own, whose full colour is its largest magnitude.
    """
    panel, gap, head = 108, 8, 20
    figure = canvas((1 + len(places)) * (panel + gap), head + panel + gap)
    h, w, _ = image.shape
    base = _enlarged(image)
    for column, place in enumerate([None, *places]):
        axes = axes_at(figure, column * (panel + gap), head, panel, panel)
        axes.set(xticks=[], yticks=[])
        pixels = base
        if place is not None:
            full = float(np.abs(place.map).max()) or 1.0
            pixels = overlay(base, bilinear(place.map, base.shape[:2]), full)
        axes.imshow(pixels, interpolation="none", aspect="equal", extent=(0, w, h, 0))
        for y0, x0, y1, x1 in truth:
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=1))
        if place is not None:
            _mark(axes, place.map, (h, w))
        write(axes, 0, 1.05, short(place.label if place else "scene", 20), transform=axes.transAxes, size=8.5)
    return figure


def _mark(axes: Axes, values: Float[ndarray, "i j"], size: tuple[int, int]) -> None:
    """Draw the box of a map's largest region, and a cross where it is largest; nothing for a constant map."""
    if values.max() == values.min():
        return
    maps = values[np.newaxis]
    y0, x0, y1, x1 = largest_boxes(bilinear(maps, size), THRESHOLD)[0]
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="black", linewidth=1.2))
    (y, x) = peaks(maps, size)[0]
    axes.plot([x], [y], marker="x", color="black", markersize=6)


def _name(maps: ClassMaps, c: int) -> str:
    return short(str(maps.class_names[c]) if c < len(maps.class_names) else str(c), 13)


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _enlarged(image: UInt8[ndarray, "h w c"], *, least: int = 96) -> UInt8[ndarray, "a b 3"]:
    """Return the image in RGB with whole pixels repeated, or averaged in blocks where it is larger than needed."""
    rgb = np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image[..., :3]
    block = max(1, min(image.shape[:2]) // least)
    h, w = (size // block * block for size in image.shape[:2])
    small = rgb[:h, :w].reshape(h // block, block, w // block, block, 3).mean(axis=(1, 3))
    times = max(1, math.ceil(least / max(small.shape[:2])))
    return small.round().astype(np.uint8).repeat(times, axis=0).repeat(times, axis=1)


def overlay(image: UInt8[ndarray, "a b c"], values: Float[ndarray, "a b"], full: float) -> UInt8[ndarray, "a b 3"]:
    """Paint values over the greyed image; opacity is their magnitude, so that zero shows the bare image."""
    grey = 90 + 0.65 * image.mean(axis=2, keepdims=True)
    colour = np.where(values[..., None] > 0, np.asarray(POSITIVE), np.asarray(NEGATIVE))
    opacity = 0.85 * np.minimum(np.abs(values) / full, 1)[..., None]
    return (grey * (1 - opacity) + colour * opacity).round().astype(np.uint8)
