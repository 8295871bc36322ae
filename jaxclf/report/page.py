"""A table's results as one self-contained HTML page: no script, no address outside it. Pure: data in, text out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from jaxtyping import Int
from numpy import argsort, ndarray

from jaxclf.report import pictures
from jaxclf.report.experiment import GAP_NOTE, Difference, Record, Score, Summary, Table, selection
from jaxclf.report.pictures import ClassMaps

__all__ = ["ClassMaps", "render"]

DARK = {
    "ink": "#e9ebee",
    "muted": "#9aa4af",
    "line": "#343a42",
    "s1": "#4fa9e2",
    "s2": "#f58540",
    "s3": "#2fc49a",
    "s4": "#e29cc4",
    "s5": "#e6b73a",
    "s6": "#93d2f6",
}
"""`pictures.COLOURS` on a dark page."""

STYLE = """
:root { color-scheme: light dark; --page: #fdfdfc; --card: #fff; --wash: #f3f4f6; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1a1e23; --wash: #22272e; DARK } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 48px 20px 72px }
h1 { font-size: clamp(26px, 4vw, 38px); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 12px;
  text-wrap: balance }
h2 { font-size: 21px; line-height: 1.25; letter-spacing: -.01em; margin: 60px 0 6px }
h3 { font-size: 15px; margin: 0 0 4px; overflow-wrap: anywhere }
p { max-width: 72ch; margin: 0 0 14px } .lead { font-size: 17px; color: var(--muted) }
.note, figcaption { font-size: 14px; color: var(--muted) } .note { margin: 10px 0 }
.answer { margin: 28px 0 8px; padding: 18px 22px; background: var(--wash); border-radius: 10px }
.answer > p:first-child { font-size: 20px; line-height: 1.35; font-weight: 600; margin: 0 0 6px }
.answer ul { margin: 0; padding: 0; list-style: none } .answer li { margin: 6px 0; max-width: 85ch }
.answer b { font-weight: 600 }
figure { margin: 0; min-width: 0 } figcaption { max-width: 72ch }
svg { display: block; max-width: 100%; height: auto } svg * { stroke-linejoin: round; stroke-linecap: butt }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif !important;
  font-variant-numeric: tabular-nums }
svg image { image-rendering: pixelated }
.narrow { display: none } @media (max-width: 760px) { .wide { display: none } .narrow { display: block }
  .narrow svg { width: 100%; max-width: 480px } }
.grid { display: grid; gap: 32px 40px; margin-top: 18px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)) }
.grid.two { grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)) }
.beside { display: flex; flex-wrap: wrap; gap: 0 16px } .beside > h3 { flex: 0 0 100% }
.beside li > span { display: block }
.beside > ol, .beside > p { flex: 1 1 140px; margin-top: 26px }
@media (max-width: 560px) { .beside > ol, .beside > p { flex-basis: 100%; margin-top: 6px }
  .beside li > span { display: inline; margin-left: .6em } }
.scroll { overflow-x: auto; margin-top: 14px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 15px; width: 100% }
th, td { padding: 7px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { font-weight: 500 }
thead th { color: var(--muted); font-size: 13px; vertical-align: bottom; border-bottom-width: 2px }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--page) }
tbody .group th { font-weight: 650; padding-top: 22px; border-bottom-width: 2px }
td:last-child, thead th:last-child { padding-right: 2px }
.soft { color: var(--muted) } .mark { display: inline-block; width: 1.1em; text-align: left; text-decoration: none }
i.dot { display: inline-block; width: .66em; height: .66em; border-radius: 50%; margin-right: .5em;
  background: var(--c) }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; margin: 8px 0; padding: 0; list-style: none }
ol { margin: 6px 0 0; padding-left: 1.3em; font-size: 14px } ol li { padding-left: 2px }
.range { display: inline-block; width: 150px; height: 10px; border-radius: 5px; margin: 0 8px; vertical-align: middle;
  background: linear-gradient(90deg, rgb(33,102,172), #8885 50%, rgb(213,94,0)) }
.sides { display: grid; gap: 12px 48px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)) }
.sides > * { min-width: 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 20px; margin: 14px 0; font-size: 15px }
dt { color: var(--muted) } dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 560px) { th, td { padding: 7px 7px }
  tbody tr:not(.group) th { white-space: normal; min-width: 118px; max-width: 42vw } }
"""


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
    body = [
        _top(table, summaries, records),
        _results(table, summaries),
        _curves(table, records),
        _confusions(table, confusions, class_names),
        *map(_class_maps, class_maps[:1]),
        *(_class_maps(maps, first=False) for maps in class_maps[1:]),
        _runs(records),
    ]
    return document(table.title, [part for part in body if part])


def document(title: str, sections: Sequence[str]) -> str:
    """Return a self-contained page: `sections` are HTML, `title` is plain text."""
    light, dark = (" ".join(f"--{k}: {v};" for k, v in c.items()) for c in (pictures.COLOURS, DARK))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>{STYLE.replace('LIGHT', light).replace('DARK', dark)}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}".replace("-", "\N{MINUS SIGN}")


def _score(score: Score) -> str:
    spread = "" if score.std is None else f' <span class="soft">± {score.std:.2f}</span>'
    return f"{_number(score.mean)}{spread}"


def _gap(gap: Difference | None) -> str:
    """Return mean, half of the interval, pairs, and the mark, which keeps its place where there is none."""
    if gap is None:
        return "–"
    mark = '<abbr class="mark" title="inside the noise">≈</abbr>' if gap.inside_noise else '<span class="mark"></span>'
    return f'{_number(gap.mean, "+z.2f")}<span class="soft">{gap.interval}, n {gap.n}</span> {mark}'


def _dot(colour: str) -> str:
    return f'<i class="dot" style="--c: var(--{colour})"></i>'


def _by_group(table: Table, summaries: Sequence[Summary]) -> dict[str, list[Summary]]:
    by_label = {summary.row.label: summary for summary in summaries}
    return {group: [by_label[row.label] for row in rows] for group, rows in pictures.grouped(table).items()}


# 1. The answer


def _top(table: Table, summaries: Sequence[Summary], records: Sequence[Record]) -> str:
    groups, title = _by_group(table, summaries), f"{table.score.capitalize()} top-1 accuracy"
    lines = "".join(f"<li>{_sentence(rows, name if len(groups) > 1 else '')}</li>" for name, rows in groups.items())
    drawn = _pair(
        "scores",
        f"{title} of every row",
        pictures.draw_scores(table, summaries, records, width=1040, narrow=False),
        pictures.draw_scores(table, summaries, records, width=350, narrow=True),
    )
    selected = f"<p>{escape(selection(table, summaries))}</p>" if table.select else ""
    printed = " A hollow diamond is the printed number." if any(row.printed is not None for row in table.rows) else ""
    return (
        f'<header><h1>{escape(table.title)}</h1><p class="lead">{escape(table.caption)}</p></header>'
        f'<section class="answer"><p>{_verdict(groups.values())}</p><ul>{lines}</ul>{selected}</section>'
        f"<section><h2>{title}</h2><figure>{drawn}<figcaption>Large dot: mean over seeds; small dots: one "
        f"seed each; dashed line: the baseline’s mean, the baseline being the first row of its group.{printed} "
        f"{'Every group has its own scale.' if len(groups) > 1 else ''}</figcaption></figure></section>"
    )


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


def _sentence(rows: Sequence[Summary], group: str) -> str:
    base = rows[0]
    start = f"{escape(group)}. " if group else ""
    if base.ours.mean is None:
        return f"{start}The baseline, {escape(base.row.label)}, has not been run."
    parts = [f"<b>{escape(row.row.label)}</b> {_gap_in_words(row)}" for row in rows[1:]]
    against = f"{start}Baseline <b>{escape(base.row.label)}</b> {_number(base.ours.mean, unit=' %')}"
    return f"{against}; from there, in points: {'; '.join(parts)}." if parts else f"{against}."


def _gap_in_words(row: Summary) -> str:
    if row.gap is None:
        return "no seed in common" if row.ours.n else "not run"
    return f"{_number(row.gap.mean, '+z.2f')}{row.gap.interval}{' (inside the noise)' if row.gap.inside_noise else ''}"


def _pair(name: str, label: str, wide: pictures.Figure, narrow: pictures.Figure) -> str:
    """Return one picture in two widths, of which the style sheet shows one."""
    return "".join(
        f'<div class="{kind}">{pictures.svg(figure, name=f"{name}-{kind}", label=label)}</div>'
        for kind, figure in (("wide", wide), ("narrow", narrow))
    )


# 2. The table


def _results(table: Table, summaries: Sequence[Summary]) -> str:
    printed = any(row.printed is not None for row in table.rows)
    twin = any(s.twin.n for s in summaries)
    ours = "jaxclf, %" if twin else "Top-1, %"
    titles = ["Row", *["Printed, %"] * printed, *["PyTorch here, %"] * twin, ours, "Runs", "Gap"]
    titles += [*["Printed gap"] * printed, "Trainable", "Fixed", "Savings"]
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    colours = pictures.row_colours(table)
    body = ""
    for group, rows in _by_group(table, summaries).items():
        body += f'<tbody><tr class="group"><th scope="rowgroup" colspan="{len(titles)}">{escape(group)}</th></tr>'
        for row in rows:
            cells = "".join(f"<td>{cell}</td>" for cell in _cells(table, row, printed=printed, twin=twin))
            body += f'<tr><th scope="row">{_dot(colours[row.row.label])}{escape(row.row.label)}</th>{cells}</tr>'
        body += "</tbody>"
    source = f" Printed numbers: {escape(table.source)}." if printed and table.source else ""
    return (
        f'<section><h2>The table</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>{body}</table></div>'
        f'<p class="note">Top-1: {table.score} images; mean over the finished runs (one a seed) ± sample standard '
        f"deviation (n − 1). {GAP_NOTE} "
        "Trainable and fixed count parameters; savings: trainable parameters saved, in percent of the baseline’s."
        f"{source}</p></section>"
    )


def _cells(table: Table, row: Summary, *, printed: bool, twin: bool) -> list[str]:
    first, runs, seeds = row.row == table.baseline(row.row), row.ours.n, len(table.seeds)
    cells = [_number(row.row.printed)] if printed else []
    if twin:
        cells.append(_score(row.twin) + (f'<span class="soft">, n {row.twin.n}</span>' if row.twin.n else ""))
    cells.append(_score(row.ours))
    counted = str(runs) if runs >= seeds else f"{runs} of {seeds}"
    cells.append(counted if runs else '<span class="soft">not run</span>')
    cells.append('<span class="soft">baseline</span>' if first else _gap(row.gap))
    if printed:
        cells.append("" if first else _number(row.printed_gap, "+z.2f"))
    cells += [_number(row.trainable, ","), _number(row.fixed, ","), "" if first else _number(row.savings, "z.2f", " %")]
    return cells


# 3. Learning curves


def _curves(table: Table, records: Sequence[Record]) -> str:
    colours, figures = pictures.row_colours(table), []
    groups, splits = pictures.grouped(table), pictures.evaluated_splits(table.rows, records)
    error = f"{' or '.join(splits)} error".capitalize()
    wide = (1040, 380) if len(groups) == 1 else (500, 320)
    for place, (group, rows) in enumerate(groups.items()):
        sizes = wide, (350, 270)
        drawn = [pictures.draw_curves(rows, records, colours, width=w, height=h) for w, h in sizes]
        if drawn[0] is None or drawn[1] is None:
            continue
        of_row = {row.label: pictures.evaluated_splits([row], records) for row in rows}
        key = "".join(
            f"<li>{_dot(colours[r.label])}{escape(r.label)}{f' ({of_row[r.label][0]})' * (len(splits) > 1)}</li>"
            for r in rows
            if of_row[r.label]
        )
        title = f"<h3>{escape(group)}</h3>" if len(groups) > 1 else ""
        picture = _pair(f"curves-{place}", f"{error} against epoch, {group}", drawn[0], drawn[1])
        figures.append(f'<figure>{title}<ul class="key">{key}</ul>{picture}</figure>')
    if not figures:
        return ""
    grid = f'<div class="grid two">{"".join(figures)}</div>' if len(groups) > 1 else figures[0]
    return (
        f'<section><h2>Learning curves</h2><p class="note">{error} in percent after each epoch that was evaluated: '
        f"mean over seeds; the band runs from the lowest to the highest seed.</p>{grid}</section>"
    )


# 4. Confusion


def _confusions(table: Table, confusions: Mapping[str, Int[ndarray, "k k"]], class_names: Sequence[str]) -> str:
    if not confusions:
        return ""
    colours = pictures.row_colours(table)
    named = all(len(matrix) <= pictures.NAMED_CLASSES for matrix in confusions.values())
    grid, beside = ("grid two", ' class="beside"') if named else ("grid", "")
    scale = max(float(pictures.error_shares(matrix).max(initial=0)) for matrix in confusions.values())
    figures = []
    for place, (label, matrix) in enumerate(confusions.items()):
        figure = pictures.draw_confusion(matrix, class_names, scale=scale)
        picture = pictures.svg(figure, name=f"confusion-{place}", label=f"Confusion matrix of {label}")
        title = f"<h3>{_dot(colours.get(label, 'muted'))}{escape(label)}</h3>"
        figures.append(f"<figure{beside}>{title}{picture}{_frequent(matrix, class_names)}</figure>")
    return (
        '<section><h2>What is taken for what</h2><p class="note">Rows are the true class, columns the predicted one, '
        "counts are summed over seeds. Errors are shaded by their share of the row, the same in every matrix: full "
        f"colour is {scale:.1f} % of a class’s images. The grey diagonal is what was right.</p>"
        f'<div class="{grid}">{"".join(figures)}</div></section>'
    )


def _frequent(matrix: Int[ndarray, "k k"], class_names: Sequence[str], *, most: int = 3) -> str:
    """Return the most frequent confusions in words; equal counts in the order of the classes."""
    k, lines = len(matrix), []
    names = [escape(str(class_names[i])) if i < len(class_names) else str(i) for i in range(k)]
    for flat in argsort(-matrix, axis=None, kind="stable"):
        true, predicted = divmod(int(flat), k)
        if true != predicted and matrix[true, predicted] > 0:
            count, total = matrix[true, predicted], matrix[true].sum()
            words = f"{names[true]} taken for {names[predicted]}"
            lines.append(f'<li>{words} <span class="soft">{count:,} of {total:,}</span></li>')
        if len(lines) == most:
            break
    return f"<ol>{''.join(lines)}</ol>" if lines else '<p class="note">No image was misclassified.</p>'


# 5. Class maps


def _class_maps(maps: ClassMaps, *, first: bool = True) -> str:
    intro = (
        "<h2>Class maps</h2><p>The channels of the last convolution <em>are</em> the classes: averaging a class’s map "
        'over its positions gives that class’s logit, with no layer in between.</p><p class="note">Over the image in '
        "grey, the map of the true class and of the strongest other class: against the class"
        '<span class="range" role="img" aria-label="blue to orange"></span>for it. Both maps of an image share one '
        "scale around 0, stated under it.</p>"
    )
    figures = "".join(_class_map(maps.one(index), index) for index in range(len(maps.images)))
    return f'<section>{intro if first else ""}<h3>{escape(maps.label)}</h3><div class="grid">{figures}</div></section>'


def _class_map(maps: ClassMaps, index: int) -> str:
    """Return the pictures of one image, and what the row makes of it."""
    logits, label = maps.logits[0], int(maps.labels[0])
    predicted = int(logits.argmax())
    name = escape(str(maps.class_names[predicted]) if predicted < len(maps.class_names) else str(predicted))
    drawn = pictures.draw_class_maps(maps)
    picture = pictures.svg(drawn, name=f"maps-{maps.label}-{index}", label=f"Class maps of image {index + 1}")
    right = "right" if predicted == label else "<b>wrong</b>"
    return (
        f"<figure>{picture}<figcaption>Predicted {name}, logit {_number(float(logits[predicted]), 'z.2f')}, {right}. "
        f"Scale ±{pictures.bound(maps):.3g}.</figcaption></figure>"
    )


# 6. Every run


def _runs(records: Sequence[Record]) -> str:
    if not records:
        return '<section><h2>Every run</h2><p class="note">No run has finished yet.</p></section>'
    titles = ("Row", "Seed", "Test top-1, %", "Test top-5, %", "Test loss", "Images/s")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = ""
    for r in records:
        cells = (
            str(r.seed),
            _number(r.top1),
            _number(r.top5),
            _number(r.loss, ".4f"),
            _number(r.images_per_second, ",.0f"),
        )
        body += f'<tr><th scope="row">{escape(r.label)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
    return (
        f'<section><h2>Every run</h2><div class="sides"><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div><div>{_environment(records)}</div></div></section>"
    )


def _environment(records: Sequence[Record]) -> str:
    """Return the first run's environment as a definition list, and every fact that another run differs in."""
    keys = list(dict.fromkeys(key for record in records for key in record.environment))
    seen = {key: Counter(record.environment.get(key, "not recorded") for record in records) for key in keys}
    facts = "".join(
        f"<dt>{escape(key)}</dt><dd>"
        + escape(
            next(iter(found))
            if len(found) == 1
            else "; ".join(f"{v} ({n} of {found.total()} runs)" for v, n in found.items())
        )
        + "</dd>"
        for key, found in seen.items()
    )
    differing = [escape(key) for key, found in seen.items() if len(found) > 1]
    if differing:
        note = f"The runs differ in their environment: {', '.join(differing)}."
    else:
        note = "Every run had this environment." if keys else "No environment was recorded."
    return f'<dl>{facts}</dl><p class="note">{note}</p>' if keys else f'<p class="note">{note}</p>'
