"""experiments/digit_scenes_maps.py: what it judges, and what it makes of the numbers."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf import UsageError
from jaxclf.data.transforms import Preprocessing
from jaxclf.report.map_pictures import Place, draw_places
from jaxclf.training.weights import WeightRecord, Weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("digit_scenes_maps", ROOT / "experiments" / "digit_scenes_maps.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["digit_scenes_maps"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def asked(study: ModuleType) -> Any:
    """Every hundredth question."""
    return study.questions(every=100)


@pytest.fixture(scope="module")
def run() -> Weights:
    """A tiny network that was not trained."""
    preprocessing = Preprocessing(32, 32, None, "bilinear", (0.0,), (1.0,))
    record = WeightRecord("tests.tiny:Tiny", 10, "identity", {"maps": 10}, preprocessing)
    model = record.build()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    return Weights(model, variables, record)


def lines(study: ModuleType, learned: tuple[float, ...], identity: tuple[float, ...]) -> list[Any]:
    """Return lines of three seeds in which every measure of learned and of identity is one number a seed."""
    own = {"learned": learned, "identity": identity}
    return [
        study.Judged(
            head, seed, method, side, scenes, dict.fromkeys(study.MEASURES, own.get(head, (1.0, 2.0, 3.0))[seed])
        )
        for head, methods in study.METHODS_OF.items()
        for method in methods
        for seed in study.SEEDS
        for side in study.SIDES
        for scenes in study.SETS
    ]


def test_questions_ask_for_the_classes_that_are_shown_where_they_are(asked: Any) -> None:
    assert {name: one.classes.shape for name, one in asked.items()} == {"test": (20, 1), "two_classes": (20, 2)}
    assert asked["test"].truth.shape == (20, 3, 4)
    assert asked["two_classes"].truth.shape == (40, 1, 4)
    assert (asked["two_classes"].classes[:, 0] != asked["two_classes"].classes[:, 1]).all()
    for one in asked.values():  # of every question the first box is there
        assert (one.truth[:, 0, 2:] > one.truth[:, 0, :2]).all()


@pytest.mark.parametrize("side", [32, 48])
def test_maps_that_show_the_boxes_are_worth_everything_and_others_little(
    study: ModuleType, asked: Any, run: Weights, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = study.judge(run, asked["two_classes"], "maps", side)
    assert 0 < plain["pointing"] < 60
    assert plain["box_0.7"] <= plain["box_0.5"] <= plain["box_0.3"] < 100

    def perfect(model: Any, variables: Any, images: Any, classes: np.ndarray, *, method: str) -> np.ndarray:
        truth = next(left) * side / 32
        at = np.arange(side) + 0.5
        rows, columns = ((truth[..., k, None] <= at) & (at < truth[..., k + 2, None]) for k in (0, 1))
        return (rows[..., None] & columns[..., None, :]).astype(np.float32)  # [n t h w]

    left = iter(np.array_split(asked["two_classes"].truth.reshape(20, 2, 4), study.PARTS))
    monkeypatch.setattr(study, "attribute", perfect)
    found = study.judge(run, asked["two_classes"], "maps", side)
    wanted = {"pointing", "box_0.3", "box_0.5", "box_mean", "energy", "box_0.7"}
    assert {name: found[name] for name in wanted} == dict.fromkeys(wanted, 100.0)
    assert found["right"] == plain["right"]


def test_the_verdict_follows_from_the_paired_differences(study: ModuleType) -> None:
    base = (50.0, 52.0, 57.0)
    same = study.verdict(lines(study, base, (50.5, 51.0, 57.5)))
    assert same.startswith(
        "No difference between identity's map and CAM's is found. Three seeds, 32x32: 6 of 6 not told apart"
    )
    better = study.verdict(lines(study, base, (52.0, 54.1, 59.0)))
    assert "6 of 6 better (pointing game with one class, MaxBoxAcc with one class, energy with one class, " in better
    assert better.startswith("Identity's map is nowhere told worse than CAM's, and better in some measures. ")
    worse = study.verdict(lines(study, base, (48.0, 50.1, 55.0)))
    assert worse.startswith("Identity's map is not as good as CAM's. Three seeds, 32x32: 6 of 6 worse (")
    mixed = lines(study, base, (52.0, 54.1, 59.0))
    for line in mixed:
        line.measures["energy"] -= 10 * (line.head == "identity")
    assert study.verdict(mixed).startswith("Whether identity's map is as good as CAM's hangs on the measure. ")
    assert "4 of 6 better" in study.verdict(mixed)
    assert "2 of 6 worse (energy with one class, energy with two classes)" in study.verdict(mixed)


def test_tables_and_page_hold_every_mean_and_nothing_from_elsewhere(study: ModuleType) -> None:
    own = lines(study, (50.0, 52.0, 57.0), (52.0, 54.0, 59.0))
    text = study.markdown("caption", own)
    assert "| learned, Grad-CAM++ | 48 | 53.0 ± 9.0 |" in text  # t(2) 4.3027 * 3.6056 / sqrt(3) = 8.957
    assert "| identity, channels | 64 | 55.0 ± 9.0 |" in text
    assert "| one class | pointing game | +2.00 ± 0.00, n 3 | +2.00 ± 0.00, n 3 | +2.00 ± 0.00, n 3 |" in text
    page = study.html("caption", own, [{"said": "scene <1>", "picture": "<svg></svg>"}])
    assert "scene &lt;1&gt;" in page
    assert page.count("53.0 ± 9.0") == text.count("53.0 ± 9.0")
    assert "<script" not in page
    assert "http" not in page


def test_a_run_keeps_its_lines_and_what_is_not_trained_is_named(
    study: ModuleType, asked: Any, run: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study.weights, "read", lambda directory: run)
    monkeypatch.setattr(study, "judge", lambda run, question, method, side: {"pointing": float(side)})
    found = study.judged_run(tmp_path, "identity", 1, asked)
    assert [(line.side, line.scenes) for line in found] == [
        (side, scenes) for side in (32, 48, 64) for scenes in ("test", "two_classes")
    ]
    assert len(json.loads((tmp_path / "localisation.json").read_text())) == 6
    monkeypatch.setattr(study, "judge", lambda *_: pytest.fail("judged again"))
    assert study.judged_run(tmp_path, "identity", 1, asked) == found
    kept = json.loads((tmp_path / "localisation.json").read_text())
    (tmp_path / "localisation.json").write_text(json.dumps(kept[:2] + kept[3:]))
    monkeypatch.setattr(study, "judge", lambda run, question, method, side: {"pointing": 7.0})
    again = study.judged_run(tmp_path, "identity", 1, asked)  # the missing line alone
    assert sorted(line.measures["pointing"] for line in again) == [7.0, 32.0, 32.0, 48.0, 64.0, 64.0]
    with pytest.raises(UsageError, match=r"^no finished run in .*learned/seed0, .*hadamard/seed2; jaxclf table"):
        study.main(tmp_path, tmp_path)


def test_a_picture_marks_true_boxes_and_the_place_of_each_map() -> None:
    image = np.zeros((32, 32, 1), np.uint8)
    peak = np.zeros((8, 8), np.float32)
    peak[2, 5] = 3.0
    figure = draw_places(image, np.array([[4, 16, 14, 24]]), [Place("a", peak), Place("flat", np.zeros((8, 8)))])
    scene, first, flat = figure.axes
    boxes = [[patch.get_extents() for patch in axes.patches] for axes in (scene, first, flat)]
    found = [
        [np.round(axes.transData.inverted().transform_bbox(box).extents, 6).tolist() for box in own]
        for axes, own in zip(figure.axes, boxes, strict=True)
    ]
    assert found[0] == [[16, 14, 24, 4]]  # x0, the lower y, x1, the upper y
    assert found[1][0] == [16, 14, 24, 4]
    left, bottom, right, top = found[1][1]
    assert left <= 22 <= right
    assert top <= 10 <= bottom
    assert np.asarray(first.lines[0].get_xydata()).tolist() == [[22.0, 10.0]]
    assert found[2] == [[16, 14, 24, 4]]  # a constant map has no place
    assert not flat.lines


def committed(study: ModuleType) -> list[Any]:
    """Return the lines of the committed study."""
    text = (ROOT / "experiments" / "results" / "digit_scenes_maps.jsonl").read_text()
    return [study.Judged(**json.loads(line)) for line in text.splitlines()]


def test_the_committed_tables_follow_from_the_committed_lines(study: ModuleType) -> None:
    own, results = committed(study), ROOT / "experiments" / "results"
    facts = [(line.head, line.seed, line.method, line.side, line.scenes) for line in own]
    assert len(set(facts)) == len(facts) == 126  # 7 of heads and methods, 3 seeds, 3 sides, 2 sets of scenes
    text = study.markdown(study.caption(study.questions()), own)
    assert text == (results / "digit_scenes_maps.md").read_text()
    page = (results / "digit_scenes_maps.html").read_text()
    for scenes in study.SETS:
        for row in study.table(own, scenes):
            assert all(f">{cell}</td>" in page for cell in row[1:])


def test_readme_says_what_the_committed_maps_do(study: ModuleType) -> None:
    own, readme = committed(study), (ROOT / "README.md").read_text()
    assert study.verdict(own) in " ".join(readme.split())
    places = [2 + list(study.MEASURES).index(measure) for measure in study.COMPARED]
    one, two = (study.table(own, scenes) for scenes in study.SETS)
    shown = [(a, b) for a, b in zip(one, two, strict=True) if a[1] == "32"]
    assert len(shown) == 7
    right = {row[0]: row[2].split()[0] for _, row in shown}
    both = f"both classes' in {right['identity, channels']} % under identity, in {right['learned, CAM']} %"
    assert both in " ".join(readme.split())
    for pair in shown:
        assert f"| {pair[0][0]} | {' | '.join(row[place] for row in pair for place in places)} |" in readme
