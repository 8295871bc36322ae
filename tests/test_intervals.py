"""Intervals against published numbers."""

import pytest

from jaxclf.intervals import student_half_width, wilson


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_newcombes(hits: int, count: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3; a share and its complement mirror each other."""
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(count - hits, count) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_students_half_width_has_the_quantiles_of_the_tables() -> None:
    """t(0.975, 4) = 2.776 and t(0.975, 19) = 2.093; the twenty values have the sample variance 35."""
    assert student_half_width([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.776 * (2.5 / 5) ** 0.5, rel=1e-3)
    assert student_half_width([float(value) for value in range(20)]) == pytest.approx(2.093 * (35 / 20) ** 0.5, 1e-3)
    assert student_half_width([1.0]) is None
