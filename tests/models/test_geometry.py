"""The fixed matrices of the literature: Gram matrices, ranks, cosines, bounds and distinct rows."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxclf.models.matrices import MATRICES, codes, digest, geometry, matrix, obstacle
from jaxclf.models.matrices.finite_fields import powers, prime_power
from jaxclf.models.matrices.geometry import facts
from tests.tiers import quick

few = settings(max_examples=25, deadline=None, derandomize=True)


def unit_gram(array: np.ndarray) -> np.ndarray:
    unit = array / np.linalg.norm(array, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("name", ["simplex", "simplex_recursive", "etf", "etf_rotated"])
@few
@given(k=st.integers(2, 60), more=st.integers(0, 9), seed=st.integers(0, 99))
def test_simplices_have_the_gram_matrix_of_a_simplex(name: str, k: int, more: int, seed: int) -> None:
    w = matrix(name, k, (k - 1 if name.startswith("simplex") else k) + more, seed)
    assert np.abs(w @ w.T - (k * np.eye(k) - 1) / (k - 1)).max() < 1e-12
    assert np.abs(w.sum(axis=0)).max() < 1e-12
    assert np.linalg.matrix_rank(w) == k - 1


@few
@given(k=st.integers(1, 30), more=st.integers(0, 70))
def test_block_identity_is_non_negative_and_orthogonal(k: int, more: int) -> None:
    w = matrix("block_identity", k, k + more)
    assert np.abs(w @ w.T - np.eye(k)).max() < 1e-12
    assert w.min() >= 0
    assert np.count_nonzero(w, axis=0).max() == 1
    assert geometry.orthant(w) == pytest.approx(1)


ORDERS = [order for order in range(4, 257, 4) if codes.buildable(order)]


def test_the_orders_of_hadamard_matrices_that_are_not_built() -> None:
    assert sorted(set(range(4, 257, 4)) - set(ORDERS)) == [92, 116, 156, 172, 184, 188, 232, 236]
    assert [codes.largest_order(columns) for columns in (1, 2, 3, 100, 342, 1000)] == [1, 2, 2, 100, 340, 1000]


@pytest.mark.parametrize("order", quick([1, 2, *ORDERS, 1000], 12, 20, 36, 100))  # Paley I, Kronecker, II, II of 7^2
def test_exact_hadamard_matrices_are_orthogonal_signs(order: int) -> None:
    h = matrix("hadamard_exact", order, order)
    assert set(np.unique(h)) <= {-1.0, 1.0}
    assert np.array_equal(h @ h.T, order * np.eye(order))
    assert (h[0] == 1).all()
    assert (h[:, 0] == 1).all()


def test_where_no_order_exists_the_columns_left_are_zero_and_none_is_cut() -> None:
    h = matrix("hadamard_exact", 100, 342)
    assert np.array_equal(h @ h.T, 340 * np.eye(100))
    assert not h[:, 340:].any()


@pytest.mark.parametrize(("k", "d"), quick([(100, 64), (1000, 512), (40, 20)], (100, 64), (40, 20)))
@pytest.mark.parametrize("name", ["biorthogonal_hadamard", "biorthogonal_hadamard_varied"])
def test_biorthogonal_rows_are_distinct_and_at_most_at_right_angles(name: str, k: int, d: int) -> None:
    k = k if name == "biorthogonal_hadamard" else min(k, 2 * d - 2)
    w = matrix(name, k, d)
    found = facts(w)
    assert (found.distinct, found.rank) == (k, d - (name == "biorthogonal_hadamard_varied"))
    assert found.largest == pytest.approx(0, abs=1e-12)
    assert found.smallest == pytest.approx(-1)
    assert (np.abs(w.sum(axis=1)) < d).all() or name == "biorthogonal_hadamard"


@pytest.mark.parametrize(("d", "rows"), [(4, 12), (16, 144), *quick([(64, 2112)])])
def test_kerdocks_cosines_are_zero_or_one_over_root_d(d: int, rows: int) -> None:
    w = matrix("kerdock", rows, d)
    assert geometry.distinct_rows(w) == rows
    gram = np.abs(w @ w.T)[~np.eye(rows, dtype=bool)]
    assert np.minimum(gram, np.abs(gram - d**-0.5)).max() < 1e-12
    assert np.linalg.matrix_rank(w) == d


@pytest.mark.parametrize(("d", "k"), [(8, 64), (32, 1024), *quick([(128, 2000), (512, 2000)])])
def test_golds_cosines_are_below_their_bound(d: int, k: int) -> None:
    found = facts(matrix("gold", k, d))
    assert (found.distinct, found.rank) == (k, d)
    assert max(found.largest, -found.smallest) <= np.sqrt(2 / d) + 1e-12


@pytest.mark.parametrize(
    ("name", "k", "d", "expected"),
    [  # rank, distinct rows, largest and smallest cosine, orthant cosine
        ("identity", 64, 64, (64, 64, 0.0, 0.0, 1.0)),
        ("orthoplex", 100, 64, (50, 100, 0.0, -1.0, 0.5)),
        ("signed_identity", 100, 64, (64, 100, 0.0, -1.0, 0.64)),
        ("hadamard", 100, 64, (64, 64, 1.0, 0.0, 0.71)),
        ("hypercube", 100, 64, (8, 100, 0.969, 0.78, 0.98)),
        ("hypercube_compact", 100, 64, (7, 100, 5 / 7, -1.0, 0.73)),
        ("orthogonal", 100, 64, (64, 100, 0.33, None, 0.71)),
        ("hypercube_random", 100, 64, (64, 100, 0.375, None, 0.71)),
        ("gaussian", 1000, 64, (64, 1000, 0.55, None, 0.71)),
        ("etf", 64, 64, (63, 64, -1 / 63, -1 / 63, 0.99)),
    ],
)
def test_facts_of_matrices(name: str, k: int, d: int, expected: tuple[int, int, float, float | None, float]) -> None:
    found = facts(matrix(name, k, d))
    rank, distinct, largest, smallest, orthant = expected
    assert (found.rank, found.distinct) == (rank, distinct)
    assert found.largest == pytest.approx(largest, abs=0.06 if smallest is None else 0.005)
    assert smallest is None or found.smallest == pytest.approx(smallest, abs=0.005)
    assert found.orthant == pytest.approx(orthant, abs=0.015)


RANKS: dict[str, Callable[[int, int], int]] = {
    **dict.fromkeys(("identity", "block_identity", "hadamard_exact"), lambda k, _: k),
    **dict.fromkeys(("orthogonal", "signed_identity"), min),
    **dict.fromkeys(("simplex", "simplex_recursive", "etf", "etf_rotated"), lambda k, _: k - 1),
    "biorthogonal_hadamard": lambda k, d: min(k, codes.largest_order(d)),
    "orthoplex": lambda k, _: -(-k // 2),
    "polygon": lambda k, _: min(k - 1, 2),
}
"""Ranks of [k, d], where k and d say them; of the others it is only known that neither is exceeded."""


@pytest.mark.parametrize("name", quick(MATRICES, *sorted(MATRICES.keys() - {"tammes", "hyperspherical"})))
@few
@given(k=st.integers(2, 40), d=st.integers(2, 40), seed=st.integers(0, 99))
def test_any_matrix_has_its_rank_distinct_rows_and_no_cosine_below_the_bound(
    name: str, k: int, d: int, seed: int
) -> None:
    d = 2 if name == "polygon" else d
    if obstacle(name, k, d):
        return
    found = facts(matrix(name, k, d, seed))
    if name != "rademacher":  # drawn signs may repeat
        assert found.distinct == (min(k, 2 ** (d - 1).bit_length()) if name == "hadamard" else k)
    assert found.rank == RANKS[name](k, d) if name in RANKS else found.rank <= min(k, d)
    assert geometry.bound(k, d) - 1e-12 <= found.largest
    assert -1 - 1e-12 <= found.smallest <= found.largest <= 1 + 1e-12
    assert abs(found.orthant) <= 1 + 1e-12


def test_another_process_makes_the_same_matrices() -> None:
    """With another seed of Python's hashes and other threads of BLAS."""
    made = (
        "import json; from jaxclf.models.matrices import MATRICES, digest, matrix\n"
        "print(json.dumps({name: digest(matrix(name, 8, 2 if name == 'polygon' else 16, 3)) for name in MATRICES}))"
    )
    changed = {"PYTHONHASHSEED": "7", "OPENBLAS_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", made], env={**os.environ, **changed}, capture_output=True, text=True, check=True
    )
    ours = {name: digest(matrix(name, 8, 2 if name == "polygon" else 16, 3)) for name in MATRICES}
    assert json.loads(answer.stdout) == ours


@pytest.mark.parametrize(
    ("k", "d", "target"), [(5, 4, -0.2), (8, 4, 0.1), (24, 4, 0.6), *quick([(100, 64, 0.05), (1000, 64, 0.3)])]
)
def test_spread_rows_are_between_the_bound_and_their_target(k: int, d: int, target: float) -> None:
    drawn = facts(matrix("sphere", k, d)).largest
    for name in ("tammes", "hyperspherical"):
        w = matrix(name, k, d)
        assert np.abs(np.linalg.norm(w, axis=1) - 1).max() < 1e-12
        assert geometry.bound(k, d) - 1e-12 <= facts(w).largest <= min(target, drawn)


def test_a_polygons_neighbours() -> None:
    gram = unit_gram(matrix("polygon", 7, 5))
    assert np.diag(gram, 1) == pytest.approx(np.cos(2 * np.pi / 7))


def test_words_behind_a_name_keep_the_cosines() -> None:
    plain = matrix("kerdock", 30, 22)
    assert not plain[:, 16:].any()
    turned, shuffled = matrix("kerdock+rotate", 30, 22, 1), matrix("kerdock+shuffle", 30, 22, 1)
    assert np.abs(turned @ turned.T - plain @ plain.T).max() < 1e-12
    assert np.count_nonzero(turned[:, 16:]) == 180
    assert not np.array_equal(shuffled, plain)
    assert {tuple(row) for row in shuffled} == {tuple(row) for row in plain}
    repeated = matrix("kerdock+repeat", 30, 35)
    assert np.abs(repeated @ repeated.T - plain @ plain.T).max() < 1e-12
    assert np.array_equal(repeated[:, :16], repeated[:, 16:32])
    assert not repeated[:, 32:].any()


def test_cosines_are_taken_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    w = matrix("gaussian", 50, 8)
    whole = facts(w)
    monkeypatch.setattr(geometry, "BLOCK", 7)
    assert facts(w).largest == pytest.approx(whole.largest, rel=1e-12)
    off = unit_gram(w)[~np.eye(50, dtype=bool)]
    assert (whole.smallest, whole.largest) == (pytest.approx(off.min()), pytest.approx(off.max()))
    assert geometry.cosines(w[:1]) == (0.0, 0.0)


@pytest.mark.parametrize("order", [8, 9, 25, 27, 32, 49, 121])
def test_the_powers_of_a_generator_are_every_unit_of_the_field(order: int) -> None:
    found = prime_power(order)
    assert found is not None
    assert sorted(powers(*found)) == list(range(1, order))
    assert powers(*found)[0] == 1
