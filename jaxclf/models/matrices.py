"""The fixed matrices that stand where a learned layer would: pure numpy, float64, a function of (rows, columns, seed).

Rows are classes or output channels (k), columns are features or input channels (d), as in `y = W h`. Heads and the
backbones' fixed shortcuts share this table. The name of a matrix is also the name of its variable in the `fixed`
collection, so a variable tree says what it is made of.

Source: thesis sections 3.2-3.3 and appendix A.1 (shortcut options C to G).
"""

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
import scipy.linalg

from jaxclf.errors import UsageError, unknown


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One line of the table."""

    build: Callable[[int, int, int], np.ndarray]
    """(rows, columns, seed) -> float64 [k d]."""
    random: bool
    """Drawn from the seed. Checkpoints store such a matrix; an exact one is regenerated and its hash compared.

    A draw can be regenerated as well, but QR goes through LAPACK, whose last bit differs between processors.
    """
    max_rows: Callable[[int], float] = lambda columns: float("inf")
    """Most rows that exist for a number of columns."""


def matrix(name: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Return the fixed matrix `name` as float64 [k d].

    Raises `UsageError` for an unknown name and for more rows than the construction has.

    >>> matrix("orthoplex", 4, 2)
    array([[ 1.,  0.],
           [-1.,  0.],
           [ 0.,  1.],
           [ 0., -1.]])
    """
    if name not in MATRICES:
        raise unknown("matrix", name, MATRICES)
    if rows > MATRICES[name].max_rows(columns):
        most = int(MATRICES[name].max_rows(columns))
        raise UsageError(f"{name} has at most {most} rows of {columns} columns; {rows} were asked for")
    return MATRICES[name].build(rows, columns, seed)


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's float32 values and shape: what a checkpoint keeps of a regenerated matrix."""
    values = np.ascontiguousarray(array, np.float32)
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def distinct_rows(array: np.ndarray) -> int:
    """Return how many different rows [k d] has: no more classes than that can ever be predicted."""
    return len(np.unique(array, axis=0))


def largest_cosine(array: np.ndarray) -> float:
    """Return the largest |cosine| between two different rows of [k d]; 0 for orthogonal rows."""
    rows = np.unique(array, axis=0)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    gram = np.abs(unit @ unit.T)
    return float((gram - np.diag(np.diag(gram))).max())


def _identity(rows: int, columns: int, seed: int) -> np.ndarray:
    """One feature per class: the first k of d."""
    return np.eye(rows, columns)


def _orthogonal(rows: int, columns: int, seed: int) -> np.ndarray:
    """Orthonormal rows (k <= d) or columns (k > d): Q of a normal matrix, signs fixed by R's diagonal, so Haar.

    The same construction as torch.nn.init.orthogonal_.
    """
    tall = np.random.default_rng(seed).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))
    return q if rows >= columns else q.T


def _hadamard(rows: int, columns: int, seed: int) -> np.ndarray:
    """The upper left corner of Sylvester's matrix of order 2^ceil(log2 max(k, d)); entries +-1."""
    order = 1 << (max(rows, columns) - 1).bit_length()
    return scipy.linalg.hadamard(order)[:rows, :columns].astype(np.float64)


def _orthoplex(rows: int, columns: int, seed: int) -> np.ndarray:
    """Row r is (-1)^r at column r // 2: the vertices of the cross-polytope, in pairs."""
    r = np.arange(rows)
    out = np.zeros((rows, columns))
    out[r, r // 2] = 1.0 - 2.0 * (r % 2)
    return out


def _signed_identity(rows: int, columns: int, seed: int) -> np.ndarray:
    """+1 at column r for the first d rows, then -1 at column r - d."""
    r = np.arange(rows)
    out = np.zeros((rows, columns))
    out[r, r % columns] = 1.0 - 2.0 * (r // columns)
    return out


def _hypercube(rows: int, columns: int, seed: int) -> np.ndarray:
    """Row r is the binary number r, most significant bit first; bit 0 is +1 / sqrt(d), bit 1 is -1 / sqrt(d)."""
    bits = [[(r >> (columns - 1 - column)) & 1 for column in range(columns)] for r in range(rows)]
    return (1.0 - 2.0 * np.array(bits, np.float64)) / np.sqrt(columns)


def _hypercube_random(rows: int, columns: int, seed: int) -> np.ndarray:
    """Distinct random vertices of the same cube, in the order they were drawn."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (rows, columns))
    while len(first := np.unique(bits, axis=0, return_index=True)[1]) < rows:
        fresh = rng.integers(0, 2, (rows - len(first), columns))
        bits = np.concatenate([bits[np.sort(first)], fresh])
    return (1.0 - 2.0 * bits) / np.sqrt(columns)


def _vertices(columns: int) -> float:
    return 2.0**columns


MATRICES: dict[str, Matrix] = {
    "identity": Matrix(_identity, random=False, max_rows=lambda columns: columns),
    "orthogonal": Matrix(_orthogonal, random=True),
    "hadamard": Matrix(_hadamard, random=False),
    "orthoplex": Matrix(_orthoplex, random=False, max_rows=lambda columns: 2 * columns),
    "signed_identity": Matrix(_signed_identity, random=False, max_rows=lambda columns: 2 * columns),
    "hypercube": Matrix(_hypercube, random=False, max_rows=_vertices),
    "hypercube_random": Matrix(_hypercube_random, random=True, max_rows=_vertices),
}
