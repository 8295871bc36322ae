"""The errors that a user sees: one line each, that says what was given and what is allowed."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A request that cannot be met: one line that says what was given and what is allowed.

    The command line prints it and exits with 2; a library caller catches a `ValueError`.
    """


class RunError(RuntimeError):
    """A run that cannot go on: one line that says what happened, at which step, and what is kept.

    The command line prints it and exits with 2.
    """


class Stopped(RunError):
    """A run that was asked to stop, or lost another of its processes: the same command goes on from its checkpoint.

    The command line prints it and exits with --stop-code: 75, EX_TEMPFAIL of sysexits.h (try again), by default.
    """


REFUSALS = (
    *("No space left on device", "Disk quota exceeded", "Permission denied", "Read-only file system"),
    "Input/output error",
)
"""What a disk says, as the C library words it."""


def one_line(reason: object) -> str:
    """Return a text, or an exception's type and text, as one line of 300 characters at most.

    Orbax's errors hold whole arrays, and TensorStore's name long paths before what a disk refuses for: that is said in
    any case.
    """
    if isinstance(reason, Exception):
        reason = f"{type(reason).__name__}: {reason}"
    whole = " ".join(str(reason).split())
    cut = whole[:300]
    return next((f"{cut}... {refusal}" for refusal in REFUSALS if refusal in whole and refusal not in cut), cut)


def unknown(kind: str, given: object, allowed: Iterable[str]) -> UsageError:
    """Return the error for a name that is not in a table, nearest valid names first.

    >>> print(unknown("head", "identiy", ["learned", "identity"]))
    unknown head 'identiy'; did you mean 'identity'? Valid: identity, learned
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(str(given), names, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return UsageError(f"unknown {kind} {given!r}{hint} Valid: {', '.join(names)}")
