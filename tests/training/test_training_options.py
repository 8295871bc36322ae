"""Options of a step and of a run as they act together: parts of a batch, averages, types, views, held-out images."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from jaxclf.data.augment import normalise
from jaxclf.data.datasets import Digits
from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.training.evaluation import evaluate
from jaxclf.training.loop import train
from jaxclf.training.parallel import recalibrate_step
from jaxclf.training.schedules import Timeline
from jaxclf.training.setup import set_up
from jaxclf.training.step import Program, TrainState, eval_step, init_state, train_step
from jaxclf.training.weights import read
from tests.tiers import quick
from tests.training.runs import TINY, rows_of

STILL = AugmentConfig(pad=0, flip=False)
HALF = ((0.5,), (0.25,))
STEP = jax.jit(train_step, static_argnums=0)
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (12, 28, 28, 1)), jnp.uint8)
LABELS = jnp.arange(12, dtype=jnp.int32) % 10
OPTIMISERS = ("sgd", "rmsprop", "rmsprop_tf", "adam", "adamw", "adagrad", "adadelta", "adamax", "nadam", "lbfgs")


def program_of(backbone: str = "lenet5", head: str = "learned", dtype: Any = "float32", **parts: Any) -> Program:
    model = create_model(backbone, num_classes=10, head=head, dtype=dtype, **parts.get("model", {}))
    optim, loss, augment = (
        parts.get(name, kind) for name, kind in (("optim", OptimConfig()), ("loss", LossConfig()), ("augment", STILL))
    )
    return Program(model, optim, Timeline(10, 3, 120), loss, augment, *HALF)


def run(program: Program, steps: int, side: int = 28) -> TrainState:
    state = init_state(program, (side, side, 1), 0, 0)
    for step in range(steps):
        indices = (np.arange(6, dtype=np.int32) + 5 * step) % 12
        state = STEP(program, state, IMAGES[:, :side, :side], LABELS, indices)
    return state


def far(a: Any, b: Any) -> float:
    """The largest difference of two trees, by the largest value of each leaf."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max() / np.abs(y).max()) for x, y in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4, 6])
def test_a_network_without_batchnorm_learns_the_same_from_parts_of_a_batch(parts: int) -> None:
    regularised = LossConfig(so=0.025, label_smoothing=0.1)
    whole = run(program_of(loss=regularised), 3)
    state = run(program_of(loss=regularised, optim=OptimConfig(accumulate=parts)), 3)  # 4 parts: 2, 2, 1 and 1 images
    assert far(state.params, whole.params) < 1e-5
    assert float(state.sums["so"]) == pytest.approx(float(whole.sums["so"]), rel=1e-5)
    assert float(state.sums["loss"]) == pytest.approx(float(whole.sums["loss"]), rel=1e-5)
    assert int(state.sums["count"]) == 18


def test_batchnorm_sees_the_parts_one_after_the_other() -> None:
    parts = run(program_of(TINY, optim=OptimConfig(accumulate=2, lr=1e-30)), 1, side=8)
    mean = np.zeros(8)
    start = init_state(program_of(TINY), (8, 8, 1), 0, 0)
    for rows in (slice(0, 3), slice(3, 6)):
        kernel = start.params["backbone"]["conv1"]["kernel"]
        images = normalise(IMAGES[rows, :8, :8], *HALF)
        seen = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean += 0.1 * (np.asarray(seen).mean((0, 1, 2)) - mean)
    np.testing.assert_allclose(parts.batch_stats["backbone"]["bn1"]["running_mean"], mean, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_average_follows_parameters_and_statistics_and_is_what_is_evaluated() -> None:
    program = program_of(TINY, optim=OptimConfig(ema=0.75))
    state = init_state(program, (8, 8, 1), 0, 0)
    expected = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    for step in range(3):
        state = STEP(program, state, IMAGES[:, :8, :8], LABELS, (np.arange(6, dtype=np.int32) + step) % 12)
        new = {"params": state.params, "batch_stats": state.batch_stats}
        expected = jax.tree.map(lambda old, leaf: 0.75 * old + 0.25 * np.asarray(leaf), expected, new)
    assert far(state.average, expected) < 1e-5
    assert far(state.params, state.average["params"]) > 1e-3
    indices, mask = np.arange(12, dtype=np.int32), np.ones(12, bool)
    averaged, _ = eval_step(program, state, IMAGES[:, :8, :8], LABELS, indices, mask)
    plain = state.replace(params=state.average["params"], batch_stats=state.average["batch_stats"], average={})
    last, _ = eval_step(program_of(TINY), plain, IMAGES[:, :8, :8], LABELS, indices, mask)
    assert float(averaged["loss"]) == pytest.approx(float(last["loss"]), rel=1e-6)


def test_a_test_image_is_answered_by_the_mean_logits_of_its_views() -> None:
    program = program_of(TINY, augment=dataclasses.replace(STILL, test="flip"))
    state = init_state(program, (8, 8, 1), 0, 0)
    images = IMAGES[:, :8, :8]
    sums, _ = eval_step(program, state, images, LABELS, np.arange(12, dtype=np.int32), np.ones(12, bool))
    views = [normalise(shown, *HALF) for shown in (images, images[:, :, ::-1])]
    logits = np.mean([np.asarray(program.model.apply(state.variables, view)) for view in views], axis=0)
    loss = -jax.nn.log_softmax(jnp.asarray(logits))[np.arange(12), LABELS].sum()
    assert float(sums["loss"]) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "momentum"), [(TINY, 0.1), ("tests.tiny:SLOW_STATISTICS", 0.01)])
def test_recalibration_is_the_mean_over_batches_whatever_was_there_before(backbone: str, momentum: float) -> None:
    program = program_of(backbone)
    state = run(program, 2, side=8)
    own = []
    for rows in (np.arange(6), np.arange(6, 12)):
        blank = {**state.variables, "batch_stats": jax.tree.map(jnp.zeros_like, state.batch_stats)}
        batch = normalise(IMAGES[rows, :8, :8], *HALF)
        _, updated = program.model.apply(blank, batch, train=True, mutable=["batch_stats"])
        own.append(jax.tree.map(lambda leaf: np.asarray(leaf) / momentum, updated["batch_stats"]))
    for number, rows in enumerate((np.arange(6), np.arange(6, 12)), start=1):
        state = recalibrate_step(program, state, IMAGES[:, :8, :8], LABELS, rows.astype(np.int32)[None], number)
    assert far(state.batch_stats, jax.tree.map(lambda a, b: (a + b) / 2, *own)) < 1e-5


def combinations() -> list[tuple[str, str, OptimConfig]]:
    """Every optimiser, and in turn every head that is fixed, decay, average, number of parts and type."""
    found = []
    for number, name in enumerate(OPTIMISERS):
        head = ("orthogonal", "hadamard", "hadamard_printed")[number % 3]
        optim = OptimConfig(
            name=name,  # pyright: ignore[reportArgumentType]
            lr=0.01,
            weight_decay=0.1,
            decay=("all", "weights", "not_depthwise")[number // 2 % 3],  # pyright: ignore[reportArgumentType]
            ema=(None, 0.9)[number % 2],
            accumulate=1 if name == "lbfgs" else 1 + number // 3 % 2,
            clip_norm=(1.0, None)[number // 2 % 2],
        )
        found.append((head, ("float32", "bfloat16")[number // 2 % 2], optim))
    return found


def check_fixed(program: Program, side: int, *, matrices: int = 1) -> None:
    """The matrices that a step returns are the variables that it was given, and no other leaf has their shapes."""
    state = init_state(program, (side, side, 1), 0, 0)
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(jax.tree.map(jnp.asarray, state))]
    assert len(set(places)) == len(places)  # the compiled loop gives them away, each once
    arrays = (IMAGES[:, :side, :side], LABELS, np.arange(6, dtype=np.int32))
    traced = jax.make_jaxpr(functools.partial(train_step, program))(state, *arrays).jaxpr
    leaves = jax.tree.leaves_with_path(state)
    kept: dict[str, list[bool]] = {}
    for (path, _), given, returned in zip(leaves, traced.invars[: len(leaves)], traced.outvars, strict=True):
        kept.setdefault(path[0].name, []).append(given is returned)
    assert kept["fixed"] == [True] * matrices
    assert not any(kept["params"])
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.fixed)}
    assert not [path for path, leaf in leaves if leaf.shape in shapes and path[0].name in ("opt_state", "average")]


@pytest.mark.filterwarnings("ignore:hadamard")
@pytest.mark.parametrize(
    ("head", "dtype", "optim"), quick(combinations(), *combinations()[:2]), ids=lambda one: getattr(one, "name", one)
)
def test_a_fixed_head_stays_what_it_was_under_every_optimiser(head: str, dtype: str, optim: OptimConfig) -> None:
    check_fixed(program_of("lenet5", head, dtype, optim=optim), 28)


def test_a_matrix_inside_of_the_backbone_stays_what_it_was() -> None:
    drawing = {"maps": 32, "maps_shortcut": "D"}
    program = program_of("resnet8", "hadamard", optim=OptimConfig(weight_decay=0.1), model=drawing)
    check_fixed(program, 8, matrices=2)


TURNS = itertools.cycle([(1, None, "float32"), (2, 0.9, "float32"), (1, 0.9, "bfloat16")])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "turn"), list(zip(OPTIMISERS, TURNS, strict=False)), ids=OPTIMISERS)
def test_a_fixed_head_stays_what_it_was_in_a_residual_network(name: Any, turn: tuple[int, Any, str]) -> None:
    accumulate, ema, dtype = turn  # lbfgs comes with accumulate=1: jaxclf.config refuses more
    optim = OptimConfig(name=name, lr=0.01, weight_decay=0.1, ema=ema, accumulate=accumulate)
    check_fixed(program_of("resnet8", "orthogonal", dtype, optim=optim), 8)


@pytest.mark.slow
def test_bfloat16_training_stays_near_float32_with_float32_parameters() -> None:
    wide, narrow = (
        run(program_of(TINY, dtype=dtype, optim=OptimConfig(lr=0.01)), 3, 8) for dtype in ("float32", "bfloat16")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((narrow.params, narrow.opt_state, narrow.batch_stats))} <= {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
    assert float(narrow.sums["loss"]) == pytest.approx(float(wide.sums["loss"]), rel=0.02)
    assert float(narrow.sums["loss"]) != float(wide.sums["loss"])


def held_out(**parts: Any) -> Config:
    """Two epochs on the digits, a fifth of them held out."""
    return Config(
        data=DataConfig(batch_size=256, validation=0.2, drop_last=True),
        augment=parts.get("augment", STILL),
        model=ModelConfig(TINY),
        optim=parts.get("optim", OptimConfig(lr=0.05, ema=0.5)),
        run=RunConfig(epochs=2, recalibrate=3),
    )


@pytest.mark.slow
def test_epochs_are_evaluated_on_the_held_out_images_and_the_test_images_once(tmp_path: Path) -> None:
    result = train(held_out(), tmp_path, quiet=True)
    for row in rows_of(tmp_path):
        assert [f"validation_{name}" in row for name in ("loss", "top1", "top5")] == [True] * 3
        assert not [name for name in row if name.startswith("test_")]
    with np.load(tmp_path / "predictions.npz") as saved:
        labels, predictions = saved["labels"], saved["predictions"]
    assert len(labels) == 445
    assert result.top1 == pytest.approx(100 * (labels == predictions).mean())
    assert evaluate(held_out(), tmp_path).top1 == result.top1  # the average and the recalibrated statistics are saved

    weights = read(tmp_path)
    digits = Digits(held_out().data)
    images = digits.images()["test"].images
    logits = weights.model.apply(weights.variables, normalise(jnp.asarray(images), *digits.constants))
    assert np.array_equal(np.asarray(logits).argmax(1), predictions)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"augment": AugmentConfig(jitter=(0.4, 0.4, 0.4, 0.1))}, "jitter"),
        ({"augment": AugmentConfig(test="five_crop", test_crop=9)}, "test_crop is 9"),
        ({"optim": OptimConfig(freeze=("backbone/conv9/*",))}, "optim.freeze: 'backbone/conv9/\\*' match no parameter"),
    ],
)
def test_options_that_do_not_fit_images_or_network_are_refused_before_any_compile(
    parts: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        set_up(held_out(**parts))
