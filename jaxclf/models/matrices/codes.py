"""Matrices of +-1 from codes: Hadamard matrices of every order that Paley and Kronecker reach, Kerdock's, Gold's.

Sources: R. Paley, On orthogonal matrices (1933); A. Kerdock, A class of low-rate nonlinear binary codes (1972), in the
quadratic forms of J. Conway and J. Seidel's line systems; R. Gold, Optimal binary sequences (1967).
"""

import functools

import numpy as np

from jaxclf.models.matrices.finite_fields import characters, multiply, prime_power, trace


@functools.cache
def buildable(order: int) -> bool:
    """Tell whether `hadamard_exact` has this order; 92 is the first multiple of 4 that exists and is not reached.

    >>> [n for n in range(4, 201, 4) if not buildable(n)]
    [92, 116, 156, 172, 184, 188]
    """
    return _recipe(order) is not None


@functools.cache
def _recipe(order: int) -> tuple[str, int] | None:
    """Return how to build an order: the construction and the field, or the smaller factor of a Kronecker product."""
    if order in (1, 2) or order & (order - 1) == 0:
        return ("sylvester", order)
    if order % 4:
        return None
    if (order - 1) % 4 == 3 and prime_power(order - 1):
        return ("paley one", order - 1)
    if (order // 2 - 1) % 4 == 1 and prime_power(order // 2 - 1):
        return ("paley two", order // 2 - 1)
    factors = (n for n in range(2, int(order**0.5) + 1) if order % n == 0)
    found = next((n for n in factors if _recipe(n) and _recipe(order // n)), None)
    return None if found is None else ("kronecker", found)


def _sylvester(order: int) -> np.ndarray:
    """Return Sylvester's matrix of a power of two, int [n n]."""
    from scipy.linalg import hadamard  # a fifth of the time that a list of networks would take to import

    return hadamard(order)


@functools.lru_cache(maxsize=8)
def hadamard_of(order: int) -> np.ndarray:
    """Return a Hadamard matrix with a first row and a first column of ones, float64 [n n]: W W' = n I.

    Paley I for n - 1 = 3 (mod 4), Paley II for n / 2 - 1 = 1 (mod 4), both of a prime power; Sylvester's for powers of
    two; else the first Kronecker product of two such.
    """
    recipe = _recipe(order)
    assert recipe is not None, "ask buildable() first"
    kind, number = recipe
    if kind == "sylvester":
        return _sylvester(order).astype(np.float64)
    if kind == "kronecker":
        return np.kron(hadamard_of(number), hadamard_of(order // number))
    power = prime_power(number)
    assert power is not None
    core = np.block([[np.zeros((1, 1)), np.ones((1, number))], [np.ones((number, 1)), characters(*power)]])
    if kind == "paley one":
        core[1:, 0] = -1  # skew
        found = np.eye(order) + core
    else:
        found = np.kron(core, [[1, 1], [1, -1]]) + np.kron(np.eye(number + 1), [[1, -1], [-1, -1]])
    found = found * found[0]
    return found * found[:, :1]


def largest_order(columns: int) -> int:
    """Return the largest order that `hadamard_of` builds within so many columns."""
    return next(order for order in range(columns, 0, -1) if buildable(order))


def even_power(columns: int) -> int:
    """Return the largest power of 4 within so many columns, at least 4; 0 where there is none."""
    return 0 if columns < 4 else 4 ** ((columns.bit_length() - 1) // 2)


def kerdock(rows: int, columns: int, seed: int) -> np.ndarray:
    """Up to d^2 / 2 + d unit vectors of d = 2^(r + 1) dimensions, r odd, at |cosine| 0 or 1 / sqrt(d).

    Row (a, b) is (-1)^(Q_a(z) + b.z) / sqrt(d) over z = (x, x0) of GF(2^r) x GF(2), with Q_a(x, x0) = Q(ax) + x0 Tr(ax)
    and Q(x) = sum over i <= (r - 1) / 2 of Tr(x^(2^i + 1)); a = 0 gives a Hadamard matrix. The unit vectors come last.
    """
    r = columns.bit_length() - 2
    z = np.arange(columns)
    x, x0 = z % 2**r, z // 2**r
    linear = _sylvester(columns)
    found = []
    for a in range(min(2**r, -(-rows // columns))):
        ax = multiply(np.full_like(x, a), x, r)
        form, power = x0 & trace(ax, r), ax
        for _ in range((r - 1) // 2):
            power = multiply(power, power, r)
            form = form ^ trace(multiply(ax, power, r), r)
        found.append(linear * (-1.0) ** form / np.sqrt(columns))
    return np.concatenate([*found, np.eye(columns)])[:rows]


def odd_power(columns: int) -> int:
    """Return the largest 2^m, m odd, within so many columns, at least 8; 0 where there is none."""
    return 0 if columns < 8 else 2 * 4 ** ((columns.bit_length() - 2) // 2)


def gold(rows: int, columns: int, seed: int) -> np.ndarray:
    """Up to d^2 unit vectors of d = 2^m dimensions, m odd, at |cosine| at most sqrt(2 / d).

    Row (a, b) is (-1)^Tr(a x^3 + b x) / sqrt(d) over x of GF(2^m); a = 0 gives a Hadamard matrix.
    """
    m = columns.bit_length() - 1
    x = np.arange(columns)
    cube = multiply(x, multiply(x, x, m), m)
    linear = np.stack([trace(multiply(np.full_like(x, b), x, m), m) for b in range(columns)])
    blocks = range(min(columns, -(-rows // columns)))
    found = [linear ^ trace(multiply(np.full_like(x, a), cube, m), m) for a in blocks]
    return ((-1.0) ** np.concatenate(found) / np.sqrt(columns))[:rows]
