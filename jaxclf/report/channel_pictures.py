"""The pictures of what channels answer: the maps of an image layer by layer, and the first filters. Pure."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from jaxclf.models import taps
from jaxclf.report.page import number
from jaxclf.report.pictures import COLOURS, NEGATIVE, POSITIVE, axes_at, canvas, write
from jaxclf.tools.activations import Maps, around_grey, pixels
from jaxclf.tools.strongest import Looked

GAP, LINE, HEAD = 8, 16, 34
"""Between pictures, of the line under one, and of the heading over a row of them, in CSS pixels."""
LETTER = 7
"""Width that a letter of a heading may take, in CSS pixels."""
UNITS = 128
"""Most cells in a line of a layer with one position."""


class Cell(NamedTuple):
    """A picture and the words under it."""

    pixels: Float[ndarray, "h w 4"] | UInt8[ndarray, "h w c"]
    words: str = ""
    mark: tuple[float, float] | None = None
    """Where a ring is drawn: shares of height and width."""


class Row(NamedTuple):
    """Pictures under one heading, as wide as `across` columns each."""

    heading: str
    cells: Sequence[Cell]
    across: int = 1


def draw_rows(rows: Iterable[Row], *, width: int, columns: int) -> Figure:
    """Draw rows of pictures, each on as many lines as the columns ask for; none is wider than the picture."""
    rows, side = list(rows), (width - GAP * (columns - 1)) / columns
    heights = [_height(row, side, columns) for row in rows]
    figure = canvas(width, sum(heights))
    axes = axes_at(figure, 0, 0, width, sum(heights))
    axes.set(xlim=(0, width), ylim=(sum(heights), 0), xticks=[], yticks=[])
    top = 0.0
    for row, height in zip(rows, heights, strict=True):
        _draw_row(axes, row, top, side, columns)
        top += height
    axes.set(xlim=(0, width), ylim=(sum(heights), 0))  # imshow sets its own
    return figure


def _sizes(row: Row, side: float, columns: int) -> tuple[float, float, int]:
    """Return width and height of a row's pictures in CSS pixels, and how many stand on a line."""
    across = min(row.across, columns)
    wide = across * side + (across - 1) * GAP
    h, w = row.cells[0].pixels.shape[:2]
    return wide, wide * h / w + (LINE if any(cell.words for cell in row.cells) else 0), columns // across


def _height(row: Row, side: float, columns: int) -> float:
    _, high, line = _sizes(row, side, columns)
    return _head(row, side, columns) + math.ceil(len(row.cells) / line) * (high + GAP)


def _heading(row: Row, side: float, columns: int) -> list[str]:
    """Return the lines of a heading that fit into the picture."""
    return textwrap.wrap(row.heading, int(columns * (side + GAP) / LETTER))


def _head(row: Row, side: float, columns: int) -> int:
    return HEAD + LINE * (len(_heading(row, side, columns)) - 1)


def _draw_row(axes: Axes, row: Row, top: float, side: float, columns: int) -> None:
    wide, high, line = _sizes(row, side, columns)
    write(axes, 0, top + 12, "\n".join(_heading(row, side, columns)), va="top")
    top += _head(row, side, columns)
    for place, (picture, words, mark) in enumerate(row.cells):
        left, above = place % line * (wide + GAP), top + place // line * (high + GAP)
        below = above + wide * picture.shape[0] / picture.shape[1]
        small = reduced(picture, int(wide))
        axes.imshow(small, extent=(left, left + wide, below, above), aspect="auto", interpolation="none")
        if mark is not None:
            at = [left + mark[1] * wide], [above + mark[0] * (below - above)]
            axes.plot(*at, "o", ms=11, mfc="none", mec="white", mew=2.6)
            axes.plot(*at, "o", ms=11, mfc="none", mec=COLOURS["s2"], mew=1.4)
        write(axes, left, below + 4, words, size=8, va="top", colour="muted")


def reduced(pixels: ndarray, most: int) -> ndarray:
    """Return the picture [h w c], averaged in blocks of whole pixels if it is more than twice as wide as `most`."""
    block = max(1, pixels.shape[1] // most)
    h, w = (size // block * block for size in pixels.shape[:2])
    means = pixels[:h, :w].reshape(h // block, block, w // block, block, -1).mean(axis=(1, 3))
    return means.round().astype(np.uint8) if pixels.dtype == np.uint8 else means


def rgb(pixels: UInt8[ndarray, "h w c"]) -> UInt8[ndarray, "h w 3"]:
    """Return grey or RGB pixels as RGB."""
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def signed(values: Float[ndarray, "i j"], full: float) -> Float[ndarray, "i j 4"]:
    """Return a map as RGBA: the page's own colour is 0, one end of the diverging scale `full`, the other -`full`."""
    ends = np.where(values[..., None] > 0, np.asarray(POSITIVE), np.asarray(NEGATIVE)) / 255
    return np.dstack([ends, np.minimum(np.abs(values) / full, 1)])


def layer_row(maps: Maps) -> Row:
    """Return the maps of a layer on one scale, around 0; one of single positions is a strip of all its channels."""
    i, j, _ = maps.values.shape
    full = float(np.abs(maps.values).max()) or 1.0
    name, scale = named(maps.path), f"full colour ±{full:.3g}"
    if i * j > 1:
        cells = [
            Cell(signed(maps.values[..., m], full), str(channel)) for m, channel in enumerate(maps.channels.tolist())
        ]
        shown = f"{len(cells)} strongest of {maps.of}" if len(cells) < maps.of else f"all {maps.of}"
        return Row(f"{name}: {shown} channels, {i} × {j}, {scale}", cells)
    across = min(UNITS, maps.of)
    units = np.zeros(-(-maps.of // across) * across)
    units[: maps.of] = maps.values[0, 0]
    strip = signed(units.reshape(-1, across), full).repeat(2, 0)
    return Row(f"{name}: all {maps.of} channels, one position, {scale}", [Cell(strip)], across=99)


def draw_activations(
    image: UInt8[ndarray, "h w c"],
    layers: Sequence[Maps],
    inverted: Mapping[str, tuple[UInt8[ndarray, "h w c"], float]],
    *,
    width: int,
    columns: int,
) -> Figure:
    """Draw an image as the network takes it, what its layers keep of it, if that is given, and the maps of the layers.

    `inverted` holds, by layer, an image that was sought for the same answer, and how far off the answer is.
    """
    h, w, _ = image.shape
    rows = [Row(f"image, {h} × {w}", [Cell(rgb(image))], across=2)]
    if inverted:
        kept = [Cell(rgb(found), f"{named(layer)}: {distance:.3f}") for layer, (found, distance) in inverted.items()]
        rows.append(Row("what a layer keeps of it: an image found from noise, and its distance", kept, across=2))
    return draw_rows([*rows, *(layer_row(maps) for maps in layers)], width=width, columns=columns)


def named(layer: str) -> str:
    """Return the name of a layer by its path."""
    return layer if layer != taps.LAST else "last feature map"


def draw_filters(filters: UInt8[ndarray, "d h w c"], *, width: int, columns: int) -> Figure:
    """Draw the first convolution's filters, with the numbers of their channels."""
    cells = [Cell(rgb(kernel), str(channel)) for channel, kernel in enumerate(filters)]
    d, h, w, _ = filters.shape
    return draw_rows([Row(f"{d} filters, {h} × {w}", cells)], width=width, columns=columns)


def draw_strongest(looked: Looked, *, width: int, columns: int) -> Figure:
    """Draw, for each channel, what its strongest positions see of their images, and what these project to.

    These are crops of one size, that of the largest receptive field. Where that is more than half of an image's side,
    it is the whole image, with a ring at the position.
    """
    h, w = looked.inputs.shape[2:4]
    sizes = [int((looked.boxes[..., end] - looked.boxes[..., end - 2]).max()) for end in (2, 3)]
    high, wide = (h, w) if 2 * sizes[0] > h or 2 * sizes[1] > w else sizes
    rows = []
    for m, channel in enumerate(looked.channels):
        images = [pixels(image, looked.preprocessing) for image in looked.inputs[m]]
        seen = [rgb(crop(image, box, high, wide)) for image, box in zip(images, looked.boxes[m], strict=True)]
        words = [number(float(value), ".3g") for value in looked.found.values[m]]
        marks = looked.shares[m].tolist() if high == h else [None] * len(words)
        rows.append(Row(f"channel {channel}", [Cell(*one) for one in zip(seen, words, marks, strict=True)]))
        if looked.projected is not None:
            back = zip(map(around_grey, looked.projected[m]), looked.boxes[m], strict=True)
            cells = [Cell(rgb(crop(one, box, high, wide))) for one, box in back]
            rows.append(Row(f"channel {channel}, projected back to the pixels", cells))
    return draw_rows(rows, width=width, columns=columns)


def crop(image: UInt8[ndarray, "h w c"], box: Int[ndarray, "4"], height: int, width: int) -> UInt8[ndarray, "a b c"]:
    """Return the part of an image of this size that starts where a box does, moved to lie within the image."""
    h, w, _ = image.shape
    y, x = min(int(box[0]), h - height), min(int(box[1]), w - width)
    return image[y : y + height, x : x + width]
