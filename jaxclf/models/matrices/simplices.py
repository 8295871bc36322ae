"""Simplices, equiangular tight frames, and what else has a closed form: unit rows, float64."""

import numpy as np


def simplex(rows: int, columns: int, seed: int) -> np.ndarray:
    """Unit vectors, k of them in n = k - 1 dimensions, at cosine -1 / n: closed form.

    Row i < k is sqrt(1 + 1/n) e_i - n^(-3/2) (sqrt(n + 1) + 1) 1, the last one n^(-1/2) 1.
    """
    n = rows - 1
    found = np.sqrt(1 + 1 / n) * np.eye(n) - n**-1.5 * (np.sqrt(n + 1) + 1)
    return np.concatenate([found, np.full((1, n), n**-0.5)])


def simplex_recursive(rows: int, columns: int, seed: int) -> np.ndarray:
    """The same simplex turned: P_k = [[1, -1/k 1'], [0, sqrt(1 - 1/k^2) P_(k-1)]], transposed (Kasarla et al. 2022).

    Column i of the result is s_i at row i, -s_i / (n - i) below it and 0 above it, s_i = prod_(j < i) sqrt(1 - 1/(n -
    j)^2): no recursion is needed.
    """
    n = rows - 1
    left = n - np.arange(n)
    scale = np.concatenate([[1.0], np.cumprod(np.sqrt(1 - 1.0 / left[:-1] ** 2))])
    below = np.tril(np.ones((rows, n)), -1)
    return np.eye(rows, n) * scale - below * (scale / left)


def etf(rows: int, columns: int, seed: int) -> np.ndarray:
    """sqrt(k / (k - 1)) (I - 11' / k): the simplex in k dimensions (Papyan, Han and Donoho 2020)."""
    return np.sqrt(rows / (rows - 1)) * (np.eye(rows) - 1 / rows)


def etf_rotated(rows: int, columns: int, seed: int) -> np.ndarray:
    """The same, turned by a random orthonormal [d k] (Yang et al. 2022)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((columns, rows)))
    return etf(rows, rows, 0) @ (q * np.sign(np.diag(r))).T


def block_identity(rows: int, columns: int, seed: int) -> np.ndarray:
    """Row r is 1 / sqrt(g) on g = d // k columns of its own: non-negative and orthogonal (Kim and Kim 2024)."""
    size = columns // rows
    return np.kron(np.eye(rows), np.full((1, size), size**-0.5))


def bits(rows: int) -> int:
    """Return how many bits the numbers below `rows` have, at least 1."""
    return max(1, (rows - 1).bit_length())


def hypercube_compact(rows: int, columns: int, seed: int) -> np.ndarray:
    """Row r is the binary number r over ceil(log2 k) columns, as +-1 / sqrt of their number (Pernici et al. 2021)."""
    width = bits(rows)
    places = np.arange(rows)[:, None] >> np.arange(width - 1, -1, -1) & 1
    return (1.0 - 2.0 * places) / np.sqrt(width)


def polygon(rows: int, columns: int, seed: int) -> np.ndarray:
    """Row r is (cos 2 pi r / k, sin 2 pi r / k): the corners of a regular polygon."""
    angles = 2 * np.pi * np.arange(rows) / rows
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)
