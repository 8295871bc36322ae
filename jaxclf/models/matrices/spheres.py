"""Rows that are drawn, and rows that gradient descent has spread over the sphere; float64, functions of the seed."""

import functools

import numpy as np

STEPS = 400


def gaussian(rows: int, columns: int, seed: int) -> np.ndarray:
    """Entries of N(0, 1 / d)."""
    return np.random.default_rng(seed).standard_normal((rows, columns)) / np.sqrt(columns)


def rademacher(rows: int, columns: int, seed: int) -> np.ndarray:
    """Entries +-1 / sqrt(d), each sign as likely; rows may repeat, unlike hypercube_random's."""
    return (2.0 * np.random.default_rng(seed).integers(0, 2, (rows, columns)) - 1) / np.sqrt(columns)


def sphere(rows: int, columns: int, seed: int) -> np.ndarray:
    """Unit rows, uniform on the sphere."""
    return _unit(np.random.default_rng(seed).standard_normal((rows, columns)))


def tammes(rows: int, columns: int, seed: int) -> np.ndarray:
    """Unit rows whose largest cosine is small: projected gradient descent on its soft maximum, from `sphere`.

    The soft maximum log(sum exp(t cos)) / t over all pairs hardens over 400 steps, t from 10 to 400. No optimum is
    claimed; `geometry.bound` says how far from one it can be. Equiangular basis vectors (Shen et al. 2023) and softmax
    codes (Jiang et al. 2024) are this problem.
    """
    return _spread(rows, columns, seed, over_rows=False).copy()


def hyperspherical(rows: int, columns: int, seed: int) -> np.ndarray:
    """Unit rows whose mean largest cosine is small: the same descent on mean_i max_j cos (Mettes et al. 2019)."""
    return _spread(rows, columns, seed, over_rows=True).copy()


@functools.lru_cache(maxsize=4)
def _spread(rows: int, columns: int, seed: int, *, over_rows: bool) -> np.ndarray:
    """Descend on the largest cosine, that of every row or that of all, with steps that shrink from .5 to .005."""
    found = sphere(rows, columns, seed)
    for step in range(STEPS):
        share = step / (STEPS - 1)
        sharpness, rate = 10 * 40**share, 0.5 * 0.01**share
        cosines = found @ found.T
        np.fill_diagonal(cosines, -np.inf)
        top = cosines.max(axis=1, keepdims=True) if over_rows else cosines.max()
        weights = np.exp(sharpness * (cosines - top))
        weights /= weights.sum(axis=1, keepdims=True) if over_rows else weights.sum() / len(found)
        gradient = (weights + weights.T) @ found / 2
        gradient -= (gradient * found).sum(axis=1, keepdims=True) * found  # along the sphere
        found = _unit(found - rate * gradient)
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
