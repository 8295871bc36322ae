"""Losses, regularisers, and sums of losses and hits: ties, masks, few classes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxclf.config import Config, LossConfig
from jaxclf.errors import UsageError
from jaxclf.models.heads import create_head
from jaxclf.models.matrices import matrix
from jaxclf.training import losses
from jaxclf.training.setup import set_up
from tests.tiers import quick

metric_sums = jax.jit(losses.metric_sums)


def sums(logits: np.ndarray, labels: list[int], mask: list[bool] | None = None) -> dict[str, float]:
    mask = [True] * len(labels) if mask is None else mask
    got = metric_sums(jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32), jnp.asarray(mask, bool))
    return {name: value.item() for name, value in got.items()}


def test_among_equal_logits_only_the_first_class_is_a_hit() -> None:
    got = sums(np.zeros((10, 10)), list(range(10)))
    assert (got["top1"], got["top5"], got["count"]) == (1, 5, 10)
    assert got["loss"] == pytest.approx(10 * np.log(10), rel=1e-6)


def test_a_tie_behind_a_higher_logit() -> None:
    logits = np.tile([1.0, 3.0, 1.0, 1.0, 0.0, 1.0, 1.0], (7, 1))  # ranks 1 0 2 3 6 4 5
    got = sums(logits, list(range(7)))
    assert (got["top1"], got["top5"]) == (1, 5)
    assert [sums(logits[:1], [label])["top5"] for label in range(7)] == [1, 1, 1, 1, 0, 1, 0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(hnp.arrays(np.float32, (6, 8), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])), st.integers(0, 7))
def test_a_hit_is_what_argmax_and_a_stable_sort_say(logits: np.ndarray, label: int) -> None:
    order = np.argsort(-logits, axis=1, kind="stable")
    got = sums(logits, [label] * 6)
    assert got["top1"] == (logits.argmax(1) == label).sum()
    assert got["top5"] == (order[:, :5] == label).any(1).sum()


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_with_at_most_five_classes_everything_is_in_the_top_five(classes: int) -> None:
    logits = np.random.default_rng(0).standard_normal((20, classes))
    assert sums(logits, [i % classes for i in range(20)])["top5"] == 20


def test_masked_examples_count_nothing_even_if_they_are_no_numbers() -> None:
    logits = np.array([[0.0, 2.0], [5.0, 0.0], [np.nan, np.inf]])
    got = sums(logits, [1, 1, 0], [True, True, False])
    assert got["loss"] == pytest.approx(np.log1p(np.exp(-2)) + np.log1p(np.exp(5)), rel=1e-6)
    assert (got["top1"], got["top5"], got["count"]) == (1, 2, 2)
    assert sums(logits[:2], [1, 1], [False, False]) == {"loss": 0.0, "top1": 0, "top5": 0, "count": 0}


def test_any_batching_gives_the_same_sums() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((11, 7)), list(rng.integers(0, 7, 11))
    whole, parts = sums(logits, labels), [sums(logits[i : i + 4], labels[i : i + 4]) for i in range(0, 11, 4)]
    for name in ("top1", "top5", "count"):
        assert whole[name] == sum(part[name] for part in parts)
    assert whole["loss"] == pytest.approx(sum(part["loss"] for part in parts), rel=1e-6)


def test_means_are_per_example_and_percent() -> None:
    assert losses.means({"loss": 3.0, "top1": 3, "top5": 7, "count": 8}) == {"loss": 0.375, "top1": 37.5, "top5": 87.5}


def test_zeros_are_the_start_of_a_sum() -> None:
    zeros, some = losses.zeros(), losses.metric_sums(jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32), jnp.ones(1, bool))
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in zeros.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in some.items()
    }
    assert not any(leaf.item() for leaf in zeros.values())
    more = losses.zeros(terms=("l1", "so"))
    assert set(more) == {"loss", "l1", "so", "top1", "top5", "count"}
    assert (more["so"].dtype, more["so"].shape, more["so"].item()) == (jnp.float32, (), 0.0)


def test_cross_entropy_of_large_logits() -> None:
    got = losses.cross_entropy(jnp.asarray([[1e4, 0.0], [0.0, 1e4]]), jnp.asarray([0, 0], jnp.int32))
    assert got.tolist() == [0.0, 1e4]


LOGITS = np.log([[2.0, 1.0, 1.0], [1.0, 1.0, 6.0]])
"""Softmax 1/2, 1/4, 1/4 and 1/8, 1/8, 3/4; sigmoid 2/3, 1/2, 1/2 and 1/2, 1/2, 6/7."""


def each(config: LossConfig, targets: list[list[float]], logits: np.ndarray = LOGITS) -> list[float]:
    return losses.example_losses(config, jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32)).tolist()


def test_losses_of_small_logits() -> None:
    hard = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert each(LossConfig(), hard) == pytest.approx([np.log(2), np.log(8)], rel=1e-6)
    # 0.7 of each label stays, 0.1 goes to every class: [0.8, 0.1, 0.1]
    smooth = [0.8 * np.log(2) + 0.2 * np.log(4), 0.9 * np.log(8) + 0.1 * np.log(4 / 3)]
    assert each(LossConfig(label_smoothing=0.3), hard) == pytest.approx(smooth, rel=1e-6)
    binary = [(np.log(3 / 2) + 2 * np.log(2)) / 3, (2 * np.log(2) + np.log(7)) / 3]
    assert each(LossConfig("binary"), hard) == pytest.approx(binary, rel=1e-6)
    squared = [(1 - np.log(2)) ** 2 / 3, (1 + np.log(6) ** 2) / 3]
    assert each(LossConfig("mse"), hard) == pytest.approx(squared, rel=1e-6)


def test_binary_smoothing_spreads_over_the_classes() -> None:
    hard = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    first = -(0.8 * np.log(2 / 3) + 0.2 * np.log(1 / 3) + 2 * np.log(1 / 2)) / 3
    assert each(LossConfig("binary", label_smoothing=0.3), hard)[0] == pytest.approx(first, rel=1e-6)


def test_a_mixed_label_costs_the_mixture_of_its_losses() -> None:
    mixed, first, second = [[0.25, 0.75, 0.0]] * 2, [[1.0, 0.0, 0.0]] * 2, [[0.0, 1.0, 0.0]] * 2
    for config in (LossConfig(), LossConfig(label_smoothing=0.1), LossConfig("binary")):
        parts = zip(each(config, first), each(config, second), strict=True)
        assert each(config, mixed) == pytest.approx([0.25 * a + 0.75 * b for a, b in parts], rel=1e-6)


def test_losses_of_large_logits_are_finite_and_keep_what_is_small() -> None:
    large, hard = np.array([[1e4, 0.0], [20.0, -20.0]]), [[0.0, 1.0], [1.0, 0.0]]
    assert each(LossConfig(), hard, large) == pytest.approx([1e4, np.exp(-40)], abs=1e-9)
    # exp(-20) = 2.1e-9 of each class, which 20 - 20 * 1 in float32 would have lost
    assert each(LossConfig("binary"), hard, large) == pytest.approx([(1e4 + np.log(2)) / 2, np.exp(-20)], rel=1e-6)


def test_mse_refuses_label_smoothing() -> None:
    with pytest.raises(UsageError, match=r"loss.label_smoothing is 0.1 but must be 0 for mse"):
        each(LossConfig("mse", label_smoothing=0.1), [[1.0, 0.0, 0.0]] * 2)


MARGINS: list[Any] = ["cosface", "arcface"]


def test_losses_of_cosines_by_hand() -> None:
    """Cosines of 60 and 90 degrees, of which the first is the label's; then of 180 degrees, past pi with any margin."""
    cosines, first = np.array([[0.5, 0.0], [-1.0, 0.0]]), [[1.0, 0.0]] * 2
    assert each(LossConfig("cosine"), first, cosines) == pytest.approx([0.25, 4.0])
    got = each(LossConfig("cosface", margin=0.25), first, cosines)
    assert got == pytest.approx([np.log1p(np.exp(-0.25)), np.log1p(np.exp(1.25))], rel=1e-6)
    turn = np.pi / 6  # 60 degrees and 30 are 90; at 180 degrees cos - m sin(m)
    got = each(LossConfig("arcface", margin=turn), first, cosines)
    assert got == pytest.approx([np.log(2), np.log1p(np.exp(1 + turn / 2))], rel=1e-6)
    half = [[0.5, 0.5]] * 2  # each class has half of the margin, which moves no difference
    assert each(LossConfig("cosface", margin=0.5), half, cosines) == pytest.approx(each(LossConfig(), half, cosines))


@pytest.mark.parametrize("name", MARGINS)
def test_without_a_margin_it_is_the_cross_entropy_to_the_bit(name: Any) -> None:
    rng = np.random.default_rng(0)
    logits, targets = 64 * np.cos(rng.uniform(0, np.pi, (9, 5))), rng.dirichlet(np.ones(5), 9)
    logits[0, :2] = 64, -64
    given = jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32)
    got = losses.example_losses(LossConfig(name, margin=0.0, label_smoothing=0.1), *given, 64.0)
    assert np.array_equal(got, losses.example_losses(LossConfig(label_smoothing=0.1), *given))
    hard = given[0], jnp.eye(5)[jnp.arange(9) % 5]
    assert (losses.example_losses(LossConfig(name), *hard, 64.0) > losses.example_losses(LossConfig(), *hard)).any()


@pytest.mark.parametrize("name", quick(["cosine", *MARGINS], "arcface"))
def test_gradients_at_the_ends_of_the_cosine_and_of_no_features_are_numbers(name: Any) -> None:
    head: Any = create_head("simplex", 3, 4, normalise="both", bias=False, neck=5)
    neck, rows = np.eye(4, 5), matrix("simplex", 3, 5)
    features = jnp.asarray(np.concatenate([rows[:, :4], -rows[:, :4], np.zeros((1, 4))]), jnp.float32)
    targets = jnp.asarray(np.eye(3)[[0, 1, 2, 0, 1, 2, 0]], jnp.float32)

    def loss(features: jax.Array, neck: jax.Array, cosines: jax.Array) -> jax.Array:
        fixed = {"simplex": jnp.asarray(rows, jnp.float32)}
        logits: Any = head.apply({"params": {"neck": neck}, "fixed": fixed}, features)
        # Rounding takes cosines past 1.
        both, twice = jnp.concatenate([logits, cosines]), jnp.concatenate([targets, targets[:2]])
        return losses.example_losses(LossConfig(name), both, twice).sum()

    ends = jnp.asarray([[1.0, -1.0, 1.0000001], [-1.0, 1.0, -1.0000001]])
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(features, jnp.asarray(neck, jnp.float32), ends)
    assert all(np.isfinite(leaf).all() for leaf in gradients)


@pytest.mark.parametrize(
    ("name", "head", "options", "faults"),
    [
        ("cosface", "learned", {}, "does not normalise features and rows, has a bias"),
        ("cosface", "identity", {}, "does not normalise features and rows"),
        ("arcface", "normface", {}, "learns its scale"),
        ("cosine", "arcface", {}, "learns its matrix"),
        ("cosine", "etf_dr", {}, "does not normalise features and rows"),
        ("dot_regression", "learned", {}, "does not normalise features, has a bias, learns its matrix"),
        ("dot_regression", "hoffer_orthogonal", {"bias": False}, "learns its scale"),
    ],
)
def test_a_loss_of_cosines_refuses_a_head_without_them(name: Any, head: str, options: Any, faults: str) -> None:
    with pytest.raises(UsageError) as caught:
        losses.cosine_scale(LossConfig(name), create_head(head, 4, 8, **options))
    advice = "etf_dr" if name in ("cosine", "dot_regression") else name
    assert str(caught.value).startswith(f"loss.name is '{name}' but the head {faults}; choose model.head {advice}, or ")
    mended = losses.cosine_scale(LossConfig(name), create_head(advice, 4, 8, normalise="both", bias=False))
    assert mended == (1.0 if advice == "etf_dr" else 64.0)
    assert losses.cosine_scale(LossConfig(), create_head(head, 4, 8)) == 1.0


def test_the_setup_refuses_it_before_anything_is_compiled() -> None:
    with pytest.raises(UsageError, match=r"loss.name is 'arcface' but the head does not normalise"):
        set_up(Config(loss=LossConfig("arcface")))


PARAMS = {
    "backbone": {"conv1": {"kernel": 2 * np.eye(3)[None, None]}, "conv2": {"kernel": np.eye(2)[None, None]}},
    "head": {"bias": np.array([-3.0, 4.0])},
}


def terms(**options: Any) -> dict[str, float]:
    config, params = LossConfig(**options), jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
    decayed = {"backbone": {"conv1": {"kernel": False}, "conv2": {"kernel": True}}, "head": {"bias": True}}
    got = losses.regularisers(config, params, decayed=decayed, last_conv="conv1")
    assert tuple(got) == losses.regulariser_names(config)
    return {name: value.item() for name, value in got.items()}


@pytest.mark.slow
def test_regularisers_are_weighted_and_named_apart() -> None:
    assert terms() == {}
    assert terms(l1=0.5) == {"l1": 0.5 * (2 + 7)}  # conv1 does not decay
    assert terms(l2=0.5) == {"l2": 0.25 * (2 + 25)}
    assert terms(so=1.0) == {"so": 27.0}
    assert terms(so=1.0, dso=0.5, l1=1.0) == {"l1": 9.0, "so": 27.0, "dso": 27.0}
    assert terms(dso=0.5, orthogonalise="all") == {"dso": 27.0}  # conv2 is orthogonal


def test_where_nothing_decays_l1_and_l2_are_zero() -> None:
    params, nothing = (
        {"backbone": {"conv1": {"kernel": jnp.ones((1, 1, 2, 2))}}},
        {"backbone": {"conv1": {"kernel": False}}},
    )
    got = losses.regularisers(LossConfig(l1=1.0, l2=1.0), params, decayed=nothing, last_conv="conv1")
    assert {name: (value.shape, value.item()) for name, value in got.items()} == {"l1": ((), 0.0), "l2": ((), 0.0)}


def test_the_gradient_of_l2_is_that_of_weight_decay() -> None:
    params = {"backbone": {"conv1": {"kernel": jnp.arange(4.0).reshape(1, 1, 2, 2)}}}
    decayed = {"backbone": {"conv1": {"kernel": True}}}

    def l2(params: dict[str, dict[str, dict[str, jax.Array]]]) -> jax.Array:
        return losses.regularisers(LossConfig(l2=0.5), params, decayed=decayed, last_conv="conv1")["l2"]

    assert jax.grad(l2)(params)["backbone"]["conv1"]["kernel"].ravel().tolist() == [0.0, 0.5, 1.0, 1.5]


def test_the_gradient_of_l1_is_zero_at_zero() -> None:
    def l1(bias: jax.Array) -> jax.Array:
        params = {"head": {"bias": bias}}
        return losses.regularisers(LossConfig(l1=0.5), params, decayed={"head": {"bias": True}}, last_conv="")["l1"]

    assert jax.grad(l1)(jnp.asarray([-2.0, 0.0, 3.0])).tolist() == [-0.5, 0.0, 0.5]


def test_nan_is_no_hit() -> None:
    assert (sums(np.full((4, 10), np.nan), [0, 3, 7, 9])["top1"], sums(np.full((4, 10), np.nan), [0] * 4)["top5"]) == (
        0,
        0,
    )
    one = np.zeros((2, 10))
    one[:, 4] = np.nan  # argmax is 4: the row whose label it is has no answer, the other one has a wrong one
    one[:, 0] = 9
    assert sums(one, [4, 0]) | {"loss": 0.0} == {"loss": 0.0, "top1": 0, "top5": 1, "count": 2}


def test_metric_sums_take_the_losses_that_they_are_given() -> None:
    logits, labels = jnp.zeros((3, 4)), jnp.zeros(3, jnp.int32)
    mask, each = jnp.asarray([True, True, False]), jnp.asarray([1.0, 2.0, np.nan])
    got = losses.metric_sums(logits, labels, mask, each)
    plain = losses.metric_sums(logits, labels, mask)
    assert got["loss"].item() == 3.0
    assert plain["loss"].item() == pytest.approx(2 * np.log(4), rel=1e-6)
    assert {name: value for name, value in got.items() if name != "loss"} == {
        name: value for name, value in plain.items() if name != "loss"
    }
