"""A table of runs as data: axes x recipe x seeds -> configs; results -> the statistics that are printed. Pure.

`experiments/*.py` each build one `Table`; `tables.py` runs what it lacks and `page.py` draws it.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxclf.config import Config, UsageError


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: what is varied, and what the source printed for it."""

    label: str
    """Unique within the table; also the name of its run directory."""
    group: str
    """Rows of one group answer one question; the group's first row is what the others are compared with."""
    axes: Mapping[str, Any]
    """Keyword arguments of the recipe's `get_config`."""
    printed: float | None = None
    """The source's test top-1 in percent, None where it has none."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A question, the runs that answer it, and the printed answer beside ours."""

    name: str
    title: str
    caption: str
    """What is compared, on what data, by which recipe: a paragraph for the reader of the page."""
    source: str
    """Where the printed numbers come from; empty where there are none."""
    recipe: Callable[..., Config]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        labels = [row.label for row in self.rows]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise UsageError(f"table {self.name}: row labels must be unique; given twice: {', '.join(twice)}")

    def config(self, row: Row, seed: int) -> Config:
        """Return the config of one run."""
        config = self.recipe(**row.axes)
        return dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed))

    def baseline(self, row: Row) -> Row:
        """Return the row that `row` is compared with: the first of its group."""
        return next(other for other in self.rows if other.group == row.group)


@dataclasses.dataclass(frozen=True)
class Record:
    """What one finished run leaves for its table (a line of results.jsonl)."""

    label: str
    seed: int
    top1: float
    """Test top-1 accuracy of the last parameters, in percent."""
    top5: float
    loss: float
    """Mean test cross-entropy."""
    parameters: Mapping[str, int]
    """Counts under "trainable" and "fixed"; running statistics are counted under "statistics"."""
    curve: Sequence[Mapping[str, Any]]
    """One mapping per evaluation: epoch, train_loss, train_top1, test_loss, test_top1 (percent), lr."""
    images_per_second: float
    environment: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Summary:
    """One rendered line: statistics of a row over its finished seeds."""

    row: Row
    n: int
    """Finished runs."""
    mean: float | None
    """Mean test top-1 in percent; None without a run."""
    std: float | None
    """Sample standard deviation (n - 1) over seeds; None below two runs."""
    gap: float | None
    """Mean minus the baseline's mean, in points."""
    printed_gap: float | None
    """The same difference between the printed numbers."""
    trainable: int | None
    fixed: int | None
    savings: float | None
    """Trainable parameters saved against the baseline, in percent of the baseline's."""


def summarise(table: Table, records: Sequence[Record]) -> list[Summary]:
    """Return one `Summary` per row of the table, in its order."""
    by_row = {row.label: [record for record in records if record.label == row.label] for row in table.rows}
    means = {label: statistics.fmean(r.top1 for r in runs) if runs else None for label, runs in by_row.items()}
    return [_summary(row, table.baseline(row), by_row, means) for row in table.rows]


def _summary(
    row: Row, baseline: Row, by_row: Mapping[str, Sequence[Record]], means: Mapping[str, float | None]
) -> Summary:
    runs, reference = by_row[row.label], by_row[baseline.label]
    count = runs[0].parameters["trainable"] if runs else None
    against = reference[0].parameters["trainable"] if reference else None
    return Summary(
        row=row,
        n=len(runs),
        mean=means[row.label],
        std=statistics.stdev(r.top1 for r in runs) if len(runs) > 1 else None,
        gap=_minus(means[row.label], means[baseline.label]),
        printed_gap=_minus(row.printed, baseline.printed),
        trainable=count,
        fixed=runs[0].parameters["fixed"] if runs else None,
        savings=None if count is None or against is None else 100 * (against - count) / against,
    )


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def markdown(table: Table, summaries: Sequence[Summary]) -> str:
    """Render the table as GitHub Markdown."""
    head = "| group | row | printed | top-1 % | n | gap | printed gap | trainable | fixed | savings |"
    lines = [f"# {table.title}", "", table.caption, "", head, "|---|---|" + "---:|" * 8]
    for s in summaries:
        spread = "" if s.std is None else f" ± {s.std:.2f}"
        cells = [
            s.row.group,
            s.row.label,
            _number(s.row.printed, ".2f"),
            _number(s.mean, ".2f") + spread,
            str(s.n),
            _number(s.gap, "+.2f"),
            _number(s.printed_gap, "+.2f"),
            _number(s.trainable, ","),
            _number(s.fixed, ","),
            _number(s.savings, ".2f", " %"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    note = "Mean ± sample standard deviation over n seeds; gap in points to the first row of the group."
    return "\n".join([*lines, "", note, *([f"Printed: {table.source}."] if table.source else []), ""])


def _number(value: int | float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One counted number beside the printed one."""

    ours: float
    printed: float | None
    form: str
    """Format of both: as many digits as were printed."""

    @property
    def text(self) -> str:
        """Our number."""
        return f"{self.ours:{self.form}}"

    @property
    def printed_text(self) -> str:
        """The printed number, an en dash where there is none."""
        return "–" if self.printed is None else f"{self.printed:{self.form}}"

    @property
    def agrees(self) -> bool | None:
        """Whether both read the same to the printed digits; None without a printed number."""
        return None if self.printed is None else self.text == self.printed_text


@dataclasses.dataclass(frozen=True)
class CountTable:
    """A table of counts: nothing is trained, every number follows from shapes."""

    name: str
    title: str
    caption: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    """(label, one cell a column)."""
    bars: int | None = None
    """The column, a share in percent, that the page draws as bars."""


def count_markdown(table: CountTable) -> str:
    """Render a table of counts as GitHub Markdown; each number is followed by the printed one."""
    head = "| | " + " | ".join(f"{column} | printed" for column in table.columns) + " |"
    lines = [f"# {table.title}", "", table.caption, "", head, "|---|" + "---:|" * (2 * len(table.columns))]
    for label, cells in table.rows:
        lines.append(f"| {label} | " + " | ".join(f"{cell.text} | {cell.printed_text}" for cell in cells) + " |")
    compared = [cell.agrees for _, cells in table.rows for cell in cells if cell.agrees is not None]
    note = (
        f"{sum(compared)} of {len(compared)} printed numbers are reproduced to the printed digits. " if compared else ""
    )
    return "\n".join([*lines, "", f"{note}Source: {table.source}.", ""])
