"""A number of each row against its top-1: the picture, and how well the one orders the other. Pure."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.special import ndtri
from scipy.stats import rankdata

from jaxclf.intervals import CONFIDENCE
from jaxclf.report.pictures import COLOURS, axes_at, canvas, write

LETTER, LINE = 5.3, 12.0
"""Room of a letter of a label and of its line, in CSS pixels."""


class Point(NamedTuple):
    """A row of a table: its mean top-1 over seeds, and the lowest and the highest of them, in percent."""

    label: str
    colour: str
    x: float
    mean: float
    low: float
    high: float


class Correlation(NamedTuple):
    """Spearman's rank correlation of n points, and the ends of its 95 % interval."""

    n: int
    rho: float
    low: float
    high: float


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Return Spearman's rank correlation; None below four points and where either side is constant.

    The interval is tanh(atanh(rho) ± z sqrt((1 + rho^2 / 2) / (n - 3))), z the normal distribution's 97.5 % quantile.
    Source: Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations",
    Psychometrika 65 (2000).

    >>> [round(part, 3) for part in rank_correlation([1, 2, 3, 4, 5, 6], [1, 3, 2, 4, 6, 5])]
    [6, 0.886, 0.066, 0.992]
    """
    n = len(x)
    if n < 4 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    rho = float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    if abs(rho) > 1 - 1e-12:
        return Correlation(n, rho, rho, rho)
    half = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return Correlation(n, rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half))


def draw_scatter(points: Sequence[Point], name: str, *, width: int, height: int) -> Figure:
    """Draw each row's mean top-1 over its number, with a line from its lowest to its highest seed."""
    figure = canvas(width, height)
    axes = axes_at(figure, 52, 12, width - 66, height - 56)
    xs, ys = [p.x for p in points], [y for p in points for y in (p.low, p.high)]
    pads = [0.06 * (max(values) - min(values)) or 0.5 for values in (xs, ys)]
    axes.set(xlim=(min(xs) - pads[0], max(xs) + pads[0]), ylim=(min(ys) - pads[1], max(ys) + pads[1]))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g} %"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(color=COLOURS["line"], linewidth=0.75)
    axes.set_xlabel(name, color=COLOURS["muted"], fontsize=9)
    for p in points:
        axes.plot([p.x, p.x], [p.low, p.high], color=COLOURS[p.colour], alpha=0.4, linewidth=2)
        axes.plot([p.x], [p.mean], "o", color=COLOURS[p.colour], ms=6, mew=0)
    pixels = [tuple(axes.transData.transform((p.x, p.mean))) for p in points]
    for p, (x, y), dot in zip(points, _places(pixels, [p.label for p in points], width), pixels, strict=True):
        left, row = axes.transData.inverted().transform((x, y))
        if abs(y - dot[1]) >= LINE:
            axes.plot([p.x, left], [p.mean, row], color=COLOURS[p.colour], linewidth=0.6)
        write(axes, left, row, p.label, size=7, va="center", colour="ink")
    return figure


def _places(dots: Sequence[tuple[float, float]], labels: Sequence[str], width: float) -> Iterator[tuple[float, float]]:
    """Yield where each label begins, in pixels: beside its dot, or above or below, the nearest place that is free."""
    taken: list[tuple[float, float, float]] = []
    for (x, y), label in zip(dots, labels, strict=True):
        length = LETTER * len(label)
        left = x + 8 if x + 8 + length < width else x - 8 - length
        rows = (y + sign * step * LINE / 2 for step in range(60) for sign in (1, -1))
        free = (
            row
            for row in rows
            if all(abs(row - other) >= LINE or left >= end or begin >= left + length for begin, end, other in taken)
        )
        row = next(free, y)
        taken.append((left, left + length, row))
        yield left, row
