"""The results page: what it says for known numbers, and that it stands alone."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxclf.config import Config
from jaxclf.report import map_pictures, pictures
from jaxclf.report.experiment import Record, Row, Scatter, Table, summarise
from jaxclf.report.map_pictures import ClassMaps
from jaxclf.report.page import render

TEN = [str(digit) for digit in range(10)]
LABELS = ("learned", "orthogonal", "hadamard", "identity")


def recipe(**axes: Any) -> Config:
    raise AssertionError("a page never builds a config")


def table(rows: Sequence[Row] | None = None, **facts: Any) -> Table:
    rows = rows or [Row(label, "digits", {}) for label in LABELS]
    return Table("heads", "Four heads", "What is compared.", facts.pop("source", ""), recipe, tuple(rows), **facts)


def record(label: str, seed: int, top1: float, *, epochs: int = 5, trainable: int = 1000, **facts: Any) -> Record:
    curve = [
        {"epoch": e, f"{facts.get('split', 'test')}_top1": top1 - 40 / e + 40 / epochs} for e in range(1, epochs + 1)
    ]
    environment = facts.pop("environment", {"jax": "0.10.2", "device": "cpu"})
    count = {"trainable": trainable, "fixed": 640}
    return Record(label, seed, top1, 99.5, 0.0712, count, curve, 5200.4, environment)


def three(label: str, *top1s: float, **facts: Any) -> list[Record]:
    return [record(label, seed, top1, **facts) for seed, top1 in enumerate(top1s)]


def page(given: Table, records: Sequence[Record], **parts: Any) -> str:
    parts = {"confusions": {}, "class_names": TEN, "class_maps": []} | parts
    return render(given, summarise(given, records), records, **parts)


def text(html: str) -> str:
    """Return what is read: without style, pictures and tags."""
    bare = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", html, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", bare))


def line(html: str, label: str) -> str:
    """Return the cells of a row of the table, separated by bars."""
    found = re.search(rf'<th scope="row"><i[^>]*></i>{label}</th>(.*?)</tr>', html)
    assert found is not None
    return "|".join(re.sub(r"<[^>]+>", "", cell).strip() for cell in found[1].split("</td>")[:-1])


def maps_of(images: np.ndarray, *, k: int = 10, label: str = "identity") -> ClassMaps:
    n = len(images)
    values = np.random.default_rng(1).normal(size=(n, 4, 4, k)).astype(np.float32)
    return ClassMaps(label, images, values, np.arange(n) % k, [str(c) for c in range(k)])


@pytest.fixture(scope="module")
def demo() -> str:
    records = [
        *three("learned", 98.08, 98.21, 98.34),
        *three("orthogonal", 98.0, 98.2, 98.4, trainable=900),
        *three("hadamard", 96.9, 97.0, 97.1, trainable=900),
    ]
    confusion = np.diag(np.full(10, 34))
    confusion[8, 1], confusion[3, 5] = 5, 2
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    return page(table(), records, confusions={"learned": confusion}, class_maps=[maps_of(images)])


def test_a_row_shows_mean_spread_runs_gap_and_parameters_and_marks_a_gap_inside_the_noise(demo: str) -> None:
    assert line(demo, "learned") == "98.21 ± 0.13|3|baseline|1,000|640|"
    # Differences -1.18, -1.21, -1.24: s = 0.03, t(0.975, 2) = 4.3027, so ± 0.0745.
    assert line(demo, "hadamard") == "97.00 ± 0.10|3|−1.21 ± 0.07, n 3|900|640|10.00 %"
    # Differences -0.08, -0.01, 0.06: s = 0.07.
    assert line(demo, "orthogonal") == "98.20 ± 0.20|3|−0.01 ± 0.17, n 3 ≈|900|640|10.00 %"
    assert line(demo, "identity") == "–|not run|–|–|–|–"
    assert "Of 2 rows compared with the baseline, 1 is worse; no difference was found in 1 other." in text(demo)
    assert "orthogonal −0.01 ± 0.17 (inside the noise); hadamard −1.21 ± 0.07; identity not run." in text(demo)
    assert "≈ marks a gap inside the noise: the interval holds 0" in text(demo)
    assert "rinted" not in text(demo)  # nothing was


def test_a_table_without_differences_says_so_first() -> None:
    records = [*three("learned", 90, 91, 92), *three("identity", 91, 90, 93)]
    assert "No difference found: the row is inside the noise of the baseline." in page(table(), records)
    records += [*three("hadamard", 90.1, 90.9, 92.2), *three("orthogonal", 95, 96, 97)]
    said = "Of 3 rows compared with the baseline, 1 is better; no difference was found in 2 others."
    assert said in page(table(), records)
    assert "all 2 rows are inside the noise" in page(table(), records[:-3])


def test_a_group_of_many_rows_says_which_gaps_are_told_apart_and_how_many_are_not() -> None:
    many = [Row(label=f"r{number:02d}", group="heads", axes={}) for number in range(15)]
    scores = {row.label: (94, 95, 96) if row.label == "r07" else (90, 91, 92) for row in many}
    records = [one for label, top1s in scores.items() for one in three(label, *top1s)]
    said = text(page(table(many), records))
    assert "Gaps in points: r07 +4.00 ± 0.00; those of 13 other rows are inside the noise." in said


def test_measures_of_collapse_stand_on_the_page_as_means_over_seeds() -> None:
    first, second = three("learned", 98.0, 98.1)
    ends = [
        {"train_nc1": 0.5, "test_nc1": 2.0, "test_nc3": 0.25},
        {"train_nc1": 1.5, "test_nc1": 4.0, "test_nc3": None},
    ]
    records = [
        replace(one, curve=[{**one.curve[0], "test_nc1": 99.0}, {**one.curve[-1], **end}])
        for one, end in zip((first, second), ends, strict=True)
    ]
    html = page(table(), records)
    rows = re.findall(r'<tr><th scope="row"><i[^>]*></i>learned <span class="soft">(\w+)</span></th>(.*?)</tr>', html)
    found = {split: re.findall(r'data-name="(\w+)">(.*?)</td>', cells) for split, cells in rows if "nc1" in cells}
    assert found["train"][0] == ("nc1", "1")
    assert dict(found["test"]) | {"nc1": "3", "nc3": "0.25", "cdnv": "–"} == dict(found["test"])
    assert "Neural collapse" not in page(table(), [first, second])


def test_top1_is_drawn_against_a_number_of_the_rows_with_their_rank_correlation() -> None:
    numbers = {"learned": 0.1, "orthogonal": 0.2, "hadamard": 0.3, "identity": 0.4}
    given = table(scatter=Scatter("orthant cosine", lambda: numbers))
    tops = {"learned": 90.0, "orthogonal": 92.0, "hadamard": 91.0, "identity": 95.0}
    records = [one for label, top in tops.items() for one in three(label, top, top + 1, top - 1)]
    html = page(given, records)
    # rho = 1 - 6 * 2 / (4 * 15) = .8; atanh(.8) = 1.0986 -+ 1.96 sqrt(1.32) = 2.2518
    assert "Spearman’s rank correlation over 4 rows: 0.80, 95 % interval −0.82 to 1.00." in text(html)
    assert html.count('aria-label="Top-1 against orthant cosine, digits"') == 2
    assert "Top-1 against" not in page(given, records[:3])
    assert "Top-1 against" not in page(table(), records)


def test_groups_drawn_together_share_a_picture_and_a_key() -> None:
    """Rows of one place in their groups share a colour, and a group's first point has its name."""
    rows = [Row(f"{group} {kind}", group, {}) for group in ("one", "two", "three") for kind in ("alone", "cut out")]
    numbers = {row.label: float(place) for place, row in enumerate(rows)}
    given = table(rows, scatter=Scatter("size", lambda: numbers, together=True))
    html = page(given, [one for row in rows for one in three(row.label, 90.0, 91.0, 92.0)])
    assert html.count('aria-label="Top-1 against size"') == 2
    [picture] = re.findall(r"<section><h2>Top-1 against size</h2>.*?</section>", html, flags=re.S)
    assert re.findall(r"<li>.*?</i>(.*?)</li>", picture) == ["alone", "cut out"]


def test_the_page_says_when_the_runs_ended_and_how_long_they_took() -> None:
    day = "2026-11-2{}T23:59:00+00:00"
    timed = [replace(run, finished=day.format(n), seconds=200.0) for n, run in enumerate(three("learned", 90, 91, 92))]
    said = text(page(table(), timed))
    assert "3 of 12 runs; finished 2026-11-20 to 2026-11-22; training time 10 min 00 s in all." in said
    timed[1] = replace(timed[1], finished=None, seconds=None)
    said = text(page(table(), timed))
    assert "training time 6 min 40 s in all without 1 that was resumed or not timed." in said
    assert "learned seed 1 91.00 99.50 0.0712 5,200 – learned seed 2" in said
    assert "3 of 12 runs." in text(page(table(), three("learned", 90, 91, 92)))


def test_the_recipe_stands_on_the_page(demo: str) -> None:
    html = page(table(), [], recipe={"run.epochs": "15", "optim.lr": "0.1"})
    assert "Recipe Fields that all runs share" in text(html)
    assert "run.epochs 15 optim.lr 0.1" in text(html)
    assert "Recipe" not in demo


def test_a_narrow_page_names_the_column_in_every_cell(demo: str) -> None:
    bodies = re.findall(r"<tbody>.*?</tbody>", demo, flags=re.S)
    assert len(re.findall("<td data-name=", "".join(bodies))) == len(re.findall("<td", "".join(bodies))) > 50


def test_equal_seeds_are_drawn_beside_each_other_and_no_label_is_cut() -> None:
    given = table([Row("one", "g", {}), Row("two", "g", {})])
    records = [*three("one", 99.3, 99.3, 99.3), *three("two", 98.44, 99.0, 99.56)]
    for narrow, width in ((True, 350), (False, 1040)):
        figure = pictures.draw_scores(given, summarise(given, records), records, width=width, narrow=narrow)
        (axes,) = figure.axes
        drawn = [np.asarray(line.get_xydata()) for line in axes.lines if line.get_marker() == "o"]
        points = axes.transData.transform(np.concatenate([seeds for seeds in drawn if len(seeds) == 3]))
        gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)[~np.eye(6, dtype=bool)]
        assert gaps.min() > 4
        figure.canvas.draw()
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert len(boxes) > 2
        assert all(0 <= box.x0 < box.x1 <= width for box in boxes)


def test_rows_without_a_common_seed_have_no_gap() -> None:
    html = page(table(), [record("learned", 0, 90), record("identity", 1, 91)])
    assert line(html, "identity") == "91.00|1 of 3|–|1,000|640|0.00 %"  # fewer runs than seeds are counted
    assert "identity no seed in common." in text(html)
    assert "No row can be compared with its baseline yet." in html


def test_the_twins_column_is_there_where_it_has_records() -> None:
    ours = three("learned", 90, 91, 92)
    summaries = summarise(table(), ours, [record("learned", 0, 90.5), record("learned", 1, 91.5)])
    html = render(table(), summaries, ours, confusions={}, class_names=TEN, class_maps=[])
    assert line(html, "learned") == "91.00 ± 0.71, n 2|91.00 ± 1.00|3|baseline|1,000|640|"
    assert line(html, "identity") == "–|–|not run|–|–|–|–"
    assert "Row PyTorch here, % jaxclf, % Runs Gap" in text(html)
    assert "PyTorch" not in text(page(table(), ours))


def test_curves_say_which_images_they_are_of() -> None:
    validated = three("identity", 90, 91, split="validation")
    assert "Validation error in percent after each epoch" in text(page(table(), validated))
    tested = page(table(), three("learned", 90, 91))
    assert "Test error in percent after each epoch" in text(tested)
    assert 'aria-label="Test error against epoch, digits"' in tested
    both = text(page(table(), [*three("learned", 90, 91), *validated]))
    assert "Test or validation error in percent" in both
    assert "learned (test) identity (validation)" in both


def test_a_table_of_validation_scores_says_so_and_names_the_best() -> None:
    runs = [*three("learned", 90, 91, split="validation"), *three("identity", 92, 93, split="validation")]
    swept = table(score="validation", select=True, seeds=(0, 1))
    said = text(page(swept, runs))
    assert "Validation top-1 accuracy" in said
    assert "Best mean of 2 rows (2 more wait for runs): identity, validation top-1 92.50 ± 0.71 %" in said
    assert "Top-1: validation images;" in said


def test_printed_numbers_stand_beside_ours_with_their_source() -> None:
    rows = [Row("learned", "c100", {}, 69.46), Row("orthogonal", "c100", {}, 68.61), Row("other", "c100", {})]
    html = page(table(rows, source="Qian (2020), table 5.1"), three("learned", 69, 70, 71))
    assert line(html, "learned") == "69.46|70.00 ± 1.00|3|baseline||1,000|640|"
    assert line(html, "orthogonal") == "68.61|–|not run|–|−0.85|–|–|–"
    assert line(html, "other").startswith("–|–|not run|–|–")
    assert "Printed numbers: Qian (2020), table 5.1." in text(html)


def test_the_page_fetches_nothing_and_runs_nothing(demo: str) -> None:
    for word in ("http:", "https:", "<script", "<link", "@import", "<!DOCTYPE svg"):
        assert word not in demo
    assert set(re.findall(r'(?:href|src)="(.)', demo)) <= {"#", "d"}
    assert all(found.startswith("data:image/png;base64,") for found in re.findall(r'href="(d[^"]{30})', demo))


def test_the_same_input_gives_the_same_text() -> None:
    confusions = {"learned": np.arange(9).reshape(3, 3)}
    images = np.zeros((1, 8, 8, 3), np.uint8)
    first, second = (
        page(table(), three("learned", 90, 91, 92), confusions=confusions, class_maps=[maps_of(images)])
        for _ in range(2)
    )
    assert first == second


def test_no_two_pictures_share_an_id(demo: str) -> None:
    per_picture = [set(re.findall(r' id="([^"]+)"', svg)) for svg in re.findall(r"<svg.*?</svg>", demo, flags=re.S)]
    assert len(per_picture) == 7  # scores and curves at two widths, one confusion, two images' maps
    assert sum(map(len, per_picture)) == len(set().union(*per_picture))


def test_every_picture_is_well_formed_and_takes_its_colours_from_the_page(demo: str) -> None:
    shades = demo.partition("prefers-color-scheme: dark")[2].partition("}")[0]
    dark = set(re.findall(r"--(\w+):", shades)) - {"page", "card", "wash"}
    for picture in re.findall(r"<svg.*?</svg>", demo, flags=re.S):
        ElementTree.fromstring(picture.replace("xlink:", ""))
        assert set(re.findall(r"(?:fill|stroke): (#\w+)", picture)) == set()
        assert set(re.findall(r"var\(--(\w+)\)", picture)) <= set(pictures.COLOURS) == dark


def test_everything_from_outside_is_escaped() -> None:
    bad = '<b>"&$x^2$'
    given = Table("t", bad, bad, bad, recipe, (Row(bad, bad, {}, 50.0), Row("other", bad, {})))
    records = three(bad, 90, 91, environment={bad: bad})
    images = np.zeros((1, 8, 8, 1), np.uint8)
    maps = ClassMaps(bad, images, np.ones((1, 2, 2, 2), np.float32), np.array([1]), [bad, bad])
    html = page(given, records, confusions={bad: np.ones((2, 2), int)}, class_names=[bad, bad], class_maps=[maps])
    assert "<b>&quot;" not in html
    assert '<b>"' not in html
    assert html.count("&lt;b&gt;") + html.count("&lt;b>") > 15
    assert "$x^2$" in re.findall(r"<svg.*?</svg>", html, flags=re.S)[0]  # literal, not mathematics


def test_the_three_most_frequent_confusions_are_put_in_words() -> None:
    matrix = np.diag([10, 10, 10, 10])
    matrix[3, 1], matrix[0, 2], matrix[2, 0], matrix[1, 0] = 5, 4, 3, 1
    html = page(table(), [], confusions={"learned": matrix}, class_names=["ant", "bee", "cat", "dog"])
    items = [text(item).strip() for item in re.findall(r"<li>(.*?)</li>", html) if "taken" in item]
    assert items == ["dog taken for bee 5 of 15", "ant taken for cat 4 of 14", "cat taken for ant 3 of 13"]
    assert "full colour is 33.3 %" in text(html)


def test_a_matrix_without_errors_says_so() -> None:
    html = page(table(), [], confusions={"learned": np.diag([3, 4])}, class_names=["ant", "bee"])
    assert "No image was misclassified." in html


def test_up_to_twenty_classes_are_named_on_the_axes_and_more_are_not() -> None:
    def words(k: int) -> set[str]:
        drawn = pictures.draw_confusion(np.eye(k, dtype=int), [f"c{i}" for i in range(k)], scale=1.0)
        return set(re.findall(r">([^<>\n]+)</text>", pictures.svg(drawn, name="m", label="m")))

    assert {"c0", "c19", "true", "predicted"} <= words(20)
    assert words(21) == {"true", "predicted"}


def test_errors_are_shared_out_over_their_row_and_empty_rows_are_zero() -> None:
    shares = pictures.error_shares(np.array([[8, 2, 0], [0, 0, 0], [1, 1, 2]]))
    np.testing.assert_array_equal(shares, [[0, 20, 0], [0, 0, 0], [25, 25, 0]])


def test_class_maps_state_prediction_logits_and_scale() -> None:
    values = np.zeros((1, 2, 2, 3), np.float32)
    values[0, ..., 0] = [[4, 0], [0, 0]]  # logit 1
    values[0, ..., 2] = [[0, -2], [10, 0]]  # logit 2
    maps = ClassMaps("identity", np.zeros((1, 8, 8, 1), np.uint8), values, np.array([0]), ["ant", "bee", "cat"])
    html = page(table(), [], class_maps=[maps])
    assert "Predicted cat, logit 2.00, wrong . Scale ±10." in text(html)
    assert ">true: ant</text>" in html
    assert ">logit 1.00</text>" in html
    assert ">other: cat</text>" in html
    assert ">logit 2.00</text>" in html


def test_zero_in_a_map_shows_the_grey_image_and_the_signs_have_their_colours() -> None:
    maps = ClassMaps("m", np.zeros((1, 2, 2, 1), np.uint8), np.zeros((1, 1, 3, 1), np.float32), np.array([0]), ["a"])
    maps.maps[0, 0, :, 0] = [-1, 0, 1]
    pixels = np.asarray(map_pictures.draw_class_maps(maps).axes[1].images[0].get_array()).astype(int)
    left, middle, right = pixels[0, 0], pixels[0, 48], pixels[0, 95]
    assert left[2] > left[0] + 80
    assert right[0] > right[2] + 80
    assert middle.max() - middle.min() <= 3


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 1), (32, 32, 3), (224, 200, 3), (300, 40, 1)])
def test_images_of_any_size_and_either_channel_count_are_drawn(shape: tuple[int, int, int]) -> None:
    images = np.full((1, *shape), 200, np.uint8)
    html = page(table(), [], class_maps=[maps_of(images)])
    assert html.count("data:image/png") == 3
    assert len(html) < 150_000


def test_no_records_at_all_still_gives_a_page() -> None:
    html = page(table(), [])
    assert "No row can be compared with its baseline yet." in html
    assert "No run has finished yet." in html
    assert "Learning curves" not in html
    assert "Class maps" not in html


def test_one_seed_has_no_spread_and_no_verdict() -> None:
    html = page(table(seeds=(0,)), [record("learned", 0, 98.21), record("identity", 0, 98.2)])
    assert line(html, "learned") == "98.21|1|baseline|1,000|640|"
    assert line(html, "identity") == "98.20|1|−0.01, n 1|1,000|640|0.00 %"
    assert "Fewer than two seeds are common to a row and its baseline: these gaps cannot be told from noise" in html
    assert "identity −0.01." in text(html)


def test_rows_without_their_baseline_have_no_gap() -> None:
    html = page(table(), three("identity", 98, 98.2))
    assert line(html, "identity") == "98.10 ± 0.14|2 of 3|–|1,000|640|–"
    assert "The baseline, learned, has not been run." in html


def test_a_curve_of_one_epoch_is_a_point_and_no_curve_is_no_section() -> None:
    assert "Learning curves" in page(table(), three("learned", 90, 91, 92, epochs=1))
    assert "Learning curves" not in page(table(), three("learned", 90, 91, 92, epochs=0))


def test_a_perfect_score_is_drawn_on_a_linear_axis() -> None:
    rows = table().rows
    drawn = pictures.draw_curves(rows, three("learned", 100.0, 100.0), {"learned": "ink"}, width=300, height=200)
    assert drawn is not None
    assert drawn.axes[0].get_yscale() == "linear"
    drawn = pictures.draw_curves(rows, three("learned", 99.0, 99.5), {"learned": "ink"}, width=300, height=200)
    assert drawn is not None
    assert drawn.axes[0].get_yscale() == "log"


@pytest.mark.slow
def test_thirteen_rows_in_four_groups_with_a_hundred_classes() -> None:
    rows = [Row(f"row {n}", f"group {min(n // 3, 3)}", {}, 60.0 + n) for n in range(13)]
    records = [r for row in rows for r in three(row.label, row.printed or 0, 70)]
    matrix = np.random.default_rng(0).integers(0, 5, (100, 100))
    names = [f"class {c}" for c in range(100)]
    confusions = {row.label: matrix for row in rows}
    html = page(table(rows), records, confusions=confusions, class_names=names)
    assert html.count('<tr class="group">') == 4
    assert html.count("<h3>group") == 4
    # Against row 9 at 69 and 70: differences 3 and 0, t(0.975, 1) = 12.706, s = 2.1213.
    assert line(html, "row 12") == "72.00|71.00 ± 1.41|2 of 3|+1.50 ± 19.06, n 2 ≈|+3.00|1,000|640|0.00 %"
    assert len(html) < 1_500_000


def test_a_row_keeps_its_colour_and_a_baseline_is_ink() -> None:
    rows = [Row(label, group, {}) for group in "ab" for label in (f"{group}1", f"{group}2", f"{group}3")]
    assert pictures.row_colours(table(rows)) == dict(a1="ink", a2="s1", a3="s2", b1="ink", b2="s1", b3="s2")


def test_differing_environments_are_said() -> None:
    same, other = {"jax": "0.10.2", "device": "cpu"}, {"jax": "0.10.1", "device": "cpu"}
    runs = [record("learned", 0, 90, environment=same), record("learned", 1, 91, environment=other)]
    said = text(page(table(), runs))
    assert "0.10.2 (1 of 2 runs); 0.10.1 (1 of 2 runs)" in said
    assert "The runs differ in their environment: jax." in said
    assert "Every run had this environment." in text(page(table(), runs[:1]))


def test_names_that_matplotlib_has_no_glyph_for_raise_no_warning() -> None:
    rows = [Row("猫 🐈", "群", {})]
    assert "猫 🐈" in page(table(rows), three("猫 🐈", 90, 91), confusions={"猫 🐈": np.eye(2, dtype=int)})
