"""Sums of losses and hits: ties, masks, few classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxclf import losses

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


def test_cross_entropy_of_large_logits() -> None:
    got = losses.cross_entropy(jnp.asarray([[1e4, 0.0], [0.0, 1e4]]), jnp.asarray([0, 0], jnp.int32))
    assert got.tolist() == [0.0, 1e4]
