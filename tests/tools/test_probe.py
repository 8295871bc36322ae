"""Probes of arrays: each is what its definition gives, image by image."""

from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from jaxclf.errors import RunError, UsageError
from jaxclf.tools import probe
from jaxclf.tools.probe import (
    Labelled,
    draw_shots,
    few_shot,
    fit_linear,
    linear_probe,
    nearest_means,
    nearest_neighbours,
    regression,
)


def blobs(count: int, seed: int, width: int = 4, classes: int = 3) -> Labelled:
    """Classes that overlap, in columns of different sizes; one column is constant."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    features = rng.standard_normal((count, width)) + np.eye(classes, width)[labels]
    return Labelled(np.insert(features * 10.0 ** np.arange(width), 1, 0.1, axis=1), labels)


def newton(train: Labelled, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the linear probe's objective by Newton's method, with the Hessian written out; return W and b."""
    used = np.ptp(train.features, axis=0) > 0
    x = np.where(used, train.features - train.features.mean(0), 0)
    x = np.column_stack([x / np.where(used, train.features.std(0), 1), np.ones(len(x))])
    k, p = train.num_classes, x.shape[1]
    ridge = np.kron(np.eye(k), np.diag([penalty] * (p - 1) + [0.0]))
    flat = np.zeros(k * p)
    for _ in range(30):
        exponents = np.exp(x @ flat.reshape(k, p).T)
        shares = exponents / exponents.sum(1, keepdims=True)
        gradient = ((shares - np.eye(k)[train.labels]).T @ x / len(x)).ravel() + ridge @ flat
        curvature = shares[:, :, None] * (np.eye(k) - shares[:, None, :])  # [n k k]
        hessian = np.einsum("nab,np,nq->apbq", curvature, x, x).reshape(k * p, k * p) / len(x) + ridge
        flat -= np.linalg.pinv(hessian) @ gradient
    return flat.reshape(k, p)[:, :-1], flat.reshape(k, p)[:, -1]


@pytest.mark.parametrize("penalty", [1.0, 1e-2])
def test_the_linear_probe_is_the_minimum_that_newtons_method_finds(
    penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = blobs(80, 0)
    fitted, (weight, bias) = fit_linear(train, penalty, tolerance=3e-8), newton(train, penalty)
    np.testing.assert_allclose(fitted.weight, weight, atol=1e-6)
    np.testing.assert_allclose(fitted.bias - fitted.bias.mean(), bias - bias.mean(), atol=1e-6)
    x = (train.features - fitted.mean) / fitted.std
    minimum = np.column_stack([fitted.weight, fitted.bias]).ravel()
    loss, gradient = regression(minimum, x, train.labels, penalty)
    assert np.abs(gradient).max() <= 3e-8
    monkeypatch.setattr(probe, "SLICE", 50)
    sliced = regression(minimum, x, train.labels, penalty)
    assert sliced[0] == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(sliced[1], gradient, atol=1e-14)


def test_the_penalty_is_the_best_on_every_fifth_image_of_a_class_and_all_images_are_fitted() -> None:
    train, grid = blobs(100, 1), (10.0, 1e-1, 1e-3)
    held = np.zeros(100, bool)
    for label in range(3):
        held[np.flatnonzero(train.labels == label)[4::5]] = True
    kept, judged = (Labelled(train.features[own], train.labels[own]) for own in (~held, held))
    right = {p: (fit_linear(kept, p).predict(judged.features) == judged.labels).sum() for p in grid}
    assert len(set(right.values())) > 1
    found, expected = linear_probe(train, grid), fit_linear(train, max(right, key=lambda p: (right[p], p)))
    assert found.penalty == expected.penalty
    np.testing.assert_array_equal(found.weight, expected.weight)


def test_features_that_are_constant_say_nothing_and_those_of_one_scale_are_as_those_of_another() -> None:
    train, test = blobs(80, 0), blobs(40, 2)
    plain = fit_linear(train, 0.1, tolerance=1e-7)
    scaled = fit_linear(train._replace(features=train.features * 8 + 3), 0.1, tolerance=1e-7)
    np.testing.assert_allclose(plain.weight[:, 1], 0, atol=1e-15)
    np.testing.assert_array_equal(plain.predict(test.features), scaled.predict(test.features * 8 + 3))


def test_a_probe_that_finds_no_minimum_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STEPS", 3)
    with pytest.raises(
        RunError, match=r"^the linear probe at penalty 0\.001 has a gradient of .* after 3 steps, above"
    ):
        fit_linear(blobs(80, 0), 1e-3)


def by_loops(train: Labelled, features: np.ndarray, k: int, temperature: float) -> list[int]:
    answers = []
    for h in features:
        cosines = [float(h @ g / np.linalg.norm(h) / np.linalg.norm(g)) for g in train.features]
        nearest = sorted(range(len(cosines)), key=lambda i: (-cosines[i], i))[:k]
        votes = [0.0] * train.num_classes
        for i in nearest:
            votes[train.labels[i]] += np.exp(cosines[i] / temperature)
        answers.append(votes.index(max(votes)))
    return answers


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (7, 10.0), (60, 0.5)])
def test_neighbours_are_those_of_a_double_loop(k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = blobs(60, 3), blobs(50, 4)
    given: Any = {"neighbours": k, "temperature": temperature}
    expected = by_loops(train, test.features, k, temperature)
    assert nearest_neighbours(train, test.features, **given).tolist() == expected
    monkeypatch.setattr(probe, "SLICE", 130)
    assert nearest_neighbours(train, test.features, **given).tolist() == expected


def test_among_equal_neighbours_and_equal_votes_the_first_counts() -> None:
    """Of three that are as near, the first two vote, for 2 and 1; zero has no direction and is equally near to all."""
    train = Labelled(np.array([[0.0, 3.0], [2.0, 0.0], [4.0, 0.0], [1.0, 0.0]]), np.array([0, 2, 1, 0]))
    asked = np.array([[5.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert nearest_neighbours(train, asked, neighbours=2).tolist() == [1, 0, 0]
    assert nearest_neighbours(train, asked, neighbours=1).tolist() == [2, 0, 0]
    for wrong in (0, 5):
        with pytest.raises(UsageError, match=f"neighbours is {wrong} but must be from 1 to 4, the number of training"):
            nearest_neighbours(train, asked, neighbours=wrong)


def test_draws_are_balanced_and_a_function_of_seed_shots_and_number() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(5).repeat(40))
    draws = [draw_shots(labels, 6, seed=seed, draw=draw) for seed in range(2) for draw in range(10)]
    for chosen in draws:
        assert len(set(chosen.tolist())) == 30
        assert np.bincount(labels[chosen]).tolist() == [6] * 5
    assert len({tuple(sorted(chosen.tolist())) for chosen in draws}) == 20
    np.testing.assert_array_equal(draw_shots(labels, 6, seed=1, draw=3), draws[13])
    assert not set(draw_shots(labels, 1, seed=0, draw=0).tolist()) <= set(draws[0].tolist())


def test_the_nearest_mean_is_that_of_directions() -> None:
    """The means are (1, 0) and (0.3, 0.9): that of vectors as they are would be (5, 0) and (3, 5)."""
    train = Labelled(np.array([[5.0, 0.0], [0.0, 1.0], [6.0, 8.0]]), np.array([0, 1, 1]))
    asked = np.array([[0.9, 0.1], [0.1, 0.01], [30.0, 30.0], [0.0, 0.0]])
    assert nearest_means(train, asked).tolist() == [0, 0, 1, 1]  # (0, 0) is at 1 from the first, at 0.95 from the other


def test_few_shots_are_the_shares_of_right_answers_draw_by_draw() -> None:
    train, test = blobs(60, 5), blobs(40, 6)
    found = few_shot(train, test, 2, draws=4, seed=7)
    for draw, share in enumerate(found):
        chosen = draw_shots(train.labels, 2, seed=7, draw=draw)
        told = nearest_means(Labelled(train.features[chosen], train.labels[chosen]), test.features)
        assert share == (told == test.labels).mean()
    assert len(set(found)) > 1
    assert few_shot(train, test, 2, draws=4, seed=7) == found


def test_classes_with_too_few_images_are_named() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    with pytest.raises(UsageError, match=r"^a draw of 3 needs 3 training images of each class, but 1 has 1, 2 has 2$"):
        draw_shots(labels, 3, seed=0, draw=0)
    with pytest.raises(UsageError, match=r"the linear probe needs 5 training images of each class, but 0 has 3, 1 has"):
        linear_probe(Labelled(np.zeros((6, 2)), labels))
    with pytest.raises(UsageError, match=r"^it needs 1 training images of each class, but dog has 0$"):
        probe.require_each(labels, 1, "it", ("ant", "bee", "cat", "dog"))
    with pytest.raises(UsageError, match="a draw of 0 must be of at least 1 image a class"):
        draw_shots(labels, 0, seed=0, draw=0)


def test_small_products_take_one_thread_of_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several wait for one another; the caller's number is back afterwards."""
    seen = []

    def noted(*given: Any) -> Any:
        seen.append(threads())
        return regression(*given)

    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    monkeypatch.setattr(probe, "regression", noted)
    with threadpool_limits(2, user_api="blas"):
        fit_linear(blobs(60, 0), 0.1)
        assert threads() == {2}
    assert len(seen) > 3
    assert all(found == {1} for found in seen)
