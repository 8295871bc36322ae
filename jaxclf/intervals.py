"""Intervals that cover what was estimated with a probability of 95 %. Pure."""

import math
import statistics
from collections.abc import Sequence

from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95
"""Probability that an interval covers what was estimated."""


def student_half_width(values: Sequence[float]) -> float | None:
    """Return half of Student's t interval around the mean of n values, t(n - 1) s / sqrt(n); None below two values.

    s is the sample standard deviation, t(n - 1) the 97.5 % quantile of Student's distribution of n - 1 degrees.

    >>> round(student_half_width([1.0, 2.0, 3.0]), 4)
    2.4841
    """
    n = len(values)
    if n < 2:
        return None
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(n)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the lower and the upper end of Wilson's interval of a share that `hits` of `count` trials estimate.

    With p = hits / count, n = count and the normal distribution's 97.5 % quantile z, the ends are
    (p + z^2 / 2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n): all shares that a score test does not reject.
    They stay inside 0 to 1. Source: Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927).

    >>> [round(end, 4) for end in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    share, z2 = hits / count, float(ndtri((1 + CONFIDENCE) / 2)) ** 2
    middle, scale = share + z2 / (2 * count), 1 + z2 / count
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2)))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
