"""Progressive shrinking: what a step trains, the same bits after a stop, sorted channels, parts of a run's network."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclf.config import Config, ElasticConfig, OptimConfig, validate
from jaxclf.errors import UsageError
from jaxclf.models.elastic import Places, Setting, variables_of
from jaxclf.tools.search import accuracy
from jaxclf.training import elastic
from jaxclf.training.evaluation import evaluate, restore
from jaxclf.training.loop import train
from jaxclf.training.parallel import train_steps
from jaxclf.training.run_directory import RunDirectory
from jaxclf.training.setup import set_up
from jaxclf.training.sorting import sorted_for
from jaxclf.training.stack import check_stack
from jaxclf.training.step import apply_model
from tests.tiers import quick
from tests.tiny import TinyElastic
from tests.training.runs import config, ended, stop_before_step

ELASTIC, PER_EPOCH = "tests.tiny:TinyElastic", 21
SHRINKING = ElasticConfig(kernels=(0,), depths=(1,), expansions=(2,), random=1)


def shrinking(elastic: ElasticConfig = SHRINKING, **run: Any) -> Config:
    return dataclasses.replace(config("learned", backbone=ELASTIC, **run), elastic=elastic)


def places(settings: list[Any]) -> np.ndarray:
    """Return kernels, expansions and presence [settings blocks 3]."""
    blocks = [[one["backbone"][f"blocks_{number}"] for number in (1, 2)] for one in settings]
    return np.array([[[int(b[n]) for n in ("kernel", "expansion", "there")] for b in own] for own in blocks])


@pytest.mark.parametrize(
    ("epoch", "least"),
    quick([(0, [1, 0, 1, 1, 0, 1]), (1, [1, 0, 1, 1, 0, 0]), (2, [1, 1, 1, 1, 1, 0])], (2, [1, 1, 1, 1, 1, 0])),
)
def test_a_step_trains_the_smallest_setting_so_far_and_random_ones_in_between(epoch: int, least: list[int]) -> None:
    program = set_up(shrinking(dataclasses.replace(SHRINKING, random=40))).program
    draw = [
        places(elastic.settings(program.elastic, program.model.backbone, jax.random.key(key), jnp.int32(epoch)))
        for key in (7, 7, 8)
    ]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert (draw[0] != draw[2]).any()
    assert draw[0][0].ravel().tolist() == least
    moving = draw[0][1:].reshape(40, -1)
    assert [len(set(column.tolist())) for column in moving.T] == [
        2,
        1 + (epoch > 1),
        1,
        2,
        1 + (epoch > 1),
        1 + (epoch > 0),
    ]


@pytest.mark.slow
def test_before_the_first_smaller_setting_the_step_is_that_of_an_ordinary_network() -> None:
    given = ElasticConfig(kernels=(1,))
    setup = set_up(shrinking(given))
    plain = set_up(shrinking(ElasticConfig())).program
    assert setup.program_of(PER_EPOCH - 1) == plain
    assert setup.program_of(PER_EPOCH) == dataclasses.replace(plain, elastic=given)


@pytest.mark.slow
def test_a_step_adds_the_gradients_of_the_settings_which_the_largest_teaches() -> None:
    """One step of SGD without momentum moves the parameters by the sum of gradients that are written out here."""
    given = dataclasses.replace(
        shrinking(dataclasses.replace(SHRINKING, distil=0.7)),
        optim=OptimConfig(lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant"),
    )
    given = dataclasses.replace(given, augment=dataclasses.replace(given.augment, pad=0))
    setup = set_up(given)
    program, state = setup.program, setup.init_state()
    state = state.replace(step=state.step + 5)  # of the first epoch: kernels shrink, depths and expansions do not yet
    program = dataclasses.replace(program, model=program.model.clone(dropout=0.0))
    images, labels = setup.data.examples("train", np.arange(16, dtype=np.int32))
    rows = jnp.arange(16, dtype=jnp.int32)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), 2**32 - 3), 5)
    drawn = elastic.settings(program.elastic, program.model.backbone, key, jnp.int32(0))
    mean, std = (np.array(one, np.float32) for one in (program.mean, program.std))
    batch = jnp.asarray((images / np.float32(255) - mean) / std)

    def answer(params: Any, stats: Any, setting: Any) -> Any:
        variables = {"params": params, "batch_stats": stats, **({"setting": setting} if setting else {})}
        logits, new = apply_model(program, variables, batch, train=True, mutable=["batch_stats"])
        return logits, new["batch_stats"]

    def loss(params: Any, stats: Any, setting: Any, taught: Any) -> Any:
        logits, stats = answer(params, stats, setting)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels))
        if taught is not None:
            each += 0.7 * optax.softmax_cross_entropy(logits, taught)
        return each.mean(), (stats, jax.nn.softmax(logits))

    step = jax.jit(jax.grad(loss, has_aux=True))
    total, (stats, taught) = step(state.params, state.batch_stats, None, None)
    for setting in drawn:
        grads, (stats, _) = step(state.params, stats, setting, taught)
        total = jax.tree.map(jnp.add, total, grads)
    before = jax.tree.map(jnp.copy, (state.params, state.batch_stats))
    after = train_steps(program, state, jnp.asarray(images), jnp.asarray(labels), rows[None])
    expected = jax.tree.map(jnp.subtract, before[0], total)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), after.params, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), after.batch_stats, stats)
    assert len(drawn) == 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through all phases, its images of two sizes."""
    workdir = tmp_path_factory.mktemp("elastic") / "whole"
    train(whole_config(), workdir, quiet=True)
    return workdir


def whole_config(**run: Any) -> Config:
    given = shrinking(
        dataclasses.replace(SHRINKING, sizes=(8, 6)), **({"checkpoint_every": 16, "recalibrate": 3} | run)
    )
    return dataclasses.replace(given, data=dataclasses.replace(given.data, validation=0.1))


@pytest.mark.slow
def test_a_run_stopped_in_each_phase_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    for step in (10, 18, 36, 40, 50):  # 19 steps an epoch; channels are sorted after 38
        stop_before_step(whole_config(), tmp_path / "stopped", step)
    train(whole_config(), tmp_path / "stopped", quiet=True)
    assert ended(tmp_path / "stopped") == ended(whole)


def has_momentum(one: Any) -> bool:
    return isinstance(one, optax.TraceState)


def momentum(opt_state: Any) -> Any:
    [found] = filter(has_momentum, jax.tree.leaves(opt_state, is_leaf=has_momentum))
    return found.trace


def with_momentum(opt_state: Any, trace: Any) -> Any:
    def replace(one: Any) -> Any:
        return one._replace(trace=trace) if has_momentum(one) else one

    return jax.tree.map(replace, opt_state, is_leaf=has_momentum)


@pytest.mark.slow
def test_sorting_moves_parameters_statistics_and_momentum_alike() -> None:
    setup = set_up(shrinking())
    state = setup.init_state()
    body = setup.program.model.backbone
    assert isinstance(body, TinyElastic)
    drawn = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape), leaf.dtype), state.params
    )
    state = state.replace(params=drawn, opt_state=with_momentum(state.opt_state, jax.tree.map(jnp.copy, drawn)))
    before = jax.tree.map(np.asarray, drawn)
    same = sorted_for(setup, state, PER_EPOCH)
    assert same is state
    after = sorted_for(setup, state, 2 * PER_EPOCH)
    jax.tree.map(np.testing.assert_array_equal, momentum(after.opt_state), after.params)
    kernel = after.params["backbone"]["blocks_1"]["conv"]["point_linear"]["conv"]["conv"]["kernel"]
    old = before["backbone"]["blocks_1"]["conv"]["point_linear"]["conv"]["conv"]["kernel"]
    order = np.argsort(-np.abs(old).sum((0, 1, 3)), kind="stable")
    np.testing.assert_array_equal(kernel, old[:, :, order])
    assert order.tolist() != sorted(order.tolist())


@pytest.mark.slow
def test_a_run_of_no_epochs_evaluates_a_part_of_an_elastic_one(whole: Path, tmp_path: Path) -> None:
    """It answers as the elastic network does under the setting with the same statistics."""
    part = {"kernels": (3,), "depths": (1,), "weights": str(whole)}
    given = config("learned", backbone=ELASTIC, model=part, epochs=0)
    given = dataclasses.replace(given, data=dataclasses.replace(given.data, validation=0.1))
    result = train(given, tmp_path / "part", quiet=True)
    assert result.step == 0
    assert train(given, tmp_path / "part", quiet=True) == result
    assert evaluate(given, tmp_path / "part").top1 == result.top1
    assert result.parameters["trainable"] < 4000
    with set_up(whole_config()) as setup, RunDirectory(whole, whole_config(), create=False) as directory:
        setting = Setting.of(TinyElastic.choices, 1, kernels=(3,), depths=(1,))
        found = accuracy(setup, restore(setup, directory), setting, 0, "test")
    assert found == result.top1
    anew = dataclasses.replace(given, run=dataclasses.replace(given.run, recalibrate=3))
    assert train(anew, tmp_path / "anew", quiet=True).loss != result.loss


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kernels": (0, 0)}, "elastic.kernels has 2 epochs, but tests.tiny:TinyElastic has 1 smaller choices: 3"),
        ({"depths": (3,)}, "elastic.depths has epoch 3, but run.epochs is 3"),
    ],
)
def test_settings_that_are_not_there_are_refused(changed: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        set_up(shrinking(ElasticConfig(**changed)))


def test_ordinary_networks_cannot_shrink() -> None:
    message = r"model\.backbone resnet20 has none; elastic are ofa_mbv3_w1_0, ofa_mbv3_w1_2, ofa_mbv3_tiny"
    with pytest.raises(UsageError, match=message):
        set_up(dataclasses.replace(config(backbone="resnet20"), elastic=SHRINKING))
    with pytest.raises(UsageError, match="elastic asks for smaller settings"):
        set_up(dataclasses.replace(config(backbone=ELASTIC, model={"depths": (1,)}), elastic=SHRINKING))


def test_images_too_small_for_the_network_are_refused() -> None:
    given = dataclasses.replace(config(backbone="alexnet", model={"maps": 10}), elastic=ElasticConfig(sizes=(32, 24)))
    given = dataclasses.replace(given, data=dataclasses.replace(given.data, image_size=32))
    with pytest.raises(UsageError, match="alexnet takes images of 31x31 and larger"):
        set_up(given)


def test_fields_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match=r"elastic\.kernels is \(2, 1\) but must be epochs from 0, in order"):
        validate(shrinking(ElasticConfig(kernels=(2, 1))))
    with pytest.raises(UsageError, match=r"run\.epochs is 0, which evaluates"):
        validate(config(epochs=0))
    with pytest.raises(UsageError, match=r"run\.epochs is 0 but must be at least 1; elastic asks for"):
        check_stack([dataclasses.replace(config(epochs=0, model={"weights": "x"}), elastic=ElasticConfig(sizes=(8,)))])


@pytest.mark.slow
def test_sizes_are_drawn_by_seed_and_step() -> None:
    given = shrinking(ElasticConfig(sizes=(6, 8)))
    drawn = [elastic.size_of(given, step) for step in range(200)]
    assert drawn == [elastic.size_of(given, step) for step in range(200)]
    assert 70 < drawn.count(6) < 130
    assert drawn != [elastic.size_of(shrinking(ElasticConfig(sizes=(6, 8)), seed=1), step) for step in range(200)]
    assert set_up(given).group == 1
    assert set_up(given).program_of(5).image_size == drawn[5]


def test_places_say_which_blocks_are_there() -> None:
    given = Places(jnp.array([1, 0]), jnp.array([0, 1]), jnp.array([1]))
    found = places([variables_of(TinyElastic.choices, given)])
    assert found.tolist() == [[[1, 0, 1], [0, 1, 0]]]
