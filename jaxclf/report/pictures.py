"""The pictures of a results page as matplotlib Figures, and their SVG text. Pure: object API, no pyplot, no files.

Scores, learning curves and confusions are drawn here, class maps in map_pictures.py.

Every line and letter takes one of `COLOURS`; `svg` turns it into a CSS variable, so one picture serves light and dark.
"""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter
from numpy import ndarray

from jaxclf.report.experiment import Record, Row, Split, Summary, Table, evaluated_on

COLOURS = {
    "ink": "#1c2024",
    "muted": "#68707a",
    "line": "#dcdfe4",
    "s1": "#0072b2",
    "s2": "#d55e00",
    "s3": "#009e73",
    "s4": "#c2689a",
    "s5": "#b8860b",
    "s6": "#56b4e9",
}
"""Name of the CSS variable -> its value on a light page. s1..s6 are Okabe and Ito's (2008) colours, safe for the
colour-blind; purple and yellow are darkened for contrast on white."""

NEGATIVE, POSITIVE = (33, 102, 172), (213, 94, 0)
"""Ends of the diverging scale of class maps, RGB; POSITIVE also shades confusions."""

NAMED_CLASSES = 20
"""Confusion matrices up to this many classes name them on the axes and print counts."""


SEED = 4.5
"""Diameter of a seed's dot in a picture of scores, in CSS pixels."""

LABEL_ROOM = 21
"""Half of the width of a tick's label, in CSS pixels."""


def grouped(table: Table) -> dict[str, list[Row]]:
    """Return the table's rows by group, both in the table's order."""
    return {row.group: [other for other in table.rows if other.group == row.group] for row in table.rows}


def row_colours(table: Table) -> dict[str, str]:
    """Return label -> key of `COLOURS`: ink for a group's baseline, then s1, s2, ... by place in the group."""
    shades = [key for key in COLOURS if key.startswith("s")]
    return {
        row.label: "ink" if place == 0 else shades[(place - 1) % len(shades)]
        for rows in grouped(table).values()
        for place, row in enumerate(rows)
    }


def svg(figure: Figure, *, name: str, label: str) -> str:
    """Return the figure as an `<svg>` element for inline use: no prologue, no namespaces, no ids but its own.

    `name` salts the ids, so two pictures of one page never share a clip path; `label` (plain text) is read aloud.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}), warnings.catch_warnings():
        # The browser sets the text; that matplotlib's own font lacks a glyph only costs exact widths.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", text, count=3)
    text = re.sub(r'<g id="[\w.]+_\d+"', "<g", text)  # figure_1, axes_1, ...: referred to by nothing
    for key, value in COLOURS.items():
        text = re.sub(rf"(fill|stroke): {value}", rf"\1: var(--{key})", text)
    spoken = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return re.sub(r"\n\s*", "\n", text).replace("<svg", f'<svg role="img" aria-label="{spoken}"', 1).strip()


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of so many CSS pixels."""
    return Figure(figsize=(width / 96, height / 96), dpi=96)


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at CSS pixels from the top left."""
    w, h = figure.get_size_inches() * 96
    axes = figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=COLOURS["muted"], pad=5)
    axes.set_axisbelow(True)
    return axes


def write(axes: Axes, x: float, y: float, text: str, *, colour: str = "ink", size: float = 9.75, **more) -> None:
    """Write literal text (a `$` of a label is no mathematics)."""
    axes.text(x, y, text, color=COLOURS[colour], fontsize=size, parse_math=False, **more)


def _note(
    axes: Axes, at: tuple[float, float], points: tuple[float, float], text: str, *, colour: str = "ink", **more
) -> None:
    """Write literal text at a share of the width and a height in data, moved by some points."""
    axes.annotate(
        text,
        at,
        points,
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        color=COLOURS[colour],
        fontsize=9.75,
        va="center",
        parse_math=False,
        **more,
    )


def draw_scores(
    table: Table, summaries: Sequence[Summary], records: Sequence[Record], *, width: int, narrow: bool
) -> Figure:
    """Draw each row's mean top-1, its seeds and its printed number on one line, one panel per group.

    A narrow picture has the label above the row's line, a wide one beside it. Panels have their own scales.
    """
    groups = grouped(table)
    by_label = {summary.row.label: summary for summary in summaries}
    step, head, foot = (46, 30, 36) if narrow else (34, 30, 36)
    figure = canvas(width, sum(len(rows) * step + head + foot for rows in groups.values()) + 6)
    longest = max((len(short(row.short, 30)) for row in table.rows), default=0)
    left, right = (8, 12) if narrow else (30 + 6.5 * longest, 130)
    top = 0.0
    for group, rows in groups.items():
        axes = axes_at(figure, left, top + head, width - left - right, len(rows) * step)
        title = short(group, 43) if narrow else group
        _note(axes, (0, -0.5), (-0.75 * (left - 2), 14), title, fontweight="bold")
        points = {row.label: seed_scores(row, records, table.score) for row in rows}
        _score_panel(axes, [by_label[row.label] for row in rows], points, row_colours(table), narrow=narrow)
        for place, row in enumerate(rows):
            _score_words(axes, (left, right), place, by_label[row.label], narrow=narrow)
        top += head + len(rows) * step + foot
    return figure


def seed_scores(row: Row, records: Sequence[Record], split: Split) -> list[float]:
    """Return the top-1 of each run of a row that has one, in percent."""
    scores = (record.score(split) for record in records if record.label == row.label)
    return [value for value in scores if value is not None]


def _score_panel(
    axes: Axes,
    rows: Sequence[Summary],
    shown: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    *,
    narrow: bool,
) -> None:
    values = [v for points in shown.values() for v in points]
    values += [s.row.printed for s in rows if s.row.printed is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    pad = max(0.08 * (high - low), 0.15)
    axes.set(xlim=(low - pad, high + pad), ylim=(len(rows) - 0.5, -0.5), yticks=[])
    axes.xaxis.set_major_locator(FixedLocator(_ticks(axes, 5 if narrow else 8) if values else []))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g} %"))
    axes.grid(axis="x", color=COLOURS["line"], linewidth=0.75)
    reference = rows[0].ours.mean
    if reference is not None:  # narrow: only beside the points, clear of the words above each line
        ends = [(n, n + 0.4) for n in range(len(rows))] if narrow else [axes.get_ylim()]
        for end in ends:
            axes.plot([reference] * 2, end, color=COLOURS["muted"], linewidth=1.2, dashes=(4, 3), zorder=1.5)
    for place, summary in enumerate(rows):
        y = place + (0.2 if narrow else 0)
        _score_row(axes, y, summary, shown[summary.row.label], colours[summary.row.label])


def _ticks(axes: Axes, most: int) -> list[float]:
    """Return round values of the horizontal axis whose labels lie inside of the picture."""
    low, high = axes.get_xlim()
    figure = axes.get_figure(root=True)
    assert figure is not None
    width = figure.bbox.width
    ticks = [float(v) for v in MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= v <= high]
    return [v for v in ticks if LABEL_ROOM <= axes.transData.transform((v, 0))[0] <= width - LABEL_ROOM]


def lanes(values: Sequence[float], apart: float) -> list[tuple[float, int]]:
    """Return each value, in rising order, with the first lane whose last value is at least `apart` below it.

    >>> lanes([3.0, 1.0, 1.0, 1.5], apart=1.0)
    [(1.0, 0), (1.0, 1), (1.5, 2), (3.0, 0)]
    """
    ends: list[float] = []
    placed = []
    for value in sorted(values):
        lane = next((lane for lane, end in enumerate(ends) if value - end >= apart), len(ends))
        ends[lane : lane + 1] = [value]
        placed.append((value, lane))
    return placed


def _score_row(axes: Axes, y: float, summary: Summary, points: Sequence[float], colour: str) -> None:
    paint = COLOURS[colour]
    axes.plot(axes.get_xlim(), [y, y], color=COLOURS["line"], linewidth=0.75, zorder=1)
    if summary.row.printed is not None:
        axes.plot([summary.row.printed], [y], "D", mfc="none", mec=paint, mew=1.4, ms=8.5, zorder=5)
    if len(points) > 1:
        axes.plot([min(points), max(points)], [y, y], color=paint, alpha=0.35, linewidth=2.5, zorder=2)
        # Below the line, where the mean hides none, and equal ones below each other.
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        placed = lanes(points, SEED * (right - left) / axes.bbox.width)
        step = min(SEED, 9 / max(1, *(lane for _, lane in placed)))
        heights = [y + (9 + step * lane) * (bottom - top) / axes.bbox.height for _, lane in placed]
        axes.plot([v for v, _ in placed], heights, "o", color=paint, alpha=0.7, ms=3.4, mew=0, zorder=3, clip_on=False)
    if summary.ours.mean is not None:
        axes.plot([summary.ours.mean], [y], "o", color=paint, ms=9, mew=0, zorder=4)


def _score_words(axes: Axes, margins: tuple[float, float], place: int, summary: Summary, *, narrow: bool) -> None:
    """Write the row's label and its numbers, beside (in the margins, in pixels) or above its line."""
    number = summary.ours.text if summary.ours.n else "not run"
    left, right, y = (0, 0, place - 0.2) if narrow else (-margins[0], margins[1], place)
    for x, offset, text, side in ((0, left, short(summary.row.short, 30), "left"), (1, right, number, "right")):
        _note(axes, (x, y), (offset * 0.75, 0), text, ha=side, colour="ink" if summary.ours.n else "muted")


def short(text: str, limit: int) -> str:
    """Return the text, cut to `limit` characters with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _errors(runs: Sequence[Record]) -> tuple[ndarray, ndarray]:
    """Return the epochs that all runs evaluated [e], and their errors on what they evaluated in percent [runs e]."""
    curves = [
        {point["epoch"]: 100 - point[f"{split}_top1"] for point in run.curve if (split := evaluated_on(point))}
        for run in runs
    ]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    return np.asarray(epochs), np.asarray([[curve[epoch] for epoch in epochs] for curve in curves])


def evaluated_splits(rows: Sequence[Row], records: Sequence[Record]) -> list[Split]:
    """Return the splits that the learning curves of some rows were evaluated on, in alphabetical order."""
    labels = {row.label for row in rows}
    points = (point for record in records if record.label in labels for point in record.curve)
    return sorted({split for point in points if (split := evaluated_on(point))})


def draw_curves(
    rows: Sequence[Row], records: Sequence[Record], colours: Mapping[str, str], *, width: int, height: int
) -> Figure | None:
    """Draw the error (%) against epoch: mean over seeds, band from the smallest to the largest. None without curves.

    The error axis is logarithmic where the errors span more than a factor of five and none is zero.
    """
    curves = {row.label: _errors([r for r in records if r.label == row.label]) for row in rows}
    curves = {label: curve for label, curve in curves.items() if curve[0].size}
    if not curves:
        return None
    figure = canvas(width, height)
    axes = axes_at(figure, 54, 12, width - 68, height - 56)
    for label, (epochs, errors) in curves.items():
        paint, mean = COLOURS[colours[label]], errors.mean(axis=0)
        dashes = (None, None) if list(curves).index(label) < 7 else (4, 2)
        if len(errors) > 1 and epochs.size > 1:
            axes.fill_between(epochs, errors.min(axis=0), errors.max(axis=0), color=paint, alpha=0.15, linewidth=0)
        axes.plot(epochs, mean, color=paint, linewidth=1.8, dashes=dashes, marker="o" if epochs.size == 1 else None)
    every = np.concatenate([errors.ravel() for _, errors in curves.values()])
    _error_axis(axes, float(every.min()), float(every.max()))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(color=COLOURS["line"], linewidth=0.75)
    axes.set_xlabel("epoch", color=COLOURS["muted"], fontsize=9)
    return figure


def _error_axis(axes: Axes, low: float, high: float) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g} %"))
    if not (low > 0 and high / low > 5):
        axes.yaxis.set_major_locator(MaxNLocator(6))
        return
    axes.set_yscale("log")
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{m}e{d}") for d in decades for m in (1, 2, 5)]
    axes.set_ylim(low * 0.85, high * 1.15)
    axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if low * 0.85 <= t <= high * 1.15]))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g} %"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def error_shares(matrix: Int[ndarray, "k k"]) -> Float[ndarray, "k k"]:
    """Return each error as a share of its row (true class) in percent; the diagonal and empty rows are 0."""
    errors = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    return 100.0 * errors / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def draw_confusion(matrix: Int[ndarray, "k k"], class_names: Sequence[str], *, scale: float) -> Figure:
    """Draw errors shaded by their share of the row, full at `scale` percent; the diagonal is grey.

    Up to `NAMED_CLASSES` classes are named and every count is printed.
    """
    k = len(matrix)
    shares = error_shares(matrix)
    shade = np.zeros((k, k, 4))  # transparent: the page's own background, light or dark
    shade[..., :3] = np.asarray(POSITIVE) / 255
    shade[..., 3] = np.where(shares > 0, 0.12 + 0.78 * np.minimum(shares / max(scale, 1e-9), 1), 0)
    shade[np.eye(k, dtype=bool)] = (0.5, 0.5, 0.5, 0.25)
    named = k <= NAMED_CLASSES
    names = [short(str(name), 14) for name in class_names] if named else []
    margin = 34 + 6 * max(map(len, names), default=0)
    side = 294 if named else 276
    figure = canvas(margin + side + 6, margin + side + 6)
    axes = axes_at(figure, margin, margin, side, side)
    axes.imshow(shade, interpolation="none", aspect="equal")
    axes.set(xticks=range(len(names)), yticks=range(len(names)))
    axes.set_xticklabels(names, rotation=90 if max(map(len, names), default=0) > 2 else 0, parse_math=False)
    axes.set_yticklabels(names, parse_math=False)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("predicted", color=COLOURS["muted"], fontsize=9)
    axes.set_ylabel("true", color=COLOURS["muted"], fontsize=9)
    for edge in (-0.5, k - 0.5):
        axes.axhline(edge, color=COLOURS["line"], linewidth=1)
        axes.axvline(edge, color=COLOURS["line"], linewidth=1)
    for i, j in zip(*np.nonzero(matrix), strict=True) if named else ():
        colour, size = "muted" if i == j else "ink", 7.5 if k <= 12 else 5
        write(axes, int(j), int(i), str(matrix[i, j]), colour=colour, size=size, ha="center", va="center")
    return figure
