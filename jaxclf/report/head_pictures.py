"""The picture of a fixed head: its Gram matrix and how its cosines are spread, beside the bounds. Pure."""

import numpy as np
from matplotlib.figure import Figure

from jaxclf.report.head_table import HeadRow
from jaxclf.report.pictures import COLOURS, NEGATIVE, POSITIVE, axes_at, canvas, write

SHOWN = 256
"""Rows of the Gram matrix that are drawn: the first ones."""


def draw_head(row: HeadRow) -> Figure:
    """Draw the cosines of the first rows as a square, and the histogram of them with the bounds; `row` has a matrix."""
    assert row.matrix is not None
    assert row.bound is not None
    rows = row.matrix[:SHOWN]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    gram = np.clip(unit @ unit.T, -1, 1)
    figure = canvas(700, 290)
    square = axes_at(figure, 10, 34, 240, 240)
    ends = np.where(gram[..., None] > 0, np.asarray(POSITIVE), np.asarray(NEGATIVE)) / 255
    square.imshow(np.dstack([ends, np.abs(gram)]), interpolation="none", aspect="equal")
    square.set(xticks=[], yticks=[])
    shown = "cosines between rows" if len(rows) == len(row.matrix) else f"cosines between the first {SHOWN} rows"
    write(square, 0, 1.04, shown, transform=square.transAxes)
    spread = axes_at(figure, 300, 34, 380, 216)
    others = gram[~np.eye(len(gram), dtype=bool)]
    spread.hist(others, bins=np.linspace(-1, 1, 81).tolist(), color=COLOURS["s1"], log=True)
    spread.axvline(row.bound, color=COLOURS["s2"], linewidth=1.4)
    spread.set(xlim=(-1.03, 1.03), xticks=[-1, -0.5, 0, 0.5, 1])
    spread.grid(axis="x", color=COLOURS["line"], linewidth=0.75)
    words = f"pairs of rows by cosine; line: bound on the largest, {row.bound:z.3f}"
    write(spread, 0, 1.04, words, transform=spread.transAxes)
    return figure
