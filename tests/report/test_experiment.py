"""A table's arithmetic, with numbers that can be checked by hand."""

import dataclasses
from typing import Any

import pytest

from jaxclf.config import Config, ModelConfig, RunConfig
from jaxclf.errors import UsageError
from jaxclf.report.experiment import (
    Cell,
    CountTable,
    Difference,
    Record,
    Row,
    Score,
    Table,
    count_markdown,
    markdown,
    paired_difference,
    score,
    selection,
    summarise,
)

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


def test_a_row_starts_from_another_that_is_trained() -> None:
    rows = (Row("a", "g", {}), Row("b", "g", {}, of="a"), Row("c", "g", {}, of="b"), Row("d", "g", {}, of="z"))
    assert [row.of for row in dataclasses.replace(table(), rows=rows[:2]).rows] == [None, "a"]
    with pytest.raises(UsageError, match="c, d start from a row that is not there, or starts itself so"):
        dataclasses.replace(table(), rows=rows)


def test_summary_holds_means_spreads_gaps_and_savings() -> None:
    plain, none, big, big_none = summarise(table(), RECORDS)
    assert (plain.ours, plain.gap, plain.printed_gap) == (Score(3, 92.0, 2.0), None, 0.0)
    assert (plain.trainable, plain.fixed, plain.savings) == (1000, 0, 0.0)
    assert (none.ours.n, none.ours.mean, none.printed_gap) == (2, 91.25, -0.75)
    assert none.ours.std == pytest.approx(0.35355339)  # |91.5 - 91| / sqrt(2)
    assert none.gap is not None
    assert (none.gap.n, none.gap.mean) == (2, 0.25)  # +1.0 and -0.5, of the two seeds that both have
    assert none.gap.half_width == pytest.approx(12.7062047 * 1.06066017 / 2**0.5)  # t(0.975, 1) s / sqrt(n)
    assert (none.trainable, none.fixed, none.savings) == (750, 640, 25.0)
    assert (big.ours, big.gap, big.printed_gap) == (Score(0, None, None), None, None)
    assert (big.trainable, big.fixed, big.savings) == (None, None, None)
    assert big_none.ours == Score(1, 96.0, None)
    assert (big_none.gap, big_none.printed_gap, big_none.savings) == (None, None, None)  # nothing to compare with


def test_records_of_other_rows_change_nothing() -> None:
    assert summarise(table(), [*RECORDS, record("gone", 0, 1.0)]) == summarise(table(), RECORDS)


def test_markdown_shows_literal_cells() -> None:
    lines = markdown(table(), summarise(table(), RECORDS)).splitlines()
    assert lines[0] == "# Heads"
    assert lines[2] == "What is compared."
    assert lines[4] == "| group | row | printed | test top-1 % | n | gap | printed gap | trainable | fixed | savings |"
    assert lines[6:10] == [
        "| small | plain | 92.00 | 92.00 ± 2.00 | 3 | baseline | +0.00 | 1,000 | 0 | 0.00 % |",
        "| small | none | 91.25 | 91.25 ± 0.35 | 2 | +0.25 ± 9.53, n 2 ≈ | -0.75 | 750 | 640 | 25.00 % |",
        "| large | big | – | – | 0 | baseline | – | – | – | – |",
        "| large | big none | 95.00 | 96.00 | 1 | – | – | 5,000 | 0 | – |",
    ]
    assert lines[-1] == "Printed: a paper."
    assert lines[5].count("|") == lines[4].count("|") == 11


def test_markdown_without_a_source_names_none() -> None:
    assert "Printed" not in markdown(table(source=""), summarise(table(source=""), [])).splitlines()[-1]


def test_table_without_runs_renders() -> None:
    assert markdown(table(), summarise(table(), [])).count("| 0 |") == 4


@pytest.mark.parametrize(
    ("differences", "text", "inside"),
    [
        ((1.0, 2.0, 3.0), "+2.00 ± 2.48, n 3 ≈", True),  # t(0.975, 2) = 4.302653, s = 1: 4.302653 / sqrt(3)
        ((2.0, 2.5, 3.0), "+2.50 ± 1.24, n 3", False),
        ((-2.0, -2.5, -3.0), "-2.50 ± 1.24, n 3", False),
        ((1.0, 2.0, 3.0, 4.0, 5.0), "+3.00 ± 1.96, n 5", False),  # t(0.975, 4) = 2.776445, s = sqrt(2.5)
        ((1.0, 2.0), "+1.50 ± 6.35, n 2 ≈", True),  # t(0.975, 1) = 12.706205, s = sqrt(0.5)
        ((0.0, 0.0), "+0.00 ± 0.00, n 2 ≈", True),
        ((5.0,), "+5.00, n 1", None),
    ],
)
def test_paired_difference_has_students_interval(
    differences: tuple[float, ...], text: str, inside: bool | None
) -> None:
    theirs = {seed: 10.0 + 7 * seed for seed in range(len(differences))}  # what seeds do to both rows cancels
    found = paired_difference({seed: theirs[seed] + d for seed, d in enumerate(differences)}, theirs)
    assert found is not None
    assert (found.text, found.inside_noise) == (text, inside)


def test_only_common_seeds_are_paired() -> None:
    assert paired_difference({0: 1.0, 5: 3.0}, {5: 2.5, 7: 0.0}) == Difference(1, 0.5, None)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert paired_difference({}, {1: 1.0}) is None


def test_score_text() -> None:
    assert [score(values).text for values in ([], [1.0], [1.0, 2.0])] == ["–", "1.00", "1.50 ± 0.71"]


def test_the_twins_column_stands_between_the_printed_one_and_ours() -> None:
    twin = [record("plain", 0, 91.0), record("plain", 1, 93.0), record("gone", 0, 1.0)]
    lines = markdown(table(), summarise(table(), RECORDS, twin)).splitlines()
    assert lines[4].startswith("| group | row | printed | PyTorch here | jaxclf | n | gap |")
    assert lines[6].startswith("| small | plain | 92.00 | 92.00 ± 1.41, n 2 | 92.00 ± 2.00 | 3 |")
    assert lines[7].startswith("| small | none | 91.25 | – | 91.25 ± 0.35 | 2 |")
    assert "PyTorch" not in markdown(table(), summarise(table(), RECORDS, [twin[2]]))


def test_what_no_row_has_printed_is_no_column() -> None:
    bare = Table("t", "", "", "", recipe, tuple(Row(label, "g", {}) for label in ("plain", "none")))
    assert "printed" not in markdown(bare, summarise(bare, RECORDS))


def held_out(label: str, seed: int, validation: float, test: float) -> Record:
    curve = [{"epoch": 1, "validation_top1": 10.0}, {"epoch": 2, "validation_top1": validation}]
    return Record(label, seed, test, 100.0, 0.5, {"trainable": 10, "fixed": 0}, curve, 10.0, {})


def test_selection_on_validation_images_names_the_test_score_of_the_best_alone() -> None:
    rows = (Row("a", "g", {}), Row("b", "g", {}), Row("c", "g", {}))
    swept = Table("t", "", "", "", recipe, rows, seeds=(0, 1), score="validation", select=True)
    runs = [held_out("a", 0, 90.0, 99.0), held_out("a", 1, 92.0, 99.0)]
    runs += [held_out("b", 0, 95.0, 80.0), held_out("b", 1, 93.0, 82.0), held_out("c", 0, 99.0, 99.0)]
    summaries = summarise(swept, runs)
    assert summaries[1].ours.text == "94.00 ± 1.41"
    said = (
        "Best mean of 2 rows (1 more wait for runs): b, validation top-1 94.00 ± 1.41 %, selected on the validation "
        "images. Its test top-1 is 81.00 ± 1.41 %."
    )
    assert selection(swept, summaries) == said
    assert said in markdown(swept, summaries).splitlines()
    assert "99.00" not in markdown(swept, summaries).replace("| c | 99.00 |", "")


def test_selection_on_test_images_is_no_result() -> None:
    rows = (Row("a", "g", {}), Row("b", "g", {}))
    swept = Table("t", "", "", "", recipe, rows, seeds=(0,), select=True)
    assert selection(swept, summarise(swept, [record("a", 0, 91.0), record("b", 0, 91.0)])) == (
        "Best mean of 2 rows: a, test top-1 91.00 %. Warning: selected on the test images: no result to report."
    )
    assert selection(swept, summarise(swept, [])) == "Nothing is selected: no row has all its runs."


def test_printed_counts_stand_beside_ours_in_columns_that_have_some() -> None:
    rows = (
        ("a", (Cell(1234, 1234, ","), Cell(0.5, None, ".2f"))),
        ("b", (Cell(7, None, ","), Cell(None, None, ".2f"))),
    )
    text = count_markdown(CountTable("t", "T", "C", "", ("size", "share"), rows))
    assert text == (
        "# T\n\nC\n\n| | size | size, printed | share |\n|---|---:|---:|---:|\n"
        "| a | 1,234 | 1,234 | 0.50 |\n| b | 7 | – | – |\n"
        "\n1 of 1 printed numbers are reproduced to the printed digits.\n"
    )
