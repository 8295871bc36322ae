"""Matrices of the rows of another one, in an order and with signs: W = A(B), so W h = A(B h) needs no W.

B is the unit matrix or a Hadamard matrix, A an arrangement: [..., n] -> [..., m], of numpy's arrays and JAX's alike, of
which the first k are taken.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jaxclf.models.matrices.codes import hadamard_of

Arrangement = Callable[[Any], Any]


def in_order(x: Any) -> Any:
    """x_0, x_1, ... as they are."""
    return x


def pairs(x: Any) -> Any:
    """x_0, -x_0, x_1, -x_1, ...: of the unit matrix, the vertices of the cross-polytope in pairs."""
    return x.__array_namespace__().stack([x, -x], axis=-1).reshape(*x.shape[:-1], -1)


def halves(x: Any) -> Any:
    """x_0, x_1, ..., then -x_0, -x_1, ...: of a Hadamard matrix, rows that all differ at a largest cosine of 0."""
    return x.__array_namespace__().concat([x, -x], axis=-1)


def varied_halves(x: Any) -> Any:
    """The same without x_0, the constant row, which a non-negative feature vector reaches wholly or not at all."""
    return halves(x[..., 1:])


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is no smaller."""
    return 1 << (number - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class Signed:
    """Rows of the unit matrix, which `gather` applies, or of a Hadamard matrix: `transform` applies Sylvester's."""

    applied: Literal["gather", "transform"]
    arrange: Arrangement
    cut: bool = False
    """Of Sylvester's matrix of the next order, cut to k x d; otherwise the Hadamard matrix has as many columns."""

    def build(self, rows: int, columns: int, seed: int) -> np.ndarray:
        """Return the matrix, float64 [k d]."""
        picked = self.arrange(np.arange(1, columns + 1))[:rows]  # row numbers from 1, so that -1 is another than 1
        index, sign = np.abs(picked) - 1, np.sign(picked)[:, None]
        if self.applied == "transform":
            return sign * hadamard_of(columns)[index]
        return np.where(index[:, None] == np.arange(columns), sign, 0).astype(np.float64)

    def order(self, rows: int, columns: int) -> int:
        """Return how many numbers B h has; 0 where it would take a Hadamard matrix that is not Sylvester's."""
        if self.applied == "gather":
            return columns
        order = power_of_two(max(rows, columns) if self.cut else columns)
        return order if self.cut or order == columns else 0


def sylvester(rows: int, columns: int, seed: int) -> np.ndarray:
    """The upper left corner of Sylvester's matrix of order 2^ceil(log2 max(k, d)); entries +-1.

    Entry (r, c) is (-1)^(bits that r and c share), so the whole matrix, of k^2 entries and more, is never made.
    """
    shared = np.bitwise_count(np.arange(rows)[:, None] & np.arange(columns))
    return 1.0 - 2.0 * (shared % 2)


def sylvester_flaws(rows: int, columns: int) -> tuple[int, int]:
    """Return how many rows of `sylvester` differ, and the largest |w_r . w_s| of two that do.

    Row r times row s, entry by entry, is row t = r xor s. With 2^l the lowest bit of t, its entries sum to 0 over every
    2^(l + 1) columns, so over all d to their distance from a multiple of 2^(l + 1), but for the sign.

    >>> sylvester_flaws(100, 64), sylvester_flaws(100, 342)
    ((64, 0), (100, 42))
    """
    distinct = min(rows, power_of_two(columns))
    spans = [2**bit for bit in range(1, (distinct - 1).bit_length() + 1)]
    return distinct, max((min(columns % span, -columns % span) for span in spans), default=0)
