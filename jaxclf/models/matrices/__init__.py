"""The fixed matrices that stand where a learned layer would: pure numpy, float64, a function of (rows, columns, seed).

Rows are classes or output channels (k), columns are features or input channels (d), as in `y = W h`. Heads and the
backbones' fixed shortcuts share this table. The name of a matrix is also the name of its variable in the `fixed`
collection, so a variable tree says what it is made of.

A construction that exists for some widths alone is built at the largest one within d, and is never cut. Words behind
the name say what becomes of the columns left, and of the rows: `kerdock` leaves zeros, `kerdock+repeat` repeats it,
`kerdock+rotate` turns it by a random rotation of all d columns, `+shuffle` gives the classes its rows in random order.

Source: thesis sections 3.2-3.3 and appendix A.1 (shortcut options C to G); the modules beside this one name theirs.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from jaxclf.errors import UsageError, unknown
from jaxclf.models.matrices import codes, files, signed, simplices, spheres
from jaxclf.models.matrices.geometry import distinct_rows, largest_cosine
from jaxclf.models.matrices.signed import Signed

__all__ = [
    "FILE",
    "MATRICES",
    "Matrix",
    "digest",
    "distinct_rows",
    "file_matrix",
    "flaws",
    "is_random",
    "largest_cosine",
    "matrix",
    "obstacle",
    "product_obstacle",
    "signed_rows",
]

Builder = Callable[[int, int, int], np.ndarray]
"""(rows, columns, seed) -> float64 [k d]."""


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One line of the table."""

    build: Builder
    random: bool = False
    """Drawn from the seed. Checkpoints store such a matrix; an exact one is regenerated and its hash compared.

    A draw can be regenerated as well, but QR goes through LAPACK, whose last bit differs between processors.
    """
    max_rows: Callable[[int], float] = lambda columns: math.inf
    """Most rows that exist for a number of columns."""
    width: Callable[[int], int] = lambda columns: columns
    """The most columns, of so many, that it is built with; 0 where these are too few."""
    least: int = 1
    """Fewest rows."""
    flaws: Callable[[int, int], tuple[int, int]] | None = None
    """Of a corner of something larger, whose rows may repeat or not be orthogonal: for (rows, columns), how many differ
    and the largest |product| of two that do, where the entries are +-1."""
    signed: Signed | None = None
    """What it can be applied by without being made."""


FILE = "file:"
"""Begin of the name of a matrix in a file."""


def file_matrix(path: str) -> str:
    """Return the name of the matrix [k d] in a file: .npy, .npz with one array, or .csv of comma-separated numbers.

    Such a matrix is taken as it is, for its own k and d alone, and has to be there, unchanged, when a run goes on. Dots
    and slashes are written as in a URL: they separate the names of variables.

    >>> file_matrix("heads/mine.npy")
    'file:heads%2Fmine%2Enpy'
    """
    return FILE + quote(path, safe="").replace(".", "%2E")


def matrix(name: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Return the fixed matrix `name` as float64 [k d]; words behind a + are those of the module's docstring.

    Raises `UsageError` for an unknown name and for more rows than the construction has.

    >>> matrix("orthoplex", 4, 2)
    array([[ 1.,  0.],
           [-1.,  0.],
           [ 0.,  1.],
           [ 0., -1.]])
    """
    base, words = _parsed(name)
    if text := obstacle(name, rows, columns):
        raise UsageError(text)
    entry = _entry(base)
    narrow = entry.build(rows, entry.width(columns), seed)
    found = np.pad(narrow, ((0, 0), (0, columns - narrow.shape[1])))
    if "repeat" in words:
        times = columns // narrow.shape[1]
        if times == 1:
            raise UsageError(f"{name} takes {narrow.shape[1]} of {columns} columns; there is no room to repeat it")
        found[:, : times * narrow.shape[1]] = np.tile(narrow, times) / math.sqrt(times)
    if "rotate" in words:
        found = found @ _orthogonal(columns, columns, seed)
    return np.random.default_rng(seed).permutation(found) if "shuffle" in words else found


def obstacle(name: str, rows: int, columns: int) -> str:
    """Return why there is no such matrix of so many rows and columns, in a sentence; empty where there is one."""
    entry = _entry(base := _parsed(name)[0])
    if base.startswith(FILE):
        held, needed = files.read(path := _path(base)).shape, (rows, columns)
        return "" if held == needed else f"{path} holds {_size(held)}; {_size(needed)} is needed"
    if (width := entry.width(columns)) == 0:
        least = next(n for n in range(columns + 1, 2**20) if entry.width(n))
        return f"{name} needs at least {least} columns; {columns} were asked for"
    if rows < entry.least:
        return f"{name} has at least {entry.least} rows; {rows} were asked for"
    if rows <= entry.max_rows(width):
        return ""
    within = "" if width == columns else f" (it is built with {width} of them)"
    return f"{name} has at most {int(entry.max_rows(width))} rows of {columns} columns{within}; {rows} were asked for"


def product_obstacle(name: str, applied: str, rows: int, columns: int) -> str:
    """Return why `gather` or `transform` cannot apply a matrix, in a sentence; empty where it can.

    A dense product applies every matrix.
    """
    base, words = _parsed(name)
    entry = _entry(base)
    if applied not in SIGNED:
        raise unknown("way to apply a matrix", applied, ("dense", *SIGNED))
    if entry.signed is None or entry.signed.applied != applied:
        return f"{applied} applies matrices whose rows are those of {SIGNED[applied]}, which {base}'s are not"
    if words:
        return f"{name} takes a dense product: {applied} stores no order of the rows and no rotation"
    if not entry.signed.order(rows, width := entry.width(columns)):
        return f"transform takes a power of two, but {name} on {columns} columns is built with {width} of them"
    return ""


def signed_rows(name: str, applied: str, rows: int, columns: int) -> tuple[Signed, int]:
    """Return what applies a matrix without making it, and its width. Raises `UsageError` where nothing does."""
    if text := obstacle(name, rows, columns) or product_obstacle(name, applied, rows, columns):
        raise UsageError(text)
    entry = MATRICES[name]
    assert entry.signed is not None
    return entry.signed, entry.width(columns)


def flaws(name: str, rows: int, columns: int) -> tuple[int, int] | None:
    """Return what `Matrix.flaws` says of a matrix; None for one that has none by construction."""
    found = _entry(_parsed(name)[0]).flaws
    return None if found is None else found(rows, columns)


def is_random(name: str) -> bool:
    """Tell whether a matrix is drawn from a seed, or turned or shuffled by one."""
    base, words = _parsed(name)
    return _entry(base).random or not set(words) <= {"repeat"}


WORDS = ("repeat", "rotate", "shuffle")
SIGNED = {"gather": "the unit matrix and their negatives", "transform": "Sylvester's matrix and their negatives"}
"""What applies a matrix without making it -> the matrices that it applies."""


def _parsed(name: str) -> tuple[str, list[str]]:
    base, *words = name.split("+")
    if base not in MATRICES and not base.startswith(FILE):
        raise unknown("matrix", base, MATRICES)
    for word in words:
        if word not in WORDS:
            raise unknown("word behind a matrix", word, WORDS)
    return base, words


def _entry(base: str) -> Matrix:
    if not base.startswith(FILE):
        return MATRICES[base]
    path = _path(base)
    return Matrix(lambda *_: files.read(path), flaws=lambda *_: (distinct_rows(files.read(path)), 0))


def _path(base: str) -> str:
    return unquote(base.removeprefix(FILE))


def _size(shape: tuple[int, ...]) -> str:
    return f"a matrix of {shape[0]} classes x {shape[1]} features"


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's float32 values and shape: what a checkpoint keeps of a regenerated matrix."""
    values = np.ascontiguousarray(array, np.float32)
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def _orthogonal(rows: int, columns: int, seed: int) -> np.ndarray:
    """Orthonormal rows (k <= d) or columns (k > d): Q of a normal matrix, signs fixed by R's diagonal, so Haar.

    The same construction as torch.nn.init.orthogonal_.
    """
    tall = np.random.default_rng(seed).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))
    return q if rows >= columns else q.T


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
    return 2.0**columns if columns < 1000 else math.inf


def _twice(columns: int) -> int:
    return 2 * columns


def _itself(columns: int) -> int:
    return columns


def _signed(applied: Any, arrange: signed.Arrangement, **facts: Any) -> Matrix:
    found = Signed(applied, arrange)
    return Matrix(found.build, signed=found, **facts)


MATRICES: dict[str, Matrix] = {
    "identity": _signed("gather", signed.in_order, max_rows=_itself),
    "block_identity": Matrix(simplices.block_identity, max_rows=_itself),
    "orthogonal": Matrix(_orthogonal, random=True),
    "hadamard": Matrix(
        signed.sylvester, flaws=signed.sylvester_flaws, signed=Signed("transform", signed.in_order, cut=True)
    ),
    "hadamard_exact": _signed("transform", signed.in_order, max_rows=_itself, width=codes.largest_order),
    "biorthogonal_hadamard": _signed("transform", signed.halves, max_rows=_twice, width=codes.largest_order),
    "biorthogonal_hadamard_varied": _signed(
        "transform", signed.varied_halves, max_rows=lambda columns: 2 * columns - 2, width=codes.largest_order
    ),
    "kerdock": Matrix(codes.kerdock, max_rows=lambda columns: columns**2 // 2 + columns, width=codes.even_power),
    "gold": Matrix(codes.gold, max_rows=lambda columns: columns**2, width=codes.odd_power),
    "orthoplex": _signed("gather", signed.pairs, max_rows=_twice),
    "signed_identity": _signed("gather", signed.halves, max_rows=_twice),
    "hypercube": Matrix(_hypercube, max_rows=_vertices),
    "hypercube_random": Matrix(_hypercube_random, random=True, max_rows=_vertices),
    "hypercube_compact": Matrix(simplices.hypercube_compact, max_rows=_vertices),
    "simplex": Matrix(simplices.simplex, max_rows=lambda columns: columns + 1, least=2),
    "simplex_recursive": Matrix(simplices.simplex_recursive, max_rows=lambda columns: columns + 1, least=2),
    "etf": Matrix(simplices.etf, max_rows=_itself, least=2),
    "etf_rotated": Matrix(simplices.etf_rotated, random=True, max_rows=_itself, least=2),
    "polygon": Matrix(simplices.polygon, width=lambda columns: 2 if columns >= 2 else 0, least=2),
    "tammes": Matrix(spheres.tammes, random=True, least=2),
    "hyperspherical": Matrix(spheres.hyperspherical, random=True, least=2),
    "gaussian": Matrix(spheres.gaussian, random=True),
    "rademacher": Matrix(spheres.rademacher, random=True),
    "sphere": Matrix(spheres.sphere, random=True),
}
