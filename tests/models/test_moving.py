"""Heads that change in training: what moves them, against numpy and against every permutation."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxclf.config import Config, ModelConfig, RunConfig, validate
from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.models.heads import create_head
from jaxclf.models.moving import class_sums, moved_means, nearest_rows
from jaxclf.models.torch_weights import load_torch, to_torch
from tests.models.drawn import drawn

H = np.random.default_rng(0).standard_normal((9, 4))
LABELS = np.array([0, 2, 2, 1, 0, 4, 4, 4, 0])
"""Of five classes, 3 has no image."""


def unit_means() -> np.ndarray:
    """The normalised class means of `H`; zero for class 3."""
    means = np.zeros((5, 4))
    for label in (0, 1, 2, 4):
        mean = H[label == LABELS].mean(0)
        means[label] = mean / np.sqrt((mean**2).sum())
    return means


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_class_means_move_towards_the_normalised_means_of_the_classes_that_are_there(momentum: float) -> None:
    before = np.random.default_rng(1).standard_normal((5, 4))
    with jax.enable_x64(True):
        sums = class_sums(jnp.asarray(H), jax.nn.one_hot(LABELS, 5))
        after = np.asarray(moved_means(jnp.asarray(before), sums, momentum))
    want = momentum * before + (1 - momentum) * unit_means()
    want[3] = before[3]
    assert after.dtype == np.float64
    np.testing.assert_allclose(after, want, rtol=1e-14, atol=1e-15)


def test_a_mixed_image_counts_for_each_of_its_classes_by_its_share() -> None:
    with jax.enable_x64(True):
        sums = class_sums(jnp.asarray(H[:2]), jnp.asarray([[0.25, 0.75], [1.0, 0.0]]))
    np.testing.assert_allclose(sums, [0.25 * H[0] + H[1], 0.75 * H[0]], rtol=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_rows_have_the_largest_sum_of_cosines_of_all_permutations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, sums = rng.standard_normal((5, 4)) * 3, rng.standard_normal((5, 4)) * [[1], [100], [1], [1e-3], [7]]
    rows = nearest_rows(weight, sums)

    def total(order: Any) -> float:
        pairs = zip(sums, weight[list(order)], strict=True)
        return sum(float(a @ b / np.sqrt((a @ a) * (b @ b))) for a, b in pairs)

    best = max(itertools.permutations(range(5)), key=total)
    assert rows.dtype == np.int32
    assert tuple(rows) == best != (0, 1, 2, 3, 4)


def test_a_class_without_an_image_gets_the_row_that_is_left() -> None:
    sums = np.eye(4)[[1, 0, 3, 2]]
    sums[2] = 0
    assert nearest_rows(np.eye(4), sums).tolist() == [1, 0, 3, 2]


def test_the_class_mean_head_answers_by_cosines_and_learns_nothing() -> None:
    head: Any = create_head("class_mean", 5, 4)
    start = head.init(jax.random.key(0), jnp.zeros((1, 4)))
    assert set(start) == {"head_state"}  # so no gradient and no optimiser sees it
    assert not np.asarray(start["head_state"]["means"]).any()
    h = jnp.asarray(H, jnp.float32)
    assert not np.asarray(head.apply(start, h)).any()  # nothing is known of any class yet
    answer = head.apply({"head_state": {"means": jnp.asarray(0.3 * unit_means(), jnp.float32)}}, h)
    want = 7 * (H / np.linalg.norm(H, axis=1, keepdims=True)) @ unit_means().T
    np.testing.assert_allclose(answer, want, atol=1e-5)
    assert not np.asarray(answer[:, 3]).any()


def test_an_assigned_head_answers_by_the_row_of_each_class() -> None:
    plain: Any = create_head("hadamard", 4, 4, bias=False)
    head: Any = create_head("hadamard", 4, 4, bias=False, assign="hungarian")
    h, start = jnp.asarray(H, jnp.float32), head.init(jax.random.key(0), jnp.zeros((1, 4)))
    assert start["head_state"]["rows"].tolist() == [0, 1, 2, 3]
    logits = np.asarray(plain.apply({name: start[name] for name in ("params", "fixed")}, h))
    assert np.array_equal(head.apply(start, h), logits)
    rows = jnp.asarray([2, 0, 3, 1], jnp.int32)
    assert np.array_equal(head.apply({**start, "head_state": {"rows": rows}}, h), logits[:, rows])


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("conv3x3", {"assign": "hungarian"}, "head conv3x3 takes no assign; heads that do: orthogonal, hadamard"),
        (
            "identity",
            {"assign": "hungarian"},
            r"identity is applied by gather, but assign \(hungarian\) takes apply dense",
        ),
        ("learned", {"assign": "hungarian"}, "head learned takes no assign; heads that do: orthogonal"),
        ("class_mean", {"assign": "hungarian", "neck": 3}, "head class_mean takes no neck, assign; heads that do: "),
        ("orthogonal", {"momentum": 0.5}, "head orthogonal takes no momentum; heads that do: class_mean"),
        ("class_mean", {"momentum": 1.0}, "head class_mean takes a momentum from 0 to below 1; got 1.0"),
        ("orthogonal", {"assign": "hungarian", "shuffle": True}, "shuffled or assigned to the class means .* not both"),
        ("orthogonal", {"assign": "best"}, "unknown assign 'best'.* Valid: hungarian, index"),
    ],
)
def test_what_a_head_cannot_do_is_refused(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        create_head(name, 5, 12, **options)


def test_one_epoch_is_too_short_to_assign_rows_after() -> None:
    given = Config(model=ModelConfig(head="orthogonal", head_assign="hungarian"), run=RunConfig(epochs=1))
    with pytest.raises(UsageError, match=r"rows after the first epoch, but run\.epochs is 1; it must be at least 2"):
        validate(given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "options", "key"),
    [("class_mean", {}, "fc.means"), ("hadamard", {"head_assign": "hungarian"}, "fc.rows")],
)
def test_a_state_dict_holds_what_moved_and_is_refused_without_it(head: str, options: Any, key: str) -> None:
    model = create_model("tests.tiny:Tiny", num_classes=8, head=head, **options)
    variables: Any = drawn(model, 8, 8, 3)
    if head == "hadamard":
        variables["head_state"]["head"]["rows"] = np.array([3, 1, 0, 2, 7, 6, 5, 4], np.int32)
    state_dict = to_torch(model, variables)
    assert key in state_dict
    back: Any
    flat: Any
    back, flat = (traverse_util.flatten_dict(tree, sep=".") for tree in (load_torch(model, state_dict), variables))
    assert all(np.array_equal(back[name], flat[name]) and back[name].dtype == flat[name].dtype for name in flat)
    assert back.keys() == flat.keys()
    with pytest.raises(UsageError, match=f"missing {key}"):
        load_torch(model, {name: value for name, value in state_dict.items() if name != key})
    if head == "hadamard":
        with pytest.raises(UsageError, match=r"fc\.rows does not give each class a row of its own"):
            load_torch(model, {**state_dict, key: np.zeros(8, np.int64)})
