"""What a matrix [k d] can and cannot do as a last layer: rank, distinct rows, cosines and the bounds on them.

Memory is linear in the rows: cosines are taken block by block.
"""

import dataclasses
import math

import numpy as np

BLOCK = 1024
"""Rows whose cosines with all others are held at a time."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about the rows of a matrix."""

    rank: int
    distinct: int
    """Different rows: no more classes can ever be predicted."""
    largest: float
    """Largest cosine between two rows."""
    smallest: float
    """Smallest cosine between two rows."""
    orthant: float
    """Largest cosine that a non-negative feature vector can have with a row, mean over rows: what a ReLU leaves."""


def facts(array: np.ndarray) -> Facts:
    """Return the facts about [k d]."""
    smallest, largest = cosines(array)
    return Facts(int(np.linalg.matrix_rank(array)), distinct_rows(array), largest, smallest, orthant(array))


def distinct_rows(array: np.ndarray) -> int:
    """Return how many different rows [k d] has: no more classes than that can ever be predicted."""
    return len(np.unique(array, axis=0))


def cosines(array: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest cosine between two rows of [k d]; a single row has (0, 0)."""
    unit = array / np.linalg.norm(array, axis=1, keepdims=True)
    low, high = math.inf, -math.inf
    for start in range(0, len(unit), BLOCK):
        block = unit[start : start + BLOCK] @ unit.T
        places = np.arange(len(block))
        own = np.zeros_like(block, dtype=bool)
        own[places, start + places] = True
        others = block[~own]
        if others.size:
            low, high = min(low, float(others.min())), max(high, float(others.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def largest_cosine(array: np.ndarray) -> float:
    """Return the largest |cosine| between two different rows of [k d]; 0 for orthogonal rows."""
    return max(map(abs, cosines(np.unique(array, axis=0))))


def orthant(array: np.ndarray) -> float:
    """Return the largest cosine of a non-negative vector with a row of [k d], averaged over the rows.

    It is |max(w, 0)| / |w|, reached by the positive part of the row; where a row has none, its largest entry / |w|.

    >>> orthant(np.eye(3)), orthant(np.array([[3.0, -4.0]]))
    (1.0, 0.6)
    """
    norms = np.linalg.norm(array, axis=1)
    positive = np.linalg.norm(np.maximum(array, 0), axis=1)
    return float((np.where(positive > 0, positive, array.max(axis=1)) / norms).mean())


def bound(rows: int, columns: int) -> float:
    """Return a value that the largest cosine between k rows of d columns cannot fall below.

    -1 / (k - 1) for k <= d + 1, which the simplex reaches, and 0 past that (Rankin 1955), which `biorthogonal_hadamard`
    reaches up to k = 2 d; for more rows it is positive, and no closed form is sharp.
    """
    if rows <= columns + 1:
        return -1 / (rows - 1)
    return 0.0


def welch(rows: int, columns: int) -> float:
    """Return Welch's bound (1974) on the largest |cosine| of k > d rows: sqrt((k - d) / (d (k - 1))).

    >>> round(welch(100, 64), 4), round(welch(1000, 64), 4), round(welch(1000, 512), 4)
    (0.0754, 0.121, 0.0309)
    """
    return math.sqrt(max(0, rows - columns) / (columns * (rows - 1)))
