"""Schedules, what decays, what is frozen, averages; parity/test_optimisers.py has PyTorch's optimisers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.config import OptimConfig
from jaxclf.errors import UsageError
from jaxclf.training.optim import apply_updates, average, decayed, trainable, transformation
from jaxclf.training.schedules import Timeline, learning_rate, schedule
from tests.tiny import Tiny

NAMES: Any = ("sgd", "rmsprop", "rmsprop_tf", "adam", "adamw", "adagrad", "adadelta", "adamax", "nadam", "lbfgs")
SCHEDULES: Any = ("constant", "multistep", "step", "exponential", "linear", "cosine", "polynomial")
TIMELINE = Timeline(steps_per_epoch=7, epochs=9, examples=100)


def rates(config: OptimConfig, timeline: Timeline, steps: Any) -> list[float]:
    return [learning_rate(config, timeline, step) for step in steps]


def compiled_rates(config: OptimConfig, timeline: Timeline, steps: int) -> np.ndarray:
    return np.asarray(jax.vmap(schedule(config, timeline))(jnp.arange(steps)))


LINEAR: Any = {"lr": 0.5, "schedule": "linear"}
STEPWISE: Any = {"lr": 1.0, "schedule": "step", "schedule_every": "step", "step_size": 2.5, "gamma": 0.98}  # TF-slim
RATES: Any = {
    "a milestone is the first epoch at its rate": (  # thesis table 4.1
        *({"lr": 0.1, "milestones": (81, 122)}, Timeline(10, 164, 100)),
        {0: 0.1, 809: 0.1, 810: 0.01, 1219: 0.01, 1220: 0.001, 1639: 0.001},
    ),
    "a constant schedule has no milestones": (
        *({"lr": 0.3, "schedule": "constant", "milestones": (1, 2)}, TIMELINE),
        dict.fromkeys(range(63), 0.3),
    ),
    "linear ends one epoch before zero": (LINEAR, Timeline(10, 240, 100), {0: 0.5, 1: 0.5, 2399: 0.5 / 240, 2400: 0}),
    "linear ends one step before zero": (
        *(LINEAR | {"schedule_every": "step"}, Timeline(1, 300, 100)),
        {0: 0.5, 1: 0.5 - 0.5 / 300, 299: 0.5 / 300, 300: 0},
    ),
    "cosine every epoch": (  # HarDNet: .5 * lr * (1 + cos(pi e / E))
        *({"lr": 0.05, "schedule": "cosine"}, Timeline(10, 150, 100)),
        {0: 0.05, 9: 0.05, 10: 0.04999451693655121, 750: 0.025, 1499: 5.482913128862511e-06, 1500: 0},
    ),
    "a drop every two and a half epochs": (
        *(STEPWISE, Timeline(4, 10, 100)),
        {0: 1, 9: 1, 10: 0.98, 19: 0.98, 20: 0.9604, 39: 0.941192},
    ),
    "a warm-up rises step by step and the schedule starts after it": (
        *({"lr": 0.8, "milestones": (1,), "gamma": 0.5, "warmup": 0.5, "warmup_start": 0.25}, Timeline(4, 3, 100)),
        {0: 0.2, 1: 0.5} | dict.fromkeys((2, 3, 4, 5), 0.8) | dict.fromkeys(range(6, 12), 0.4),
    ),
}
"""Fields, the run's length, and rates by step."""


@pytest.mark.parametrize(("fields", "timeline", "want"), RATES.values(), ids=RATES.keys())
def test_rates(fields: Any, timeline: Timeline, want: dict[int, float]) -> None:
    got = rates(OptimConfig(**fields), timeline, want)
    assert got == pytest.approx(list(want.values()), rel=1e-10 if fields.get("schedule") == "linear" else 1e-6)


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


FREEZES: Any = (("all", ("backbone/*",)), ("weights", ("*/bias", "head/scale")), ("not_depthwise", ("*",)))
"""With what decays."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_stays_to_the_bit(name: Any) -> None:
    rng = np.random.default_rng(0)
    draw: Any = lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32)  # noqa: E731
    start = jax.tree.map(draw, PARAMS)
    start["head"]["bias"] = jnp.asarray([-0.0, 1e-45], jnp.float32)  # adding zero would change both
    for decay, freeze in FREEZES:
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
