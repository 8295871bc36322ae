"""The trace that `jax.profiler` takes of some steps of a run: files in its profile/."""

from collections.abc import Callable
from pathlib import Path

import jax

from jaxclf.storage import Location


class Trace:
    """`jax.profiler`'s trace of a range of steps, taken once."""

    def __init__(self, steps: range, total: int, directory: Path, place: Location, say: Callable[[str], None]) -> None:
        """Plan it for a run of `total` steps, written to a directory that is to be found in `place` later.

        An empty range is none.
        """
        self._steps, self._total, self._directory, self._place, self._say = steps, total, directory, place, say
        self._first: int | None = None
        self._over = False

    @property
    def running(self) -> bool:
        """Whether it has begun and not ended."""
        return self._first is not None and not self._over

    def begins(self, first: int, last: int) -> bool:
        """Return whether it has to begin before the dispatch of steps `first` to `last`."""
        return self._first is None and self._steps.start <= last and first < self._steps.stop

    def ends(self, step: int) -> bool:
        """Return whether it has to end after `step`."""
        return self.running and step >= min(self._steps.stop - 1, self._total)

    def begin(self, first: int) -> None:
        """Begin before step `first`; raises `RuntimeError` if another trace is running."""
        self._first, self._over = first, True  # and over it stays if the next line raises
        jax.profiler.start_trace(self._directory)
        self._over = False

    def end(self, step: int) -> None:
        """End after `step`, and say where the trace is and what opens it."""
        self._over = True
        jax.profiler.stop_trace()
        short = f", where the run ended, of {self._steps.start:,}:{self._steps.stop:,}"
        self._say(
            f"profile: steps {self._first:,} to {step:,}{short if step < self._steps.stop - 1 else ''}, in "
            f"{self._place}; `xprof --logdir {self._place}` (pip install xprof) shows it, and ui.perfetto.dev "
            "opens the *.trace.json.gz in it"
        )
