"""Which parameters of a test run in the default tier: a quick one of each kind; the slow tier runs all the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def quick(values: Iterable[Any], *chosen: Any) -> list[Any]:
    """Return the values as parameters of a test, of which those that are not `chosen` are slow.

    A tuple is the arguments of one call.
    """
    values = list(values)
    assert not [one for one in chosen if one not in values], "chosen, but no value"
    return [
        pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=() if one in chosen else pytest.mark.slow)
        for one in values
    ]
