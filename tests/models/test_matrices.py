"""The fixed matrices, against their definitions in thesis.md sections 1 and 2."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxclf.errors import UsageError
from jaxclf.models.matrices import MATRICES, digest, distinct_rows, is_random, largest_cosine, matrix, obstacle
from tests import tiers

widths = st.integers(1, 48)
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None, derandomize=True)


def test_what_is_drawn_turned_or_shuffled_is_random() -> None:
    names = ["identity", "orthogonal", "hadamard", "orthoplex", "signed_identity", "hypercube", "hypercube_random"]
    assert [name for name in names if is_random(name)] == ["orthogonal", "hypercube_random"]
    words = ["kerdock", "kerdock+repeat", "kerdock+rotate", "kerdock+shuffle"]
    assert [name for name in words if is_random(name)] == words[2:]


def test_an_unknown_matrix_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown matrix 'orthoplx'; did you mean 'orthoplex'"):
        matrix("orthoplx", 2, 2)


@pytest.mark.parametrize("name", tiers.quick(MATRICES, *sorted(MATRICES.keys() - {"tammes", "hyperspherical"})))
@quick
@given(rows=widths, columns=widths, seed=seeds)
def test_every_matrix_is_float64_of_its_shape_and_a_function_of_its_arguments(
    name: str, rows: int, columns: int, seed: int
) -> None:
    if text := obstacle(name, rows, columns):
        with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
            matrix(name, rows, columns, seed)
        return
    first = matrix(name, rows, columns, seed)
    assert first.shape == (rows, columns)
    assert first.dtype == np.float64
    assert np.array_equal(first, matrix(name, rows, columns, seed))
    if not MATRICES[name].random:
        assert np.array_equal(first, matrix(name, rows, columns, seed + 1))


@quick
@given(rows=widths, columns=widths, seed=seeds)
def test_orthogonal_has_orthonormal_rows_or_columns(rows: int, columns: int, seed: int) -> None:
    w = matrix("orthogonal", rows, columns, seed)
    gram = w @ w.T if rows <= columns else w.T @ w
    assert np.abs(gram - np.eye(min(rows, columns))).max() < 1e-12
    mean_square = (w**2).sum(1).mean()
    assert mean_square == pytest.approx(min(1.0, columns / rows))


def test_orthogonal_is_drawn_from_its_seed() -> None:
    assert np.abs(matrix("orthogonal", 4, 8, 0) - matrix("orthogonal", 4, 8, 1)).max() > 0.1


def test_orthogonal_is_haar_and_not_lapacks_choice_of_signs() -> None:
    # LAPACK's Q of a normal matrix has a diagonal of one sign; a Haar matrix has both, half and half.
    positive = sum(matrix("orthogonal", 3, 3, seed)[0, 0] > 0 for seed in range(400))
    assert 150 < positive < 250  # 5 sigma: false alarm below 1e-6


def test_hadamard_8() -> None:
    signs = ["++++++++", "+-+-+-+-", "++--++--", "+--++--+", "++++----", "+-+--+-+", "++----++", "+--+-++-"]
    assert np.array_equal(matrix("hadamard", 8, 8), [[1 if sign == "+" else -1 for sign in row] for row in signs])


@quick
@given(rows=widths, columns=widths)
def test_hadamard_is_the_corner_of_sylvesters_matrix(rows: int, columns: int) -> None:
    sylvester = [[(-1) ** (r & c).bit_count() for c in range(columns)] for r in range(rows)]
    assert np.array_equal(matrix("hadamard", rows, columns), sylvester)


def test_hadamard_of_imagenets_21841_classes_takes_no_square_of_them() -> None:
    h = matrix("hadamard", 21_841, 16)  # Sylvester's matrix of that order would take 8 GB
    assert h.shape == (21_841, 16)
    assert distinct_rows(h) == 16


def test_hadamard_past_its_width_repeats_rows() -> None:
    h = matrix("hadamard", 100, 64)
    assert distinct_rows(h) == 64
    assert np.array_equal(h[64:], h[:36])
    assert distinct_rows(matrix("hadamard", 64, 64)) == 64


@pytest.mark.parametrize(("rows", "entry"), [(10, 6), (64, 22), (100, 42), (128, 42), (200, 86), (342, 170)])
def test_hadamard_cut_to_342_columns_is_not_orthogonal(rows: int, entry: int) -> None:
    h = matrix("hadamard", rows, 342)
    assert distinct_rows(h) == rows
    assert largest_cosine(h) == pytest.approx(entry / 342, rel=1e-12)


def test_the_64_dimensional_orthoplex() -> None:
    w = matrix("orthoplex", 100, 64)
    assert [(w[r, c], c) for r in (0, 1, 2, 99) for c in np.flatnonzero(w[r])] == [(1, 0), (-1, 0), (1, 1), (-1, 49)]
    assert (np.abs(w).sum(1) == 1).all()


def test_the_signed_identity() -> None:
    w = matrix("signed_identity", 100, 64)
    assert np.array_equal(w[:64], np.eye(64))
    assert np.array_equal(w[64:], -np.eye(64)[:36])


def test_the_hypercube_counts_in_binary() -> None:
    w = matrix("hypercube", 100, 64) * 8
    assert set(np.unique(w)) == {-1, 1}
    for r in (0, 1, 2, 5, 99):
        assert "".join("1" if entry < 0 else "0" for entry in w[r]) == f"{r:064b}"


@quick
@given(columns=st.integers(1, 9), seed=seeds, share=st.floats(0, 1))
def test_random_hypercube_rows_are_distinct_vertices(columns: int, seed: int, share: float) -> None:
    rows = max(1, round(share * 2**columns))
    w = matrix("hypercube_random", rows, columns, seed)
    assert distinct_rows(w) == rows
    assert np.allclose(np.abs(w), columns**-0.5)


def test_a_digest_knows_values_and_shape() -> None:
    w = matrix("identity", 4, 6)
    assert digest(w) == digest(w.astype(np.float32))
    assert len({digest(w), digest(w.T), digest(-w), digest(w.reshape(6, 4)), digest(w[:3])}) == 5
    assert digest(w) == digest(np.asfortranarray(w))


def test_largest_cosine_of_rows_at_60_degrees() -> None:
    assert largest_cosine(np.array([[1.0, 0.0], [1.0, np.sqrt(3)]])) == pytest.approx(0.5)
    assert largest_cosine(np.eye(5)) == 0
