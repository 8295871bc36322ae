"""A table's arithmetic, with numbers that can be checked by hand."""

from typing import Any

import pytest

from jaxclf.config import Config, ModelConfig, RunConfig, UsageError
from jaxclf.experiment import Record, Row, Table, markdown, summarise

ROWS = (
    Row("plain", "small", {"head": "learned"}, printed=92.0),
    Row("none", "small", {"head": "identity"}, printed=91.25),
    Row("big", "large", {"head": "learned"}),
    Row("big none", "large", {"head": "identity"}, printed=95.0),
)


def recipe(head: str = "learned", epochs: int = 7) -> Config:
    return Config(model=ModelConfig(head=head), run=RunConfig(epochs=epochs))


def table(**facts: Any) -> Table:
    return Table("t", "Heads", "What is compared.", facts.pop("source", "a paper"), recipe, ROWS, **facts)


def record(label: str, seed: int, top1: float, trainable: int = 1000, fixed: int = 0) -> Record:
    return Record(label, seed, top1, 100.0, 0.5, {"trainable": trainable, "fixed": fixed}, [], 10.0, {})


RECORDS = [
    record("plain", 0, 90.0),
    record("plain", 1, 92.0),
    record("plain", 2, 94.0),
    record("none", 0, 91.0, trainable=750, fixed=640),
    record("none", 1, 91.5, trainable=750, fixed=640),
    record("big none", 0, 96.0, trainable=5000),
]


def test_row_makes_its_config_with_the_seed() -> None:
    config = table().config(ROWS[1], 2)
    assert (config.model.head, config.run.seed, config.run.epochs) == ("identity", 2, 7)
    assert table().seeds == (0, 1, 2)


def test_baseline_is_the_first_row_of_the_group() -> None:
    assert [table().baseline(row).label for row in ROWS] == ["plain", "plain", "big", "big"]


def test_two_rows_of_one_label_are_refused() -> None:
    rows = (*ROWS, ROWS[3], ROWS[0])
    with pytest.raises(UsageError, match=r"^table t: row labels must be unique; given twice: big none, plain$"):
        Table("t", "", "", "", recipe, rows)


def test_summary_holds_means_spreads_gaps_and_savings() -> None:
    plain, none, big, big_none = summarise(table(), RECORDS)
    assert (plain.n, plain.mean, plain.std, plain.gap, plain.printed_gap) == (3, 92.0, 2.0, 0.0, 0.0)
    assert (plain.trainable, plain.fixed, plain.savings) == (1000, 0, 0.0)
    assert (none.n, none.mean, none.gap, none.printed_gap) == (2, 91.25, -0.75, -0.75)
    assert none.std == pytest.approx(0.35355339)  # |91.5 - 91| / sqrt(2)
    assert (none.trainable, none.fixed, none.savings) == (750, 640, 25.0)
    assert (big.n, big.mean, big.std, big.gap, big.printed_gap) == (0, None, None, None, None)
    assert (big.trainable, big.fixed, big.savings) == (None, None, None)
    assert (big_none.n, big_none.mean, big_none.std) == (1, 96.0, None)
    assert (big_none.gap, big_none.printed_gap, big_none.savings) == (None, None, None)  # nothing to compare with


def test_records_of_other_rows_change_nothing() -> None:
    assert summarise(table(), [*RECORDS, record("gone", 0, 1.0)]) == summarise(table(), RECORDS)


def test_markdown_shows_literal_cells() -> None:
    lines = markdown(table(), summarise(table(), RECORDS)).splitlines()
    assert lines[0] == "# Heads"
    assert lines[2] == "What is compared."
    assert lines[4] == "| group | row | printed | top-1 % | n | gap | printed gap | trainable | fixed | savings |"
    assert lines[6:10] == [
        "| small | plain | 92.00 | 92.00 ± 2.00 | 3 | +0.00 | +0.00 | 1,000 | 0 | 0.00 % |",
        "| small | none | 91.25 | 91.25 ± 0.35 | 2 | -0.75 | -0.75 | 750 | 640 | 25.00 % |",
        "| large | big | – | – | 0 | – | – | – | – | – |",
        "| large | big none | 95.00 | 96.00 | 1 | – | – | 5,000 | 0 | – |",
    ]
    assert lines[-1] == "Printed: a paper."
    assert lines[5].count("|") == lines[4].count("|") == 11


def test_markdown_without_a_source_names_none() -> None:
    assert "Printed" not in markdown(table(source=""), summarise(table(source=""), [])).splitlines()[-1]


def test_table_without_runs_renders() -> None:
    assert markdown(table(), summarise(table(), [])).count("| 0 |") == 4
