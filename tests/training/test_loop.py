"""train and evaluate: what they return, what they leave, and what they share between runs."""

import csv
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.config import Config
from jaxclf.errors import UsageError
from jaxclf.models import heads, matrices
from jaxclf.training import loop, parallel, run, setup
from jaxclf.training.checkpoint import Checkpoints
from jaxclf.training.evaluation import evaluate, restore
from jaxclf.training.loop import train
from jaxclf.training.run_directory import Result, RunDirectory
from jaxclf.training.setup import set_up
from jaxclf.training.step import TrainState, eval_step
from tests.tiers import quick
from tests.training.runs import config, rows_of

COLUMNS = ("epoch", "step", "lr", "train_loss", "train_top1", "test_loss", "test_top1", "test_top5")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(config(), workdir, quiet=True)


def state_of(given: Config, workdir: Path) -> TrainState:
    with RunDirectory(workdir, given, create=False) as directory:
        return restore(set_up(given), directory)


def test_result_of_a_small_run(finished: tuple[Path, Result]) -> None:
    workdir, result = finished
    assert result.step == 63
    assert result.workdir == str(workdir)
    assert 20 < result.top1 <= result.top5 <= 100  # a tenth is chance; how well networks learn: report/test_demo.py
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
    ("head", "trainable", "fixed"),
    [
        # conv 144 + 2,304 * 2 + (4,608 + 9,216) + (18,432 + 36,864) = 73,872; BatchNorm 2 * 240; head 64 * 10 + 10
        ("learned", 73_872 + 480 + 650, 0),
        ("orthogonal", 73_872 + 480 + 10, 640),
        ("hadamard", 73_872 + 480 + 11, 640),
        ("hadamard_printed", 73_872 + 480 + 11, 640),
    ],
)
def test_parameters_are_counted_by_collection(head: str, trainable: int, fixed: int) -> None:
    given = set_up(config(head, backbone="resnet8"))
    images = jax.ShapeDtypeStruct((1, *given.data.image_shape), jnp.float32)
    shapes = jax.eval_shape(given.program.model.init, jax.random.key(0), images)
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in shapes.items()}
    assert counts == {"params": trainable, "batch_stats": 480} | ({"fixed": fixed} if fixed else {})


def test_nothing_is_traced_or_compiled_after_the_first_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of 21 batches and a smaller one, evaluated and saved; the end is evaluated on the test images, too."""
    events: list[str] = []
    after: list[int] = []
    finish = run.Run.finish_epoch

    def counted(self: run.Run, state: TrainState) -> TrainState:
        state = finish(self, state)
        after.append(len(events))
        return state

    def listen(event: str, duration_secs: float, **_: object) -> None:
        events.extend([event] if event.startswith("/jax/core/compile/") else [])

    monkeypatch.setattr(run.Run, "finish_epoch", counted)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(config(drop_last=False), tmp_path, quiet=True)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(after) == 3
    assert after[0] > 0
    assert events[after[0] :] == []


def test_result_counts_parameters_and_numbers_of_the_state(finished: tuple[Path, Result]) -> None:
    # conv 72 + 576; BatchNorm 2 * 16; the head's bias 10, and its matrix 8 * 10
    assert finished[1].parameters == {"trainable": 690, "fixed": 80, "statistics": 32}


def test_last_checkpoint_gives_the_result(finished: tuple[Path, Result]) -> None:
    workdir, result = finished
    again = evaluate(config(), workdir)
    assert again == dataclasses.replace(result, images_per_second=0.0, finished=None, seconds=None)


def test_best_checkpoint_is_the_row_with_the_highest_test_accuracy(finished: tuple[Path, Result]) -> None:
    workdir, result = finished
    best = max(rows_of(workdir), key=lambda row: (row["test_top1"], row["step"]))
    found = evaluate(config(), workdir, checkpoint="best")
    assert (found.step, found.top1, found.loss) == (best["step"], best["test_top1"], best["test_loss"])
    assert found.top1 >= result.top1


@pytest.mark.parametrize(
    ("scores", "best", "kept"),
    [
        ([50.0, 70.0, 60.0, 55.0, 50.0], 2, [2, 4, 5]),
        ([50.0, 70.0, 70.0, 60.0, 20.0], 3, [3, 4, 5]),
        ([None, None, 20.0], 3, [2, 3]),
    ],
)
def test_best_checkpoint_outlives_later_ones_and_the_later_of_equals_wins(
    scores: list[float | None], best: int, kept: list[int], tmp_path: Path
) -> None:
    state = set_up(config()).init_state()
    with Checkpoints(tmp_path) as checkpoints:
        for step, top1 in enumerate(scores, 1):
            checkpoints.save(state.replace(step=jnp.asarray(step, jnp.int32)), rows=step, top1=top1)
        checkpoints.settle()
        assert (checkpoints.best_step(), checkpoints.steps()) == (best, kept)
        assert checkpoints.restore(state, best)[0].step == best


def test_what_is_not_evaluated_has_empty_metrics_and_never_counts_as_best(tmp_path: Path) -> None:
    """Checkpoints inside of epochs, and of the first epoch, whose end is not evaluated."""
    train(config(checkpoint_every=8, eval_every=2), tmp_path, quiet=True)
    rows = rows_of(tmp_path)
    assert [row["test_top1"] is None for row in rows] == [True, False, False]  # and always after the last
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1].endswith(",,,")
    best = max(rows[1:], key=lambda row: (row["test_top1"], row["step"]))["step"]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert (checkpoints.best_step(), checkpoints.steps()) == (best, sorted({best, 56, 63}))


def files(workdir: Path) -> dict[Path, tuple[int, int]]:
    """Tell when each file was last written, and whether it is still the same one."""
    stats = {file: file.stat() for file in workdir.rglob("*") if file.name != "lock"}
    return {file: (stat.st_mtime_ns, stat.st_ino) for file, stat in stats.items()}


def test_complete_run_returns_at_once_and_touches_nothing(
    finished: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, result = finished
    before = files(workdir)
    monkeypatch.setattr(setup, "init_state", None)  # neither initialised
    monkeypatch.setattr(loop, "train_steps", None)  # nor trained
    assert train(config(), workdir, quiet=True) == result
    assert files(workdir) == before


def test_evaluation_writes_nothing(finished: tuple[Path, Result]) -> None:
    workdir, _ = finished
    before = files(workdir)
    evaluate(config(), workdir, checkpoint="best")
    assert files(workdir) == before


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


def test_environment_names_versions_device_and_commit(finished: tuple[Path, Result]) -> None:
    values = json.loads((finished[0] / "environment.json").read_text())
    assert values.keys() - {"XLA_FLAGS"} == {
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
    return [step.jitted._cache_size() for step in steps]


def test_runs_that_differ_in_seed_share_compiled_functions_and_nothing_else(
    finished: tuple[Path, Result], tmp_path: Path
) -> None:
    compiled, given = programs(), config(seed=1, model={"head_seed": 5})
    other = train(given, tmp_path, quiet=True)
    assert programs() == compiled
    assert other.sha256 != finished[1].sha256
    assert other.loss != finished[1].loss
    mine, theirs = (state_of(*one).fixed["head"]["orthogonal"] for one in ((config(), finished[0]), (given, tmp_path)))
    assert float(np.abs(np.asarray(mine) - np.asarray(theirs)).max()) > 0.1


def test_head_seed_fixes_the_matrix_alone() -> None:
    def start(*, seed: int, head_seed: int | None = None) -> TrainState:
        return set_up(config(seed=seed, model={"head_seed": head_seed})).init_state()

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


def bits(tree: Any) -> dict[str, bytes]:
    leaves = jax.tree.leaves_with_path(jax.device_get(tree))
    return {str(path[-1].key): leaf.tobytes() for path, leaf in leaves}


def test_a_fixed_matrix_is_the_same_bits_after_training(finished: tuple[Path, Result]) -> None:
    """Under every head and optimiser: test_training_options.py, which looks at what a step does with it."""
    assert bits(state_of(config(), finished[0]).fixed) == bits(set_up(config()).init_state().fixed)


LINEAR = [head for head in heads.list_heads() if head != "conv3x3"]  # which needs larger maps than Tiny's


@pytest.mark.parametrize("head", quick(LINEAR, "orthogonal", "hadamard"))
def test_a_checkpoint_holds_drawn_matrices_and_regenerates_exact_ones(head: str, tmp_path: Path) -> None:
    # Identity's shortcut draws a matrix inside of the backbone; some matrices are narrow for Tiny's 8 features.
    drawing: Any = {"backbone": "resnet8", "model": {"maps": 10, "maps_shortcut": "G"}}
    wide: Any = {"model": {"maps": 16}}
    state = set_up(config(head, **(drawing if head == "identity" else wide))).init_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state.replace(step=jnp.asarray(21, jnp.int32)), rows=1, top1=None)
    with Checkpoints(tmp_path) as checkpoints:
        after, _ = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    assert jax.tree.structure(after.fixed) == jax.tree.structure(state.fixed)
    assert bits(after.fixed) == bits(state.fixed)
    names = ["hypercube_random"] if head == "identity" else [name for name in [heads.OWN[head].matrix] if name]
    assert list(bits(after.fixed)) == names
    stored = (tmp_path / "21" / "state" / "_METADATA").read_text()  # Orbax's list of the arrays
    assert [name in stored for name in names] == [matrices.MATRICES[name].random for name in names]
    record = json.loads((tmp_path / "21" / "record" / "metadata").read_text())
    assert [path.rsplit(".", 1)[-1] for path in record["fixed"]] == names


def test_changed_exact_matrix_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix that is regenerated must be the one that was trained with, or the checkpoint means something else."""
    given = config("hadamard", model={"maps": 16})
    RunDirectory(tmp_path, given).close()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(set_up(given).init_state(), rows=0, top1=None)
    real = matrices.MATRICES["hadamard"]
    changed = dataclasses.replace(real, build=lambda rows, columns, seed: -real.build(rows, columns, seed))
    monkeypatch.setitem(matrices.MATRICES, "hadamard", changed)
    for attempt in (train, evaluate):
        with pytest.raises(
            UsageError, match=r"^fixed\.head\.hadamard\b.* builds another matrix, or its file was changed$"
        ):
            attempt(given, tmp_path)
    assert not (tmp_path / "damaged_checkpoints").exists()  # the checkpoint is not at fault


def test_a_moving_average_starts_from_the_weights_that_a_run_starts_from(
    finished: tuple[Path, Result], tmp_path: Path
) -> None:
    """Without a step it is them, so what is evaluated are the weights; it was the initial draw."""
    workdir, result = finished
    given = config(model={"weights": str(workdir)}, epochs=0)
    given = dataclasses.replace(given, optim=dataclasses.replace(given.optim, ema=0.9))
    started = train(given, tmp_path / "started", quiet=True)
    assert (started.top1, started.loss) == (result.top1, result.loss)
