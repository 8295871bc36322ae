"""train and evaluate: what they return, what they leave, and what they share between runs."""

import csv
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxclf.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.errors import UsageError
from jaxclf.models import heads, matrices
from jaxclf.training import loop, parallel, setup
from jaxclf.training.evaluation import evaluate, restore
from jaxclf.training.loop import train
from jaxclf.training.run_directory import Result, RunDirectory
from jaxclf.training.setup import set_up
from jaxclf.training.step import TrainState, eval_step

TINY = "tests.tiny:Tiny"
COLUMNS = ("epoch", "step", "lr", "train_loss", "train_top1", "test_loss", "test_top1", "test_top5")


def config(head: str = "orthogonal", *, backbone: str = "resnet8", head_seed: int | None = None, **run: int) -> Config:
    """Return a recipe for the 8x8 digits: 21 steps an epoch."""
    rebuilt = {"maps": 10, "maps_shortcut": "G"} if head == "identity" else {}
    return Config(
        data=DataConfig(batch_size=64, drop_last=True),
        augment=AugmentConfig(pad=1, flip=False),
        model=ModelConfig(backbone=backbone, head=head, head_seed=head_seed, **rebuilt),
        optim=OptimConfig(lr=0.1, milestones=(2,)),
        run=RunConfig(**dict[str, Any]({"epochs": 3} | run)),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(config(), workdir, quiet=True)


def rows_of(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def state_of(given: Config, workdir: Path) -> TrainState:
    with RunDirectory(workdir, given, create=False) as directory:
        return restore(set_up(given), directory)


def test_result_of_a_small_run(finished: tuple[Path, Result]) -> None:
    workdir, result = finished
    assert result.step == 63
    assert result.workdir == str(workdir)
    assert 80 < result.top1 <= result.top5 <= 100
    assert len(result.per_class) == 10
    assert result.images_per_second > 0
    with np.load(workdir / "predictions.npz") as file:
        labels, predictions = file["labels"], file["predictions"]
    assert (labels.dtype, predictions.dtype) == (np.int32, np.int32)
    assert labels.shape == predictions.shape == (445,)
    assert result.top1 == pytest.approx(100 * (labels == predictions).mean())
    share = np.bincount(labels, minlength=10) / len(labels)
    assert result.top1 == pytest.approx(share @ np.asarray(result.per_class))
    last = rows_of(workdir)[-1]
    assert (last["test_top1"], last["test_top5"], last["test_loss"]) == (result.top1, result.top5, result.loss)


@pytest.mark.parametrize(
    ("given", "trainable", "fixed", "statistics"),
    [
        # conv 144 + 2,304 * 2 + (4,608 + 9,216) + (18,432 + 36,864) = 73,872; BatchNorm 2 * 240; head 64 * 10 + 10
        (config("learned"), 73_872 + 480 + 650, 0, 480),
        (config("orthogonal"), 73_872 + 480 + 10, 640, 480),
        (config("hadamard"), 73_872 + 480 + 11, 640, 480),
        (config("hadamard_printed"), 73_872 + 480 + 11, 640, 480),
    ],
    ids=lambda value: value.model.head if isinstance(value, Config) else "",
)
def test_parameters_are_counted_by_collection(given: Config, trainable: int, fixed: int, statistics: int) -> None:
    state = set_up(given).init_state()
    counts = [sum(leaf.size for leaf in jax.tree.leaves(t)) for t in (state.params, state.fixed, state.batch_stats)]
    assert counts == [trainable, fixed, statistics]


def test_result_counts_parameters_and_numbers_of_the_state(finished: tuple[Path, Result]) -> None:
    assert finished[1].parameters == {"trainable": 74_362, "fixed": 640, "statistics": 480}


def test_last_checkpoint_gives_the_result(finished: tuple[Path, Result]) -> None:
    workdir, result = finished
    again = evaluate(config(), workdir)
    assert again == dataclasses.replace(result, images_per_second=0.0)


def test_best_checkpoint_is_the_row_with_the_highest_test_accuracy(finished: tuple[Path, Result]) -> None:
    workdir, result = finished
    best = max(rows_of(workdir), key=lambda row: (row["test_top1"], row["step"]))
    found = evaluate(config(), workdir, checkpoint="best")
    assert (found.step, found.top1, found.loss) == (best["step"], best["test_top1"], best["test_loss"])
    assert found.top1 >= result.top1


@pytest.mark.parametrize(
    ("scores", "best"), [([50.0, 70.0, 60.0, 55.0, 50.0], 42), ([50.0, 70.0, 70.0, 60.0, 20.0], 63)]
)
def test_best_checkpoint_outlives_later_ones_and_the_later_of_equals_wins(
    scores: list[float], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are made up; the checkpoint is the one that was given the best of them."""
    real, left = loop.Checkpoints.save, iter(scores)

    def scored(self, state, *, rows, top1):
        real(self, state, rows=rows, top1=next(left))

    monkeypatch.setattr(loop.Checkpoints, "save", scored)
    given = config(backbone=TINY, epochs=5)
    train(given, tmp_path, quiet=True)
    checkpoints = loop.Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.best_step() == best
    assert checkpoints.steps() == [best, 84, 105]
    assert evaluate(given, tmp_path, checkpoint="best").step == best


def test_checkpoints_inside_an_epoch_never_count_as_best(tmp_path: Path) -> None:
    given = config(backbone=TINY, epochs=1, checkpoint_every=8)
    train(given, tmp_path, quiet=True)
    checkpoints = loop.Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps() == [16, 21]
    assert checkpoints.best_step() == 21


def test_complete_run_returns_at_once_and_touches_nothing(
    finished: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, result = finished
    files = [file for file in workdir.rglob("*") if file.name != "lock"]
    before = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in files}
    monkeypatch.setattr(setup, "init_state", None)  # neither initialised
    monkeypatch.setattr(loop, "train_steps", None)  # nor trained
    assert train(config(), workdir, quiet=True) == result
    assert {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in before} == before


def test_evaluation_writes_nothing(finished: tuple[Path, Result]) -> None:
    workdir, _ = finished
    before = {file: file.stat().st_mtime_ns for file in workdir.rglob("*") if file.name != "lock"}
    evaluate(config(), workdir, checkpoint="best")
    after = {file: file.stat().st_mtime_ns for file in workdir.rglob("*") if file.name != "lock"}
    assert after == before


def test_run_directory_holds_what_is_documented(finished: tuple[Path, Result]) -> None:
    workdir, result = finished
    assert sorted(path.name for path in workdir.iterdir()) == [
        "checkpoints",
        "config.json",
        "data.json",
        "environment.json",
        "heartbeat.json",
        "lock",
        "metrics.csv",
        "metrics.jsonl",
        "predictions.npz",
        "result.json",
    ]
    assert Config.from_json((workdir / "config.json").read_text()) == config()
    values = json.loads((workdir / "result.json").read_text())
    assert values == json.loads(result.to_json())
    assert set(values) == {field.name for field in dataclasses.fields(Result)}


def test_metrics_have_the_same_rows_in_both_files(finished: tuple[Path, Result]) -> None:
    workdir, _ = finished
    rows = rows_of(workdir)
    assert [tuple(row) for row in rows] == [COLUMNS] * 3
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 21), (2, 42), (3, 63)]
    assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.1, 0.01])
    with (workdir / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in table] == rows


def test_epoch_without_evaluation_has_empty_test_metrics(tmp_path: Path) -> None:
    train(config(backbone=TINY, epochs=3, eval_every=2), tmp_path, quiet=True)
    rows = rows_of(tmp_path)
    assert [row["test_top1"] is None for row in rows] == [True, False, False]  # and always after the last
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1].endswith(",,,")


def test_environment_names_versions_device_and_commit(finished: tuple[Path, Result]) -> None:
    values = json.loads((finished[0] / "environment.json").read_text())
    assert set(values) == {
        "jaxclf",
        "git",
        "python",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "tensorflow-datasets",
        "numpy",
        "grain",
        "pillow",
        "simplejpeg",
        "platform",
        "device",
        "devices",
        "processes",
        "matmul_precision",
        "stacked",
        "processor",
        "xla_threads",
    }
    assert values["jax"] == jax.__version__
    assert values["devices"] == str(jax.device_count())
    assert values["xla_threads"] == os.environ.get("NPROC", str(len(os.sched_getaffinity(0))))
    assert all(isinstance(value, str) and value for value in values.values())


# Seeds.


def programs() -> list[int]:
    """Count the compiled programs of each step."""
    steps: list[Any] = [parallel._take_steps, eval_step]
    return [step._cache_size() for step in steps]


def test_runs_that_differ_in_seed_share_compiled_functions(finished: tuple[Path, Result], tmp_path: Path) -> None:
    compiled = programs()
    train(config(seed=1, head_seed=5), tmp_path, quiet=True)
    assert programs() == compiled


def test_other_seed_gives_another_result_and_another_matrix(finished: tuple[Path, Result], tmp_path: Path) -> None:
    other = train(config(seed=1), tmp_path, quiet=True)
    assert other.sha256 != finished[1].sha256
    assert other.loss != finished[1].loss
    mine, theirs = state_of(config(), finished[0]), state_of(config(seed=1), tmp_path)
    a, b = mine.fixed["head"]["orthogonal"], theirs.fixed["head"]["orthogonal"]
    assert float(np.abs(np.asarray(a) - np.asarray(b)).max()) > 0.1


def test_head_seed_fixes_the_matrix_alone() -> None:
    def start(*, seed: int, head_seed: int | None = None) -> TrainState:
        return set_up(config(seed=seed, head_seed=head_seed)).init_state()

    def equal(a, b) -> bool:
        return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))

    first, second = start(seed=1, head_seed=7), start(seed=2, head_seed=7)
    assert equal(first.fixed, second.fixed)
    assert not equal(first.params, second.params)
    assert equal(start(seed=7).fixed, first.fixed)  # run.seed where no head_seed is given


def test_same_seed_gives_the_same_bits_in_another_directory(finished: tuple[Path, Result], tmp_path: Path) -> None:
    again = train(config(), tmp_path / "again", quiet=True)
    assert again.sha256 == finished[1].sha256
    for name in ("metrics.jsonl", "metrics.csv", "predictions.npz", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (finished[0] / name).read_bytes()


# Fixed matrices.


def stored_names(workdir: Path, step: int) -> str:
    """Return Orbax's list of the arrays of a checkpoint."""
    return (workdir / "checkpoints" / str(step) / "state" / "_METADATA").read_text()


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(head, marks=pytest.mark.slow if head == "hadamard_printed" else ())
        for head in heads.list_heads()
        if head != "conv3x3"  # its maps are 2x2 here
    ],
)
def test_fixed_matrices_are_the_same_bits_after_training(head: str, tmp_path: Path) -> None:
    # Identity's shortcut draws a matrix inside of the backbone, and a Hadamard matrix is narrow for Tiny's 8 features.
    given = config(head, epochs=1, backbone=TINY if head in ("learned", "orthogonal") else "resnet8")
    before = jax.device_get(set_up(given).init_state().fixed)
    train(given, tmp_path, quiet=True)
    after = jax.device_get(state_of(given, tmp_path).fixed)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert [leaf.tobytes() for leaf in jax.tree.leaves(before)] == [leaf.tobytes() for leaf in jax.tree.leaves(after)]
    names = {"learned": None, "identity": "hypercube_random", "hadamard_printed": "hadamard"}
    name = names.get(head, head)
    assert [str(path[-1].key) for path, _ in jax.tree_util.tree_leaves_with_path(after)] == ([name] if name else [])
    stored = name is not None and matrices.MATRICES[name].random
    assert (name is not None and name in stored_names(tmp_path, 21)) == stored
    record = json.loads((tmp_path / "checkpoints" / "21" / "record" / "metadata").read_text())
    assert [path.rsplit(".", 1)[-1] for path in record["fixed"]] == ([name] if name else [])


def test_changed_exact_matrix_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix that is regenerated must be the one that was trained with, or the checkpoint means something else."""
    given = config("hadamard", epochs=1)
    train(given, tmp_path, quiet=True)
    real = matrices.MATRICES["hadamard"]
    changed = dataclasses.replace(real, build=lambda rows, columns, seed: -real.build(rows, columns, seed))
    monkeypatch.setitem(matrices.MATRICES, "hadamard", changed)
    (tmp_path / "result.json").unlink()
    for attempt in (train, evaluate):
        with pytest.raises(UsageError, match=r"^fixed\.head\.hadamard\b.* builds another matrix$"):
            attempt(given, tmp_path)
    assert not (tmp_path / "damaged_checkpoints").exists()  # the checkpoint is not at fault
