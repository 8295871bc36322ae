"""A table's results as one self-contained HTML page: no script, no address outside it. Pure, but for the last two.

templates/ holds the HTML and the style sheet; Jinja escapes whatever comes from outside. This module makes what they
show: sentences, pictures, and the values that a table of runs does not hold itself.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
from jaxtyping import Int
from numpy import argsort, ndarray

from jaxclf.errors import UsageError, one_line
from jaxclf.report import map_pictures, pictures
from jaxclf.report.experiment import GAP_NOTE, CountTable, Record, Summary, Table, selection
from jaxclf.report.head_pictures import draw_head
from jaxclf.report.head_table import COLUMNS, HeadRow, cells
from jaxclf.report.map_pictures import ClassMaps
from jaxclf.report.scatter import Point, draw_scatter, rank_correlation
from jaxclf.storage import require_local
from jaxclf.training.collapse import MEASURES


def number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    """Format a number with a proper minus; an en dash stands for none."""
    return "–" if value is None else f"{value:{form}}{unit}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float | None) -> str:
    """Return a time in two units; an en dash stands for none.

    >>> duration(8.25), duration(200), duration(7500)
    ('8.2 s', '3 min 20 s', '2 h 05 min')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("jaxclf.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["number"] = number
TEMPLATES.filters["duration"] = duration
TEMPLATES.globals["colours"] = pictures.COLOURS


def render(
    table: Table,
    summaries: Sequence[Summary],
    records: Sequence[Record],
    *,
    confusions: Mapping[str, Int[ndarray, "k k"]],
    class_names: Sequence[str],
    class_maps: Sequence[ClassMaps],
    recipe: Mapping[str, str] | None = None,
) -> str:
    """Return the page: answer, table, learning curves, confusions, class maps, every run.

    `recipe` holds fields of the config that all runs share, name -> text.
    `confusions` maps a row's label to its counts summed over seeds, rows being the true class. A part without data
    is left out, and a row without a run says so. The same input gives the same text, byte for byte.
    """
    order = {row.label: place for place, row in enumerate(table.rows)}
    records = sorted((r for r in records if r.label in order), key=lambda r: (order[r.label], r.seed))
    by_label = {summary.row.label: summary for summary in summaries}
    groups = {group: [by_label[row.label] for row in rows] for group, rows in pictures.grouped(table).items()}
    facts = _facts(records)
    return TEMPLATES.get_template("results.html").render(
        table=table,
        groups=groups,
        verdict=_verdict(groups.values()),
        selected=selection(table, summaries) if table.select else "",
        printed=any(row.printed is not None for row in table.rows),
        twin=any(summary.twin.n for summary in summaries),
        dots=pictures.row_colours(table),
        scores=_scores(table, summaries, records),
        gap_note=GAP_NOTE,
        measured=_measured(records),
        scatters=_scatters(table, summaries, records),
        error=_error(table, records),
        measures=MEASURES,
        curves=_curves(table, records),
        named=_named(confusions),
        scale=_scale(confusions),
        confusions=_confusions(confusions, class_names),
        class_maps=[(maps.label, [_class_map(maps.one(n), n) for n in range(len(maps.images))]) for maps in class_maps],
        records=records,
        effort=_effort(records, len(table.rows) * len(table.seeds)),
        recipe=recipe or {},
        facts={key: "; ".join(values) for key, values in facts.items()},
        note=_environment_note(facts),
    )


def render_counts(table: CountTable) -> str:
    """Return the page of a table of counts: every number, the printed one under it, bars of the column it names."""
    compared = [cell.agrees for _, cells in table.rows for cell in cells if cell.agrees is not None]
    return TEMPLATES.get_template("counts.html").render(table=table, compared=compared)


def render_heads(title: str, rows: Sequence[HeadRow]) -> str:
    """Return the page of some heads: their facts, and a picture of every fixed matrix."""
    drawn = {
        row.name: pictures.svg(draw_head(row), name=row.name, label=f"Cosines of {row.name}")
        for row in rows
        if row.facts
    }
    table = {"title": title}
    given = {"cells": [cells(row) for row in rows], "columns": COLUMNS}
    return TEMPLATES.get_template("heads.html").render(table=table, pictures=drawn, **given)


def _verdict(groups: Iterable[Sequence[Summary]]) -> str:
    """Return the one sentence that a reader in a hurry takes away."""
    gaps = [row.gap for rows in groups for row in rows[1:] if row.gap is not None]
    judged = Counter(
        "the same" if gap.inside_noise else "better" if gap.mean > 0 else "worse"
        for gap in gaps
        if gap.inside_noise is not None
    )
    if not gaps:
        return "No row can be compared with its baseline yet."
    if not judged:
        return "Fewer than two seeds are common to a row and its baseline: these gaps cannot be told from noise yet."
    n, same = judged.total(), judged.pop("the same", 0)
    if same == n:
        return (
            f"No difference found: {f'all {n} rows are' if n > 1 else 'the row is'} inside the noise of the baseline."
        )
    found = [f"{count} {'is' if count == 1 else 'are'} {word}" for word, count in sorted(judged.items())]
    rest = f"; no difference was found in {same} other{'s' * (same > 1)}" if same else ""
    return f"Of {n} row{'s' * (n > 1)} compared with the baseline, {' and '.join(found)}{rest}."


def _effort(records: Sequence[Record], wanted: int) -> str:
    """Say how many runs there are, when they ended and how long they took together."""
    if not records:
        return ""
    days = sorted({record.finished[:10] for record in records if record.finished})
    timed = [record.seconds for record in records if record.seconds is not None]
    words = [f"{len(records)} of {wanted} runs"]
    if days:
        words.append(f"finished {' to '.join(dict.fromkeys((days[0], days[-1])))}")
    if timed:
        untimed = len(records) - len(timed)
        without = f" without {untimed} that {'were' if untimed > 1 else 'was'} resumed or not timed" if untimed else ""
        words.append(f"training time {duration(sum(timed))} in all{without}")
    return f"{'; '.join(words)}."


def _scores(table: Table, summaries: Sequence[Summary], records: Sequence[Record]) -> dict[str, str]:
    wide = pictures.draw_scores(table, summaries, records, width=1040, narrow=False)
    narrow = pictures.draw_scores(table, summaries, records, width=350, narrow=True)
    return pair("scores", f"{table.score.capitalize()} top-1 accuracy of every row", wide, narrow)


def pair(name: str, label: str, wide: pictures.Figure, narrow: pictures.Figure) -> dict[str, str]:
    """Return one picture in two widths, of which the style sheet shows one."""
    return {
        kind: pictures.svg(figure, name=f"{name}-{kind}", label=label)
        for kind, figure in (("wide", wide), ("narrow", narrow))
    }


def _scatters(table: Table, summaries: Sequence[Summary], records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return, for each group with two rows or more to draw, or for all together, pictures of top-1 over a number."""
    if table.scatter is None:
        return {}
    values, colours = table.scatter.values(), pictures.row_colours(table)
    means = {summary.row.label: summary.ours.mean for summary in summaries}
    groups, together = pictures.grouped(table), table.scatter.together
    drawn: dict[str, list[Point]] = {group: [] for group in ([""] if together else groups)}
    key: dict[str, str] = {}
    for group, rows in groups.items():
        for place, row in enumerate(rows):
            seeds, mean = pictures.seed_scores(row, records, table.score), means[row.label]
            if row.label in values and mean is not None:
                name = row.short if not together else "" if place else group
                point = Point(name, colours[row.label], values[row.label], mean, min(seeds), max(seeds))
                drawn["" if together else group].append(point)
                key |= {row.short: colours[row.label]} if together else {}
    return {
        group: _scatter(points, table.scatter.name, f"scatter-{place}", group) | {"key": key}
        for place, (group, points) in enumerate(drawn.items())
        if len(points) > 1
    }


def _scatter(points: Sequence[Point], over: str, name: str, group: str) -> dict[str, Any]:
    wide, narrow = (draw_scatter(points, over, width=w, height=h) for w, h in ((1040, 460), (350, 420)))
    label = f"Top-1 against {over}{f', {group}' if group else ''}"
    correlation = rank_correlation([p.x for p in points], [p.mean for p in points])
    return {"pictures": pair(name, label, wide, narrow), "correlation": correlation}


def _measured(records: Sequence[Record]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the means over a row's runs of the measures of collapse at their ends: row -> split -> measure -> mean."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for record in records:
        for column, value in (record.curve[-1] if record.curve else {}).items():
            split, _, name = column.partition("_")
            if name in MEASURES and value is not None:
                found.setdefault(record.label, {}).setdefault(split, {}).setdefault(name, []).append(value)
    return {
        label: {split: {name: fmean(values) for name, values in part.items()} for split, part in parts.items()}
        for label, parts in found.items()
    }


def _error(table: Table, records: Sequence[Record]) -> str:
    """Return the name of the error that the learning curves show."""
    return f"{' or '.join(pictures.evaluated_splits(table.rows, records))} error".capitalize()


def _curves(table: Table, records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return, for each group that has curves, their pictures and the text of each row in the key."""
    colours, groups = pictures.row_colours(table), pictures.grouped(table)
    several = len(pictures.evaluated_splits(table.rows, records)) > 1
    sizes = ((1040, 380) if len(groups) == 1 else (500, 320)), (350, 270)
    curves = {}
    for place, (group, rows) in enumerate(groups.items()):
        wide, narrow = (pictures.draw_curves(rows, records, colours, width=w, height=h) for w, h in sizes)
        if wide is None or narrow is None:
            continue
        splits = [(row, pictures.evaluated_splits([row], records)) for row in rows]
        key = {row.label: row.short + f" ({found[0]})" * several for row, found in splits if found}
        drawn = pair(f"curves-{place}", f"{_error(table, records)} against epoch, {group}", wide, narrow)
        curves[group] = {"key": key, "pictures": drawn}
    return curves


def _named(confusions: Mapping[str, Int[ndarray, "k k"]]) -> bool:
    return all(len(matrix) <= pictures.NAMED_CLASSES for matrix in confusions.values())


def _scale(confusions: Mapping[str, Int[ndarray, "k k"]]) -> float:
    """Return the largest share of a class's images, in percent, that any row of the table takes for one other class."""
    return max((float(pictures.error_shares(m).max(initial=0)) for m in confusions.values()), default=0.0)


def _confusions(confusions: Mapping[str, Int[ndarray, "k k"]], class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    drawn = {}
    for place, (label, matrix) in enumerate(confusions.items()):
        figure = pictures.draw_confusion(matrix, class_names, scale=_scale(confusions))
        picture = pictures.svg(figure, name=f"confusion-{place}", label=f"Confusion matrix of {label}")
        drawn[label] = {"picture": picture, "frequent": _frequent(matrix, class_names)}
    return drawn


def _frequent(
    matrix: Int[ndarray, "k k"], class_names: Sequence[str], *, most: int = 3
) -> list[tuple[str, str, int, int]]:
    """Return the most frequent confusions: true class, predicted one, count, images of the class.

    Equal counts stand in the order of the classes.
    """
    k, found = len(matrix), []
    names = [str(class_names[i]) if i < len(class_names) else str(i) for i in range(k)]
    for flat in argsort(-matrix, axis=None, kind="stable"):
        true, predicted = divmod(int(flat), k)
        if true != predicted and matrix[true, predicted] > 0:
            found.append((names[true], names[predicted], int(matrix[true, predicted]), int(matrix[true].sum())))
    return found[:most]


def _class_map(maps: ClassMaps, index: int) -> dict[str, Any]:
    """Return the picture of one image, and what the row makes of it."""
    logits, label = maps.logits[0], int(maps.labels[0])
    predicted = int(logits.argmax())
    picture = pictures.svg(
        map_pictures.draw_class_maps(maps), name=f"maps-{maps.label}-{index}", label=f"Class maps of image {index + 1}"
    )
    return {
        "picture": picture,
        "name": maps.class_names[predicted] if predicted < len(maps.class_names) else predicted,
        "logit": float(logits[predicted]),
        "right": predicted == label,
        "bound": map_pictures.bound(maps),
    }


def _facts(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return the values of each fact of the environment; where there are several, with their numbers of runs."""
    keys = dict.fromkeys(key for record in records for key in record.environment)
    seen = {key: Counter(record.environment.get(key, "not recorded") for record in records) for key in keys}
    return {
        key: list(found) if len(found) == 1 else [f"{v} ({n} of {found.total()} runs)" for v, n in found.items()]
        for key, found in seen.items()
    }


def _environment_note(facts: Mapping[str, Sequence[str]]) -> str:
    differing = [key for key, values in facts.items() if len(values) > 1]
    if differing:
        return f"The runs differ in their environment: {', '.join(differing)}."
    return "Every run had this environment." if facts else "No environment was recorded."


def make_directory(out: Path) -> None:
    """Make the directory of a page, before the work that fills it.

    Raises `UsageError` for a URL, and where that fails.
    """
    require_local(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {one_line(error)}") from error


def write_page(out: Path, text: str, figures: Iterable[tuple[str, pictures.Figure]]) -> None:
    """Write index.html, and each picture as a PNG file of its name. Raises `UsageError` where that fails."""
    try:
        (out / "index.html").write_text(text)
        for name, figure in figures:
            figure.savefig(out / f"{name}.png", dpi=192)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {one_line(error)}") from error
