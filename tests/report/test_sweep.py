"""A grid over a recipe's fields: what it accepts, which runs it makes, and what it says was selected."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxclf.cli.main import main
from jaxclf.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.data.datasets import resolve
from jaxclf.errors import UsageError
from jaxclf.report import tables
from jaxclf.report.experiment import Table
from jaxclf.report.sweep import CHANGES, check_rows, draw, outline, parse_grid, parse_seeds, sweep_table, timeline
from jaxclf.training.setup import set_up

BASE = Config(
    data=DataConfig(batch_size=64, drop_last=True),
    augment=AugmentConfig(pad=1, flip=False),
    model=ModelConfig(backbone="resnet8"),
    optim=OptimConfig(lr=0.05, milestones=(1,)),
    run=RunConfig(epochs=1),
)
TINY = str(Path(__file__).parents[1] / "tiny.py")


def sweep(*axes: str, base: Config = BASE, seeds: tuple[int, ...] = (0,)) -> Table:
    return sweep_table("tiny", base, parse_grid(axes, base), seeds)


def with_section(section: str, **fields: Any) -> Config:
    return dataclasses.replace(BASE, **{section: dataclasses.replace(getattr(BASE, section), **fields)})


def test_values_get_the_types_of_their_fields() -> None:
    axes = ("optim.lr=1,1e-2", "model.maps=None,10", "augment.flip=True,false", "optim.milestones=[9,13],[5],[]")
    assert parse_grid(axes, BASE) == {
        "optim.lr": {"1": 1.0, "1e-2": 0.01},
        "model.maps": {"None": None, "10": 10},
        "augment.flip": {"True": True, "false": False},
        "optim.milestones": {"[9,13]": (9, 13), "[5]": (5,), "[]": ()},
    }
    assert type(parse_grid(axes, BASE)["optim.lr"]["1"]) is float


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["optim.lr"], "--grid 'optim.lr' is no axis; write it as section.field=value,value"),
        (["optim.lr="], "--grid 'optim.lr=' is no axis; write it as section.field=value,value"),
        ([], "--grid needs an axis, like optim.lr=0.1,0.01"),
        (["lr=1"], "unknown config field 'lr'. Valid: optim.lr"),
        (["run.seed=1,2"], "--grid cannot vary run.seed; --seeds 0,1,2 gives every point its seeds"),
        (["optim.lr=1", "optim.lr=2"], "--grid has optim.lr twice; give all its values at once"),
        (["optim.lr=0.1,1e-1"], "--grid 'optim.lr=0.1,1e-1' has the value 0.1 twice"),
        (["optim.lr=0.1,fast"], "config field optim.lr is 'fast' but must be float"),
        (["run.epochs=1.5"], "config field run.epochs is 1.5 but must be int"),
        (["augment.flip=1"], "config field augment.flip is 1 but must be bool"),
        (["optim.milestones=[1,x]"], "config field optim.milestones is '[1,x]' but must be tuple[int, ...]"),
    ],
)
def test_what_is_no_grid_is_refused(axes: Sequence[str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_grid(axes, BASE)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("axis", "start"),
    [
        ("optim.lrr=1", "unknown config field 'optim.lrr'; did you mean 'optim.lr' or 'optim.power'? Valid: optim.a"),
        ("optm.lr=1", "unknown config field 'optm.lr'; did you mean 'optim.lr'? Valid: optim.lr"),
        ("what.ever=1", "unknown config field 'what.ever'"),
        ("optim.schedule=cosin", "unknown optim.schedule 'cosin'; did you mean 'cosine'? Valid: constant, cosine"),
    ],
)
def test_unknown_names_come_with_the_nearest_ones(axis: str, start: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_grid([axis], BASE)
    assert str(refused.value).startswith(start)


@pytest.mark.parametrize("text", ["", "0,", "a", "0 1", "-1", "1,1", "1.0"])
def test_seeds_are_different_integers(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--seeds is '.*' but must be different integers, like 0,1,2$"):
        parse_seeds(text)


def test_a_row_per_point_in_the_order_given() -> None:
    table = sweep("optim.lr=0.1,0.01", "model.head=learned,hadamard", seeds=(0, 3))
    assert ", ".join(row.label for row in table.rows) == (
        "lr=0.1 head=learned, lr=0.1 head=hadamard, lr=0.01 head=learned, lr=0.01 head=hadamard"
    )
    config = table.config(table.rows[3], 3)
    assert (config.optim.lr, config.model.head, config.run.seed) == (0.01, "hadamard", 3)
    assert config.optim.milestones == (1,)  # the recipe's
    assert table.config(table.rows[0], 0) == with_section("optim", lr=0.1)
    assert table.caption == (
        "optim.lr in 0.1, 0.01 x model.head in learned, hadamard; seeds 0, 3. "
        "All other fields are those of the recipe tiny."
    )


def test_fields_of_one_name_keep_their_sections_in_labels() -> None:
    table = sweep("optim.name=sgd,adam", "loss.name=cross_entropy", "optim.lr=1")
    assert table.rows[1].label == "optim.name=adam loss.name=cross_entropy lr=1"


def test_points_are_scored_on_validation_images_where_all_hold_some_out() -> None:
    assert sweep("optim.lr=1,2").score == "test"
    assert sweep("optim.lr=1,2", base=with_section("data", validation=0.1)).score == "validation"
    assert sweep("data.validation=0,0.1").score == "test"
    assert sweep("data.validation=0.2,0.1").score == "validation"


@pytest.mark.parametrize(
    ("axis", "start"),
    [
        ("optim.lr=0.1,-1", "lr=-1: optim.lr is -1.0 but must be above 0"),
        ("model.head=learned,identiy", "head=identiy: unknown head 'identiy'; did you mean 'identity'"),
        ("data.dataset=digits,cifar", "dataset=cifar: unknown data set 'cifar'; did you mean 'cifar"),
    ],
)
def test_a_point_that_cannot_work_is_named(axis: str, start: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_rows(sweep(axis))
    assert str(refused.value).startswith(start)


def test_points_that_can_work_pass() -> None:
    check_rows(sweep("optim.lr=0.1,0.01", "model.head=learned,hadamard", "data.image_size=None,16"))


def test_points_with_one_directory_are_refused(tmp_path: Path) -> None:
    table = sweep('optim.freeze=[],["a*"],["a"]')
    with pytest.raises(UsageError, match=r'^table tiny: rows freeze=\["a\*"\], freeze=\["a"\] would share directories'):
        tables.jobs(table, tmp_path)


def test_a_bad_grid_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", TINY, "--workdir", str(tmp_path / "w"), "--grid", "model.head=learned,identiy"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("jaxclf: head=identiy: unknown head 'identiy'; did you mean 'identity'")
    assert (err.count("\n"), out) == (1, "")
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_a_sweep_runs_what_is_missing_and_names_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", TINY, "--workdir", str(tmp_path), "--grid", "optim.lr=0.1,1e-9", "--seeds", "0,4"]
    command += ["--data.eval-batch-size", "445"]
    started: list[list[str]] = []

    def start(pending: Sequence[tables.Job], workers: int, line: Any) -> None:
        started.extend(line(label) for label in dict.fromkeys(job.row.label for job in pending))
        assert workers == 2

    monkeypatch.setattr(tables, "run_missing_in_parallel", start)
    assert main([*command, "--jobs", "2"]) == 0  # what other processes would do is done below
    assert [line[1:4] for line in started] == [["-m", "jaxclf", "sweep"]] * 2
    assert "| grid | lr=0.1 | – | 0 |" in (tmp_path / "table.md").read_text()
    capsys.readouterr()
    assert main(started[1][3:]) == 0
    assert sorted(path.name for path in tmp_path.glob("*/seed*")) == ["seed0", "seed4"]
    config = json.loads((tmp_path / "lr-1e-9" / "seed4" / "config.json").read_text())
    assert (config["optim"]["lr"], config["run"]["seed"], config["data"]["eval_batch_size"]) == (1e-9, 4, 445)
    assert "table.md" not in capsys.readouterr().out

    assert main(command) == 0
    out = capsys.readouterr().out
    said = [line.split(":")[0] for line in out.splitlines() if ": test top-1" in line]
    assert said == ["lr=0.1, seed 0", "lr=0.1, seed 4"]
    assert "All other fields are those of the recipe tiny under --data.eval-batch-size 445." in out
    best = "Best mean of 2 rows: lr=0.1, test top-1 "
    assert best in out
    for name in ("table.md", "index.html"):
        assert best in (tmp_path / name).read_text()
        assert "Warning: selected on the test images: no result to report." in (tmp_path / name).read_text()
    labels = [json.loads(line)["label"] for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert labels == ["lr=0.1", "lr=0.1", "lr=1e-9", "lr=1e-9"]


@pytest.mark.slow
def test_a_sweep_on_validation_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", TINY, "--workdir", str(tmp_path), "--grid", "optim.lr=0.1", "--seeds", "0"]
    assert main([*command, "--data.validation", "0.2"]) == 0
    record = json.loads((tmp_path / "results.jsonl").read_text())
    validation, test = record["curve"][-1]["validation_top1"], record["top1"]
    assert f"| grid | lr=0.1 | {validation:.2f} | 1 | baseline |" in capsys.readouterr().out
    said = (
        f"lr=0.1, validation top-1 {validation:.2f} %, selected on the validation images. Its test top-1 is {test:.2f}"
    )
    assert said in (tmp_path / "index.html").read_text()
    assert "Validation error in percent" in (tmp_path / "index.html").read_text()


def test_outline_of_a_recipe() -> None:
    config = dataclasses.replace(BASE, optim=OptimConfig(lr=0.5, milestones=(2, 3)), run=RunConfig(epochs=4))
    lines = outline(config).splitlines()
    assert lines[:9] == [
        "model       resnet8, images 8x8x1",
        "head        learned, 10 classes",
        "parameters  75,002 trainable, 0 fixed, 480 statistics",
        "data        digits, 1,352 training images, batches of 64",
        "length      4 epochs of 21 steps: 84 steps",
        "optimiser   sgd, schedule multistep",
        "rate        first 0.5, last 0.005, maximum 0.5",
        "changes     step 42 to 0.05, step 63 to 0.005",
        "",
    ]
    assert lines[9:17] == [
        f"{'0.5' if row == 0 else '':>8} ┤{'█' * 30}{'▆' * 15 if row == 7 else ''}" + "▁" * 15 * (row == 7)
        for row in range(8)
    ]
    assert lines[17] == " " * 9 + "0" + " " * 57 + "83"


def test_outline_needs_no_data_and_shows_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    flags = ["--data.dataset", "cifar100", "--data.validation", "0.1", "--optim.schedule", "cosine"]
    assert main(["summary", TINY, *flags, "--run.epochs", "3"]) == 0
    out = capsys.readouterr().out
    assert "data        cifar100, about 45,000 training images (0.1 of all held out), batches of 64\n" in out
    assert "length      3 epochs of 703 steps: 2,109 steps\n" in out
    assert "head        learned, 100 classes\n" in out
    assert "changes" not in out
    assert list(tmp_path.iterdir()) == []


def test_outline_of_a_recipe_that_cannot_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", TINY, "--model.head", "identiy"]) == 2
    assert capsys.readouterr().err.startswith("jaxclf: unknown head 'identiy'; did you mean 'identity'")
    assert main(["summary", TINY, "--data.batch-size", "2000"]) == 2
    assert capsys.readouterr().err == "jaxclf: data.batch_size 2000 leaves no whole batch of 1352\n"


def test_many_changes_are_counted() -> None:
    config = dataclasses.replace(
        BASE, optim=OptimConfig(schedule="step", step_size=1), run=RunConfig(epochs=CHANGES + 4)
    )
    changes = next(line for line in outline(config).splitlines() if line.startswith("changes"))
    assert changes.startswith("changes     step 21 to 0.01, step 42 to 0.001, ")
    assert changes.endswith(", 3 more")


@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_timeline_is_the_runs_own(validation: float) -> None:
    config = with_section("data", validation=validation)
    assert timeline(config, resolve(config.data)) == set_up(config).program.timeline


def test_a_constant_rate_fills_the_picture_and_zero_leaves_it_empty() -> None:
    assert draw([1.0], width=2, height=2) == ["       1 ┤██", "         ┤██", "         00"]
    assert draw([0.0, 0.0], width=2, height=1) == ["       0 ┤", "         01"]
