"""A table of runs as data: axes x recipe x seeds -> configs; results -> the statistics that are printed. Pure.

`experiments/*.py` each build one `Table`; `tables.py` runs what it lacks and `page.py` draws it.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jaxclf.config import Config, DataConfig
from jaxclf.errors import UsageError
from jaxclf.intervals import student_half_width

Split = Literal["validation", "test"]


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
    of: str | None = None
    """Label of a row: each run starts from the weights of that row's run of the same seed (model.weights)."""

    @property
    def short(self) -> str:
        """The label beside its group's name, which it need not say again.

        >>> Row("LeNet-5 identity", "LeNet-5", {}).short
        'identity'
        """
        return self.label.removeprefix(self.group).strip() or self.label


@dataclasses.dataclass(frozen=True)
class Scatter:
    """A number of rows that their top-1 may hang on."""

    name: str
    values: Callable[[], Mapping[str, float]]
    """Computes the number of each row that has one, by label."""
    together: bool = False
    """Draw all groups in one picture, a point of a group's first row labelled by the group; else one for each."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A question, the runs that answer it, and the printed answer beside ours."""

    name: str
    title: str
    caption: str
    """A paragraph for the reader of the page: the comparison, the data, the recipe."""
    source: str
    """Where the printed numbers come from; empty where there are none."""
    recipe: Callable[..., Config]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    score: Split = "test"
    """The images whose top-1 is shown; of "validation", the last evaluation of the run."""
    select: bool = False
    """Name the row with the best mean, and say on what it was selected: the answer of a sweep."""
    baseline_results: str | None = None
    """A results.jsonl of the same runs by PyTorch: lines are `Record`s under this table's labels and fill the column
    "PyTorch here". The path is relative to the experiment's file; without such a file there is no column."""

    scatter: Scatter | None = None
    """What the page draws top-1 against, group by group."""
    probe: DataConfig | None = None
    """A data set on which each run's features are judged when it has ended, by a linear probe (tools/transfer.py)."""

    def __post_init__(self) -> None:
        labels = [row.label for row in self.rows]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise UsageError(f"table {self.name}: row labels must be unique; given twice: {', '.join(twice)}")
        first = [row.label for row in self.rows if row.of is None]
        if lost := [row.label for row in self.rows if row.of is not None and row.of not in first]:
            raise UsageError(
                f"table {self.name}: {', '.join(lost)} start from a row that is not there, or starts itself so"
            )

    def config(self, row: Row, seed: int) -> Config:
        """Return the config of one run."""
        config = self.recipe(**row.axes)
        return dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed))

    def baseline(self, row: Row) -> Row:
        """Return the row that `row` is compared with: the first of its group."""
        return next(other for other in self.rows if other.group == row.group)


@dataclasses.dataclass(frozen=True)
class Record:
    """The numbers of one finished run, a line of results.jsonl."""

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
    """One mapping per evaluation: epoch, train_loss, train_top1 (percent), lr, and test_loss, test_top1, test_top5, or
    the same of "validation" where the run holds validation images out."""
    images_per_second: float
    environment: Mapping[str, str]
    finished: str | None = None
    """Time at which the run was complete, UTC, ISO 8601."""
    seconds: float | None = None
    """Wall-clock seconds of the run; None of one that was stopped and resumed."""
    probe: float | None = None
    """Test top-1 of a linear probe on the data set of `Table.probe`, in percent; None where the table asks for none."""

    def score(self, split: Split) -> float | None:
        """Return the top-1 of the end of the run on a split, in percent; None where that was not evaluated."""
        if split == "test":
            return self.top1
        return next((p["validation_top1"] for p in reversed(self.curve) if evaluated_on(p) == "validation"), None)


def evaluated_on(point: Mapping[str, Any]) -> Split | None:
    """Return the split that an epoch's metric row was evaluated on, None where it was not evaluated.

    >>> evaluated_on({"epoch": 1, "validation_top1": 50.0}), evaluated_on({"epoch": 2, "test_top1": None})
    ('validation', None)
    """
    splits: tuple[Split, ...] = ("validation", "test")
    return next((split for split in splits if point.get(f"{split}_top1") is not None), None)


@dataclasses.dataclass(frozen=True)
class Score:
    """Top-1 of a row's finished runs, in percent."""

    n: int
    """Finished runs."""
    mean: float | None
    """None without a run."""
    std: float | None
    """Sample standard deviation (n - 1) over seeds; None below two runs."""

    @property
    def text(self) -> str:
        """Mean ± standard deviation."""
        return _number(self.mean, ".2f") + ("" if self.std is None else f" ± {self.std:.2f}")


@dataclasses.dataclass(frozen=True)
class Difference:
    """A row's top-1 minus its baseline's, seed by seed, in points."""

    n: int
    """Pairs: seeds that both rows have."""
    mean: float
    half_width: float | None
    """Half of the 95 % interval around the mean, by Student's t; None below two pairs."""

    @property
    def inside_noise(self) -> bool | None:
        """Whether the interval holds 0; None where there is no interval."""
        return None if self.half_width is None else abs(self.mean) <= self.half_width

    @property
    def interval(self) -> str:
        """The interval as text, to stand behind the mean; empty without one."""
        return "" if self.half_width is None else f" ± {self.half_width:.2f}"

    @property
    def text(self) -> str:
        """Mean ± half-width and the number of pairs; ≈ marks what is inside the noise."""
        return f"{self.mean:+z.2f}{self.interval}, n {self.n}{' ≈' if self.inside_noise else ''}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """One rendered line: statistics of a row over its finished seeds."""

    row: Row
    ours: Score
    """On the images of `Table.score`."""
    test: Score
    """On the test images."""
    probe: Score
    """Of the linear probe on the features, on the data set of `Table.probe`."""
    twin: Score
    """The top-1 of the records of `Table.baseline_results`."""
    gap: Difference | None
    """To the first row of the group; None for that row itself, and where no seed is common to both."""
    printed_gap: float | None
    """The difference between the printed numbers, in points."""
    trainable: int | None
    fixed: int | None
    savings: float | None
    """Trainable parameters saved against the baseline, in percent of the baseline's."""


def score(values: Sequence[float]) -> Score:
    """Return the statistics of one value a run."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Score(len(values), statistics.fmean(values) if values else None, std)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Compare two rows (seed -> value) over the seeds that both have; None where there is none.

    Of the n differences d = ours - theirs: mean(d) ± t(0.975, n - 1) s(d) / sqrt(n), with the sample standard
    deviation s. Pairs share the order of the images and, as far as the networks agree, their first weights; what a
    seed does to both rows alike is no noise of the difference.

    >>> paired_difference({0: 11.0, 1: 12.0, 2: 13.0, 3: 9.0}, {0: 10.0, 1: 10.0, 2: 10.0}).text
    '+2.00 ± 2.48, n 3 ≈'
    """
    differences = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
    if not differences:
        return None
    return Difference(len(differences), statistics.fmean(differences), student_half_width(differences))


def summarise(table: Table, records: Sequence[Record], twin: Sequence[Record] = ()) -> list[Summary]:
    """Return one `Summary` per row of the table, in its order; `twin` are the records of another implementation."""
    return [_summary(table, row, records, twin) for row in table.rows]


def _summary(table: Table, row: Row, records: Sequence[Record], twin: Sequence[Record]) -> Summary:
    baseline = table.baseline(row)
    ours, reference = _scores(table, row, records), _scores(table, baseline, records)
    count, against = _parameters(row, records), _parameters(baseline, records)
    saved = None
    if count is not None and against is not None:
        saved = 100 * (against["trainable"] - count["trainable"]) / against["trainable"]
    printed = None if row.printed is None or baseline.printed is None else row.printed - baseline.printed
    return Summary(
        row=row,
        ours=score(list(ours.values())),
        test=score([record.top1 for record in records if record.label == row.label]),
        probe=score([r.probe for r in records if r.label == row.label and r.probe is not None]),
        twin=score(list(_scores(table, row, twin).values())),
        gap=None if row == baseline else paired_difference(ours, reference),
        printed_gap=printed,
        trainable=None if count is None else count["trainable"],
        fixed=None if count is None else count["fixed"],
        savings=saved,
    )


def _scores(table: Table, row: Row, records: Sequence[Record]) -> dict[int, float]:
    """Return the row's top-1 by seed."""
    scores = {record.seed: record.score(table.score) for record in records if record.label == row.label}
    return {seed: value for seed, value in scores.items() if value is not None}


def _parameters(row: Row, records: Sequence[Record]) -> Mapping[str, int] | None:
    return next((record.parameters for record in records if record.label == row.label), None)


def selection(table: Table, summaries: Sequence[Summary]) -> str:
    """Name the row with the best mean among those with all seeds, the first of equals, and say what that is worth."""
    complete = [s for s in summaries if s.ours.n == len(table.seeds)]
    best = max(complete, key=lambda s: s.ours.mean or 0.0, default=None)
    if best is None:
        return "Nothing is selected: no row has all its runs."
    waiting = len(summaries) - len(complete)
    among = f" of {len(complete)} rows ({waiting} more wait for runs)" if waiting else f" of {len(complete)} rows"
    start = f"Best mean{among}: {best.row.label}, {table.score} top-1 {best.ours.text} %"
    if table.score == "test":
        return f"{start}. Warning: selected on the test images: no result to report."
    return f"{start}, selected on the validation images. Its test top-1 is {best.test.text} %."


GAP_NOTE = (
    "Gap: mean of the differences in points to the first row of the group over the n seeds that both have, ± half of "
    "their 95 % interval (Student’s t for paired differences); ≈ marks a gap inside the noise: the interval holds 0. "
    "Below two pairs there is neither."
)
"""The note under a table, in Markdown and on the page."""


def markdown(table: Table, summaries: Sequence[Summary]) -> str:
    """Render the table as GitHub Markdown."""
    columns = _columns(table, summaries)
    lines = [f"# {table.title}", "", table.caption, "", f"| group | row | {' | '.join(columns)} |"]
    lines.append("|---|---|" + "---:|" * len(columns))
    for place, s in enumerate(summaries):
        cells = [column[place] for column in columns.values()]
        lines.append(f"| {s.row.group} | {s.row.label} | {' | '.join(cells)} |")
    lines += ["", f"Top-1: mean ± sample standard deviation over n runs, one a seed. {GAP_NOTE}"]
    lines += ["", selection(table, summaries)] if table.select else []
    return "\n".join([*lines, *([f"Printed: {table.source}."] if table.source else []), ""])


def _columns(table: Table, summaries: Sequence[Summary]) -> dict[str, list[str]]:
    """Return the cells by column; what no row has, printed or by PyTorch, is no column."""
    printed = any(s.row.printed is not None for s in summaries)
    twin = any(s.twin.n for s in summaries)
    columns = {"printed": [_number(s.row.printed, ".2f") for s in summaries]} if printed else {}
    if twin:
        columns["PyTorch here"] = [f"{s.twin.text}{f', n {s.twin.n}' if s.twin.n else ''}" for s in summaries]
    columns["jaxclf" if twin else f"{table.score} top-1 %"] = [s.ours.text for s in summaries]
    columns["n"] = [str(s.ours.n) for s in summaries]
    columns["gap"] = [
        "baseline" if s.row == table.baseline(s.row) else "–" if s.gap is None else s.gap.text for s in summaries
    ]
    if table.probe is not None:
        columns[f"probe on {table.probe.dataset} %"] = [s.probe.text for s in summaries]
    if printed:
        columns["printed gap"] = [_number(s.printed_gap, "+z.2f") for s in summaries]
    columns["trainable"] = [_number(s.trainable, ",") for s in summaries]
    columns["fixed"] = [_number(s.fixed, ",") for s in summaries]
    columns["savings"] = [_number(s.savings, "z.2f", " %") for s in summaries]
    return columns


def _number(value: int | float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One counted number beside the printed one."""

    ours: float | None
    """None where there is none."""
    printed: float | None
    form: str
    """Format of both: as many digits as were printed."""

    @property
    def text(self) -> str:
        """Our number, an en dash where there is none."""
        return _number(self.ours, self.form)

    @property
    def printed_text(self) -> str:
        """The printed number, an en dash where there is none."""
        return _number(self.printed, self.form)

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
    """Where the printed numbers come from; empty where there are none."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    """(label, one cell a column)."""
    bars: int | None = None
    """The column, a share in percent, that the page draws as bars."""


def count_markdown(table: CountTable) -> str:
    """Render a table of counts as GitHub Markdown; the printed numbers of a column, where it has some, stand beside."""
    columns = {}
    for place, name in enumerate(table.columns):
        cells = [row[place] for _, row in table.rows]
        columns[name] = [cell.text for cell in cells]
        if any(cell.printed is not None for cell in cells):
            columns[f"{name}, printed"] = [cell.printed_text for cell in cells]
    lines = [f"# {table.title}", "", table.caption, ""]
    lines += [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    lines += [
        f"| {label} | {' | '.join(texts)} |" for (label, _), *texts in zip(table.rows, *columns.values(), strict=True)
    ]
    compared = [cell.agrees for _, cells in table.rows for cell in cells if cell.agrees is not None]
    if compared:
        lines += ["", f"{sum(compared)} of {len(compared)} printed numbers are reproduced to the printed digits."]
    return "\n".join([*lines, *(["", f"Source: {table.source}."] if table.source else []), ""])
