"""Runs of heads that change in training: they go on to the bit, in stacks too, and move by what they are said to."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.config import AugmentConfig, LossConfig, ModelConfig, OptimConfig
from jaxclf.data.augment import normalise
from jaxclf.models.classifier import create_model
from jaxclf.models.moving import nearest_rows
from jaxclf.training.checkpoint import Checkpoints
from jaxclf.training.evaluation import evaluate
from jaxclf.training.loop import train
from jaxclf.training.run_directory import RunDirectory
from jaxclf.training.schedules import Timeline
from jaxclf.training.setup import set_up
from jaxclf.training.stack import train_stacked
from jaxclf.training.step import Program, init_state, train_step
from jaxclf.training.weights import convert, read
from tests.training.runs import TINY, Stop, config, ended, rows_of, stop_before_step

pytestmark = pytest.mark.slow
PER_EPOCH, IDENTITY = 21, list(range(10))
HUNGARIAN = {"head_assign": "hungarian"}
RUNS = {
    "class_mean": config("class_mean", epochs=2, checkpoint_every=11),
    "hungarian": config("orthogonal", model=HUNGARIAN, epochs=2, checkpoint_every=11),
}


def state_of(given: Any, workdir: Path, step: Any = "last") -> Any:
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(set_up(given).init_state(), step)[0]


def stop_before_row(given: Any, workdir: Path) -> None:
    """Train the first epoch, evaluate it, and stop before its row and its checkpoint are written."""

    def stopping(*_: Any) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "write_rows", stopping)
        with pytest.raises(Stop):
            train(given, workdir, quiet=True)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_around_the_end_of_its_first_epoch_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    given, whole, stopped = RUNS[name], tmp_path / "whole", tmp_path / "stopped"
    result = train(given, whole, quiet=True)
    stop_before_step(given, stopped, 15)  # saved: 11
    stop_before_row(given, stopped)
    stop_before_step(given, stopped, PER_EPOCH)  # saved: 21, and the second epoch begins
    first = state_of(given, stopped)
    stop_before_step(given, stopped, 30)  # saved: 22
    train(given, stopped, quiet=True)
    assert ended(stopped) == ended(whole)
    assert evaluate(given, whole).top1 == result.top1
    last, (head,) = state_of(given, whole), first.head_state.values()
    if name == "class_mean":
        assert np.abs(head["means"] - last.head_state["head"]["means"]).max() > 0.01
        assert result.parameters == {"trainable": 680, "fixed": 0, "statistics": 32 + 80}
        return
    assert head["rows"].tolist() == IDENTITY  # evaluated and saved as it was trained
    matrix, sums = (np.asarray(tree["orthogonal"]) for tree in (last.fixed["head"], last.class_sums))
    rows = last.head_state["head"]["rows"].tolist()
    assert np.array_equal(sums, first.class_sums["orthogonal"])  # of the first epoch alone
    assert rows == nearest_rows(matrix, sums).tolist() != IDENTITY
    convert(whole, tmp_path / "run.safetensors")
    assert read(tmp_path / "run.safetensors").variables["head_state"]["head"]["rows"].tolist() == rows


def test_stacked_seeds_assign_the_rows_of_single_runs(tmp_path: Path) -> None:
    given = dataclasses.replace(RUNS["hungarian"], optim=OptimConfig(lr=3e-4, milestones=(2,)))
    both = [dataclasses.replace(given, run=dataclasses.replace(given.run, seed=seed)) for seed in (0, 1)]
    train_stacked(both, [tmp_path / "0", tmp_path / "1"], quiet=True)
    orders = []
    for seed, own in enumerate(both):
        train(own, tmp_path / f"single{seed}", quiet=True)
        stacked, single = (state_of(own, tmp_path / name) for name in (str(seed), f"single{seed}"))
        assert stacked.head_state["head"]["rows"].tolist() == single.head_state["head"]["rows"].tolist()
        sums = [np.asarray(state.class_sums["orthogonal"]) for state in (stacked, single)]
        assert np.linalg.norm(sums[0] - sums[1]) < 2e-5 * np.linalg.norm(sums[1])
        losses = [[row["train_loss"] for row in rows_of(tmp_path / name)] for name in (str(seed), f"single{seed}")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        orders.append(single.head_state["head"]["rows"].tolist())
    assert orders[0] != orders[1]


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_each_step_moves_the_means_to_those_of_its_batch(momentum: float) -> None:
    """With BatchNorm's statistics frozen, an evaluation tells the features that the step has seen.

    All is float64 but the normalised images, which are float32 and differ by their last bit: measured 4e-9.
    """
    rng = np.random.default_rng(0)
    images, labels = jnp.asarray(rng.integers(0, 256, (12, 8, 8, 1), np.uint8)), jnp.arange(12, dtype=jnp.int32) % 4
    options: Any = {"head_momentum": momentum, "freeze_statistics": True}
    model: Any = create_model(TINY, num_classes=10, head="class_mean", **options)
    still, half = AugmentConfig(pad=0, flip=False), ((0.5,), (0.25,))
    timeline, optim = Timeline(10, 3, 120), OptimConfig(ema=0.75)
    program = Program(model, optim, timeline, LossConfig(), still, *half, model_config=ModelConfig())
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        start = init_state(program, (8, 8, 1), 0, 0)
        state = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, start)
        want, averaged = np.zeros((10, 8)), np.zeros((10, 8))
        for step in range(4):
            rows = (np.arange(6, dtype=np.int32) * (step + 1)) % 12
            batch = normalise(images[rows], *half).astype(np.float64)
            features = model.apply(state.variables, batch, method="logits_and_features")[1]
            unit = np.asarray(features) / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-8)
            for label in set(labels[rows].tolist()):
                mean = unit[labels[rows] == label].mean(0)
                want[label] = momentum * want[label] + (1 - momentum) * mean / np.linalg.norm(mean)
            averaged = 0.75 * averaged + 0.25 * want
            state = jax.jit(train_step, static_argnums=0)(program, state, images, labels, rows)
            np.testing.assert_allclose(state.head_state["head"]["means"], want, atol=1e-7)
        np.testing.assert_allclose(state.evaluated["head_state"]["head"]["means"], averaged, atol=1e-7)
        assert not want[4:].any()


def test_the_checkpoint_of_a_head_that_does_not_move_holds_what_it_always_did(tmp_path: Path) -> None:
    state = set_up(config()).init_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, rows=0, top1=None)
    names = (tmp_path / "0" / "state" / "_METADATA").read_text()  # Orbax's list of the arrays
    assert "batch_stats" in names
    assert "head_state" not in names
    assert "class_sums" not in names
