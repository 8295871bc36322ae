"""Finite fields GF(p^m) as tables: what Paley's, Kerdock's and Gold's constructions compute in.

An element is the whole number whose digits to the base p are its coefficients, lowest power first.
"""

import functools
import itertools

import numpy as np


def prime_power(number: int) -> tuple[int, int] | None:
    """Return (p, m) with number = p^m, p prime; None for other numbers.

    >>> prime_power(49), prime_power(12)
    ((7, 2), None)
    """
    if number < 2:
        return None
    prime = next((n for n in range(2, int(number**0.5) + 1) if number % n == 0), number)
    power = 0
    while number % prime == 0:
        number, power = number // prime, power + 1
    return (prime, power) if number == 1 else None


def digits(numbers: np.ndarray, prime: int, power: int) -> np.ndarray:
    """Return the coefficients of elements, [..., m], lowest power first."""
    return numbers[..., None] // prime ** np.arange(power) % prime


@functools.cache
def powers(prime: int, power: int) -> np.ndarray:
    """Return g^0, g^1, ..., g^(q-2) for a generator g of the field's units: every element but 0, once.

    The generator is x modulo the first monic polynomial, by its coefficients, that makes x one (a primitive one);
    for m = 1 it is the first number that generates.
    """
    order = prime**power - 1
    places = prime ** np.arange(power)
    for tail in itertools.product(range(prime), repeat=power):
        if tail[0] == 0:
            continue
        element, found = (np.eye(power, dtype=np.int64)[0], [])
        for _ in range(order):
            found.append(int(element @ places))
            carry = element[-1]
            element = (np.concatenate([[0], element[:-1]]) - carry * np.asarray(tail)) % prime
            if found[-1] == found[0] and len(found) > 1:
                break
        if len(set(found)) == order:
            return np.asarray(found)
    raise AssertionError("every finite field has a primitive polynomial")


@functools.cache
def logarithms(prime: int, power: int) -> np.ndarray:
    """Return the inverse of `powers`: the exponent of every element; that of 0 is -1."""
    table = np.full(prime**power, -1)
    table[powers(prime, power)] = np.arange(prime**power - 1)
    return table


def multiply(a: np.ndarray, b: np.ndarray, power: int) -> np.ndarray:
    """Return the products of elements of GF(2^m)."""
    exponents, logs = powers(2, power), logarithms(2, power)
    product = exponents[(logs[a] + logs[b]) % len(exponents)]
    return np.where((a == 0) | (b == 0), 0, product)


def trace(elements: np.ndarray, power: int) -> np.ndarray:
    """Return Tr(a) = a + a^2 + a^4 + ... + a^(2^(m-1)) of elements of GF(2^m): 0 or 1."""
    total, term = np.zeros_like(elements), elements
    for _ in range(power):
        total, term = total ^ term, multiply(term, term, power)
    return total


def characters(prime: int, power: int) -> np.ndarray:
    """Return the quadratic character of every difference, [q q].

    Entry (a, b) is 1 where a - b is a square, -1 where it is none, and 0 where a = b.
    """
    size = prime**power
    logs = logarithms(prime, power)
    sign = np.where(logs % 2 == 0, 1, -1)
    sign[0] = 0
    coefficients = digits(np.arange(size), prime, power)
    table = np.empty((size, size))
    for a in range(size):  # row by row: [q q m] would not fit for large fields
        difference = (coefficients[a] - coefficients) % prime
        table[a] = sign[difference @ prime ** np.arange(power)]
    return table
