"""Schedules, what decays, what is frozen, averages; parity/test_optimisers.py has PyTorch's optimisers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.config import AugmentConfig, LossConfig, OptimConfig
from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.training.optim import apply_updates, average, decayed, trainable, transformation
from jaxclf.training.schedules import Timeline, learning_rate, schedule
from jaxclf.training.step import Program, init_state, train_step
from tests.tiny import Tiny

NAMES: Any = ("sgd", "rmsprop", "rmsprop_tf", "adam", "adamw", "adagrad", "adadelta", "adamax", "nadam", "lbfgs")
SCHEDULES: Any = ("constant", "multistep", "step", "exponential", "linear", "cosine", "polynomial")
TIMELINE = Timeline(steps_per_epoch=7, epochs=9, examples=100)


def rates(config: OptimConfig, timeline: Timeline, steps: Any) -> list[float]:
    return [learning_rate(config, timeline, step) for step in steps]


def compiled_rates(config: OptimConfig, timeline: Timeline, steps: int) -> np.ndarray:
    return np.asarray(jax.vmap(schedule(config, timeline))(jnp.arange(steps)))


def test_a_milestone_is_the_first_epoch_at_its_rate() -> None:
    config = OptimConfig(lr=0.1, milestones=(81, 122))  # thesis table 4.1
    got = rates(config, Timeline(10, 164, 100), [10 * epoch for epoch in (0, 81, 122)] + [809, 1219, 1639])
    assert got == pytest.approx([0.1, 0.01, 0.001, 0.1, 0.01, 0.001])


def test_a_constant_schedule_has_no_milestones() -> None:
    config = OptimConfig(lr=0.3, schedule="constant", milestones=(1, 2))
    assert rates(config, TIMELINE, range(63)) == [0.3] * 63


@pytest.mark.parametrize(("every", "second", "last"), [("epoch", 0.5, 0.5 / 240), ("step", 0.5 - 0.5 / 300, 0.5 / 300)])
def test_linear_ends_one_step_before_zero(every: Any, second: float, last: float) -> None:
    config = OptimConfig(lr=0.5, schedule="linear", schedule_every=every)
    timeline = Timeline(1, 300, 100) if every == "step" else Timeline(10, 240, 100)
    got = rates(config, timeline, [0, 1, timeline.steps - 1, timeline.steps])
    assert got == pytest.approx([0.5, second, last, 0.0], rel=1e-10)


def test_cosine_every_epoch() -> None:
    config = OptimConfig(lr=0.05, schedule="cosine")  # HarDNet: .5 * lr * (1 + cos(pi e / E))
    got = rates(config, Timeline(10, 150, 100), (0, 9, 10, 750, 1499, 1500))
    assert got == pytest.approx([0.05, 0.05, 0.04999451693655121, 0.025, 5.482913128862511e-06, 0.0])


def test_a_drop_every_two_and_a_half_epochs() -> None:
    config = OptimConfig(lr=1.0, schedule="step", schedule_every="step", step_size=2.5, gamma=0.98)  # TF-slim
    got = rates(config, Timeline(4, 10, 100), (0, 9, 10, 19, 20, 39))
    assert got == pytest.approx([1.0, 1.0, 0.98, 0.98, 0.9604, 0.941192])


def test_a_warmup_rises_step_by_step_and_the_schedule_starts_after_it() -> None:
    config = OptimConfig(lr=0.8, milestones=(1,), gamma=0.5, warmup=0.5, warmup_start=0.25)
    got = rates(config, Timeline(4, 3, 100), range(12))
    assert got == pytest.approx([0.2, 0.5, 0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_may_end_in_its_warmup(name: Any) -> None:
    config = OptimConfig(lr=1.0, schedule=name, warmup=4.0)
    assert rates(config, Timeline(5, 2, 100), range(10)) == pytest.approx([step / 20 for step in range(10)])
    assert compiled_rates(config, Timeline(5, 2, 100), 10).tolist() == [np.float32(step / 20) for step in range(10)]


@pytest.mark.parametrize(
    ("examples", "warm", "drops", "end"),
    [
        (19_999, 100, (200, 300, 400), 500),
        (20_000, 500, (3_000, 6_000, 9_000), 10_000),
        (499_999, 500, (3_000, 6_000, 9_000), 10_000),
        (500_000, 500, (6_000, 12_000, 18_000), 20_000),
    ],
)
def test_hyperrule_is_bits(examples: int, warm: int, drops: tuple[int, ...], end: int) -> None:
    config, timeline = OptimConfig(lr=0.003, schedule="hyperrule"), Timeline(3, 2, examples)
    assert rates(config, timeline, (0, 1, warm - 1, warm)) == pytest.approx([0, 3e-3 / warm, 3e-3 - 3e-3 / warm, 3e-3])
    before, after = rates(config, timeline, drops), rates(config, timeline, [drop + 1 for drop in drops])
    assert before == pytest.approx([3e-3, 3e-4, 3e-5])
    assert after == pytest.approx([3e-4, 3e-5, 3e-6])
    assert rates(config, timeline, (end - 1, end, 3 * end)) == pytest.approx([3e-6, 0, 0])


@pytest.mark.parametrize("fields", [{"warmup": 1.0}, {"warmup_start": 0.5}])
def test_hyperrule_refuses_a_second_warmup(fields: Any) -> None:
    config = OptimConfig(schedule="hyperrule", **fields)
    for function in (lambda: learning_rate(config, TIMELINE, 0), lambda: transformation(config, TIMELINE)):
        with pytest.raises(UsageError, match="'hyperrule' has its own warm-up"):
            function()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("every", ["epoch", "step"])
@pytest.mark.parametrize("warmup", [0.0, 1.3])
def test_the_compiled_rate_is_the_rate_in_float32(name: Any, every: Any, warmup: float) -> None:
    fields: Any = {"schedule": name, "schedule_every": every, "warmup": warmup, "warmup_start": 0.1}
    config = OptimConfig(lr=0.1, milestones=(2, 5), gamma=0.7, step_size=2, power=0.9, **fields)
    steps = 70  # seven past the end
    want = np.asarray(rates(config, TIMELINE, range(steps))).astype(np.float32)
    np.testing.assert_array_equal(compiled_rates(config, TIMELINE, steps), want)
    assert len(set(want.tolist())) > (1 if name != "constant" or warmup else 0)


def test_the_compiled_hyperrule_is_the_hyperrule_in_float32() -> None:
    config = OptimConfig(lr=0.003, schedule="hyperrule")
    want = np.asarray(rates(config, TIMELINE, range(600))).astype(np.float32)
    np.testing.assert_array_equal(compiled_rates(config, TIMELINE, 600), want)


PARAMS: Any = {
    "backbone": {
        "conv1": {"kernel": jnp.ones((3, 3, 1, 4))},
        "bn1": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
        "depthwise": {"kernel": jnp.ones((3, 3, 1, 4))},
        "pointwise": {"kernel": jnp.ones((1, 1, 1, 4))},
    },
    "head": {"kernel": jnp.ones((4, 2)), "scale": jnp.ones(()), "bias": jnp.zeros(2)},
}


depthwise = Tiny().is_depthwise
"""Its first convolution is "conv1", as that of PARAMS."""


def paths(mask: Any) -> set[str]:
    leaves = jax.tree.leaves_with_path(mask)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if leaf}


VECTORS = {"backbone/bn1/scale", "backbone/bn1/bias", "head/scale", "head/bias"}
MATRICES = {"backbone/conv1/kernel", "backbone/depthwise/kernel", "backbone/pointwise/kernel", "head/kernel"}


@pytest.mark.parametrize(
    ("decay", "names"),
    [
        ("all", MATRICES | VECTORS),
        ("weights", MATRICES),
        ("not_depthwise", MATRICES - {"backbone/depthwise/kernel"}),
    ],
)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_decays(name: Any, decay: Any, names: set[str]) -> None:
    config = OptimConfig(name=name, lr=1.0, momentum=0.0, weight_decay=0.1, decay=decay)
    assert paths(decayed(config, PARAMS, depthwise=depthwise)) == names
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    tx = transformation(config, TIMELINE, depthwise=depthwise)
    updates = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, ones), tx.init(ones), ones)[0]
    after = jax.tree.map(lambda p, u: round(float(np.add(p, u).min()), 6), ones, updates)
    assert set(jax.tree.leaves(after)) <= {0.9, 1.0}
    assert paths(jax.tree.map(lambda value: value == 0.9, after)) == names


def test_what_is_frozen_does_not_decay() -> None:
    config = OptimConfig(freeze=("backbone/*",), decay="weights")
    assert paths(trainable(config, PARAMS)) == {"head/kernel", "head/scale", "head/bias"}
    assert paths(decayed(config, PARAMS)) == {"head/kernel"}


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    config = OptimConfig(freeze=("backbone/*", "head/kernal", "Backbone/bn1/*"))
    with pytest.raises(UsageError, match=r"'head/kernal', 'Backbone/bn1/\*' match no parameter; nearest: head/kernel,"):
        trainable(config, PARAMS)
    with pytest.raises(UsageError, match="head/kernal"):
        transformation(config, TIMELINE).init(PARAMS)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_has_no_optimiser_state(name: Any) -> None:
    fields: Any = {"name": name, "clip_norm": 1.0}
    whole, head = (
        jax.eval_shape(transformation(OptimConfig(freeze=freeze, **fields), TIMELINE).init, PARAMS)
        for freeze in ((), ("backbone/*",))
    )
    alone = jax.eval_shape(transformation(OptimConfig(**fields), TIMELINE).init, {"head": PARAMS["head"]})
    shapes = [sorted(leaf.shape for leaf in jax.tree.leaves(state)) for state in (whole, head, alone)]
    assert shapes[1] == shapes[2] != shapes[0]


def test_the_norm_counts_what_trains() -> None:
    config = OptimConfig(lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=2.5, freeze=("backbone/*",))
    params = {"backbone": {"kernel": jnp.zeros(2)}, "head": {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}}
    grads = {"backbone": {"kernel": jnp.full(2, 1e6)}, "head": {"kernel": jnp.full(1, 3.0), "bias": jnp.full(1, -4.0)}}
    tx = transformation(config, TIMELINE)
    updates: Any = tx.update(grads, tx.init(params), params)[0]
    assert updates["head"]["kernel"].item() == pytest.approx(-1.5)
    assert updates["head"]["bias"].item() == pytest.approx(2.0)


FREEZES = (("backbone/*",), ("*/bias", "head/scale"), ("*",))


@pytest.mark.parametrize("decay", ["all", "weights", "not_depthwise"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_stays_to_the_bit(name: Any, decay: Any) -> None:
    rng = np.random.default_rng(0)
    draw: Any = lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32)  # noqa: E731
    start = jax.tree.map(draw, PARAMS)
    start["head"]["bias"] = jnp.asarray([-0.0, 1e-45], jnp.float32)  # adding zero would change both
    for freeze in FREEZES:
        config = OptimConfig(name=name, lr=0.01, decay=decay, freeze=freeze, ema=0.9, clip_norm=1.0, weight_decay=0.1)
        frozen = trainable(config, start)
        tx = transformation(config, TIMELINE, depthwise=depthwise)
        params, averaged, state = start, start, tx.init(start)
        for step in (1, 2):
            grads = jax.tree.map(lambda leaf, trains: draw(leaf) if trains else np.nan * leaf, start, frozen)
            updates, state = tx.update(grads, state, params)
            params = apply_updates(config, params, updates)
            averaged = average(config, averaged, params, jnp.asarray(step, jnp.int32))
        for after in (params, averaged):
            for leaf, before, trains in zip(*map(jax.tree.leaves, (after, start, frozen)), strict=True):
                assert np.isfinite(leaf).all()
                assert (np.asarray(leaf).tobytes() == np.asarray(before).tobytes()) != trains, freeze


@pytest.mark.parametrize("fields", [{"momentum": 0.0}, {"dampening": 0.1}])
def test_nesterov_needs_an_undampened_momentum(fields: Any) -> None:
    with pytest.raises(UsageError, match="needs momentum above 0 and dampening 0"):
        transformation(OptimConfig(nesterov=True, **fields), TIMELINE)


def test_rmsprop_tf_has_the_rate_in_its_buffer_and_rmsprop_has_not() -> None:
    fields: Any = {"lr": 1.0, "momentum": 0.5, "weight_decay": 0.0, "milestones": (1,), "gamma": 0.1, "alpha": 0.0}
    cases: Any = {"rmsprop_tf": -0.5 / np.sqrt(2), "rmsprop": -0.05}
    for name, after in cases.items():
        tx = transformation(OptimConfig(name=name, **fields), Timeline(1, 2, 1))
        param = jnp.zeros(1)
        state = tx.init(param)
        _, state = tx.update(jnp.ones(1), state, param)
        update, _ = tx.update(jnp.zeros(1), state, param)
        assert np.asarray(update).item() == pytest.approx(after), name


def test_lbfgs_solves_a_quadratic_and_then_rests() -> None:
    curvature = jnp.asarray([1.0, 3.0, 10.0, 30.0])
    tx = transformation(OptimConfig(name="lbfgs", lr=1.0, schedule="constant", weight_decay=0.0), TIMELINE)
    update = jax.jit(tx.update)
    param = jnp.ones(4)
    state: Any = tx.init(param)
    for _ in range(30):
        before, (step, state) = param, update(curvature * param, state)
        param += step
    assert np.abs(param).max() < 1e-5
    np.testing.assert_array_equal(param, before)


@pytest.mark.parametrize(("ema", "warmup", "after"), [(0.9, False, 1.3), (0.9, True, 3.7), (0.05, True, 3.85)])
def test_the_first_average(ema: float, warmup: bool, after: float) -> None:
    config = OptimConfig(ema=ema, ema_every=4, ema_warmup=warmup)
    tree, new = {"a": jnp.ones(2)}, {"a": jnp.full(2, 4.0)}
    for step in (1, 2, 3, 5):
        same = average(config, tree, new, jnp.asarray(step, jnp.int32))
        np.testing.assert_array_equal(same["a"], tree["a"])
    got = jax.jit(average, static_argnums=0)(config, tree, new, jnp.asarray(4, jnp.int32))
    np.testing.assert_allclose(got["a"], after, rtol=1e-6)


def test_without_ema_the_average_is_the_last() -> None:
    assert average(OptimConfig(), jnp.zeros(()), jnp.ones(()), jnp.asarray(1, jnp.int32)) == 1


@pytest.mark.parametrize("head", ["orthogonal", "hadamard"])
def test_a_fixed_matrix_never_reaches_the_optimiser(head: str) -> None:
    model = create_model("resnet8", num_classes=10, head=head, maps=32, maps_shortcut="D")
    augment = AugmentConfig(pad=0, flip=False)
    program = Program(model, OptimConfig(weight_decay=0.1), TIMELINE, LossConfig(), augment, (0.5,), (0.5,))
    state = init_state(program, (8, 8, 1), 0, 0)
    fixed = {path[-1].key: leaf for path, leaf in jax.tree.leaves_with_path(state.fixed)}
    assert set(fixed) == {"orthoplex", head}
    buffers = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(buffers) == sorted(leaf.shape for leaf in jax.tree.leaves(state.params))
    assert not any(word in str(jax.tree.structure(state.opt_state)) for word in fixed)

    given = (jnp.zeros((4, 8, 8, 1), jnp.uint8), jnp.zeros(4, jnp.int32), np.arange(4, dtype=np.int32))
    traced = jax.make_jaxpr(functools.partial(train_step, program))(state, *given).jaxpr
    paths = [path for path, _ in jax.tree.leaves_with_path(state)]
    kept = {path for path, before, after in zip(paths, traced.invars, traced.outvars, strict=False) if before is after}
    assert {path[-1].key for path in kept if path[0].name == "fixed"} == set(fixed)
