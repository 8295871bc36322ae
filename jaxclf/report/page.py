"""A table's results as one self-contained HTML page: no script, no address outside it. Pure: data in, text out.

templates/ holds the HTML and the style sheet; Jinja escapes whatever comes from outside. This module makes what they
show: sentences, pictures, and the values that a table of runs does not hold itself.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
from jaxtyping import Int
from numpy import argsort, ndarray

from jaxclf.report import map_pictures, pictures
from jaxclf.report.experiment import GAP_NOTE, CountTable, Record, Summary, Table, selection
from jaxclf.report.map_pictures import ClassMaps


def number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    """Format a number with a proper minus; an en dash stands for none."""
    return "–" if value is None else f"{value:{form}}{unit}".replace("-", "\N{MINUS SIGN}")


TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("jaxclf.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["number"] = number
TEMPLATES.globals["colours"] = pictures.COLOURS


def render(
    table: Table,
    summaries: Sequence[Summary],
    records: Sequence[Record],
    *,
    confusions: Mapping[str, Int[ndarray, "k k"]],
    class_names: Sequence[str],
    class_maps: Sequence[ClassMaps],
) -> str:
    """Return the page: answer, table, learning curves, confusions, class maps, every run.

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
        error=_error(table, records),
        curves=_curves(table, records),
        named=_named(confusions),
        scale=_scale(confusions),
        confusions=_confusions(confusions, class_names),
        class_maps=[(maps.label, [_class_map(maps.one(n), n) for n in range(len(maps.images))]) for maps in class_maps],
        records=records,
        facts=facts,
        note=_environment_note(facts),
    )


def render_counts(table: CountTable) -> str:
    """Return the page of a table of counts: every number, the printed one under it, bars of the column it names."""
    compared = [cell.agrees for _, cells in table.rows for cell in cells if cell.agrees is not None]
    return TEMPLATES.get_template("counts.html").render(table=table, compared=compared)


def _verdict(groups: Iterable[Sequence[Summary]]) -> str:
    """Return the one sentence that a reader in a hurry takes away."""
    gaps = [row.gap for rows in groups for row in rows[1:] if row.gap is not None]
    judged = Counter(
        "inside the noise" if gap.inside_noise else "better" if gap.mean > 0 else "worse"
        for gap in gaps
        if gap.inside_noise is not None
    )
    if not gaps:
        return "No row can be compared with its baseline yet."
    if not judged:
        return "Fewer than two seeds are common to a row and its baseline: these gaps cannot be told from noise yet."
    words = [word for word in ("inside the noise", "better", "worse") if judged[word]]
    counts = [f"{judged[word]} {'is' if judged[word] == 1 else 'are'} {word}" for word in words]
    listed = " and ".join([", ".join(counts[:-1]), counts[-1]] if len(counts) > 1 else counts)
    n = judged.total()
    return f"Of {n} row{'s' * (n > 1)} compared with the baseline, {listed}."


def _scores(table: Table, summaries: Sequence[Summary], records: Sequence[Record]) -> dict[str, str]:
    wide = pictures.draw_scores(table, summaries, records, width=1040, narrow=False)
    narrow = pictures.draw_scores(table, summaries, records, width=350, narrow=True)
    return _pair("scores", f"{table.score.capitalize()} top-1 accuracy of every row", wide, narrow)


def _pair(name: str, label: str, wide: pictures.Figure, narrow: pictures.Figure) -> dict[str, str]:
    """Return one picture in two widths, of which the style sheet shows one."""
    return {
        kind: pictures.svg(figure, name=f"{name}-{kind}", label=label)
        for kind, figure in (("wide", wide), ("narrow", narrow))
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
        splits = {row.label: pictures.evaluated_splits([row], records) for row in rows}
        key = {label: f"{label} ({found[0]})" if several else label for label, found in splits.items() if found}
        drawn = _pair(f"curves-{place}", f"{_error(table, records)} against epoch, {group}", wide, narrow)
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
