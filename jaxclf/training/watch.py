"""Show a run to an outsider while it trains: heartbeat, profile, TensorBoard, Weights & Biases.

    heartbeat.json   step, speed, step times, share of time spent waiting for data; replaced whole
    profile/         a trace (trace.py)
    tensorboard/, wandb.json, wandb/     the sinks (sinks.py)

Nothing here changes a number, and no disk, network or package that fails here ends a run: it is one warning.
"""

import collections
import contextlib
import datetime
import itertools
import json
import math
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxclf.config import Config, Watching, profiled_steps
from jaxclf.errors import UsageError, one_line
from jaxclf.storage import Location, Outbox, least_seconds, replace_file
from jaxclf.training.sinks import TensorBoard, Values, WeightsAndBiases
from jaxclf.training.trace import Trace

KEPT = 2**16
"""Step times at most between two heartbeats; of more, the latest."""
SPLITS = ("train", "validation", "test")


class Window:
    """The times of the steps since the last heartbeat."""

    def __init__(self) -> None:
        self._times: collections.deque[float] = collections.deque(maxlen=KEPT)
        self._seconds, self._waited, self._steps, self._images = 0.0, 0.0, 0, 0

    def add(self, seconds: float, *, waited: float, steps: int, images: int) -> None:
        """Add steps that took so long together, and how long of it the loop waited for data."""
        self._times.extend(itertools.repeat(seconds / steps, steps))
        self._seconds, self._waited = self._seconds + seconds, self._waited + waited
        self._steps, self._images = self._steps + steps, self._images + images

    def values(self) -> dict[str, float]:
        """Return speed, percentiles of the step time (numpy's linear), and time spent waiting; nothing of no time."""
        if not self._seconds:
            return {}
        p50, p90, p99 = np.percentile(1e3 * np.asarray(self._times), (50, 90, 99)).tolist()
        return {
            "images_per_second": self._images / self._seconds,
            "steps_per_second": self._steps / self._seconds,
            "step_time_ms/p50": p50,
            "step_time_ms/p90": p90,
            "step_time_ms/p99": p99,
            "step_time_ms/max": 1e3 * max(self._times),
            "waiting_percent": 100 * self._waited / self._seconds,
        }


class Watch:
    """Watches one run; the loop tells it what happens, and it never looks by itself.

    heartbeat.json is written by the loop alone, when steps finish and when it turns to something else. Its age is the
    age of the last progress, so whoever judges by it is right about a loop that hangs, which no thread that
    writes "alive" would be. There is a thread, but all that it ever says is that no step has finished for long.
    """

    def __init__(
        self,
        watching: Watching,
        directory: Location,
        *,
        config: Config,
        step: int,
        steps: int,
        say: Callable[[str], None],
        active: bool = True,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Watch a run in `directory` from `step` to `steps`; nothing at all unless `active`.

        `say` prints a line, `clock` measures seconds, `now` is the time since 1970. Raises `UsageError` if the profile
        begins behind the last step.
        """
        profiled = profiled_steps(watching.profile or "")
        if profiled.start > steps:
            raise UsageError(f"profile is {watching.profile} but the run has {steps:,} steps")
        self._watching = watching if active else Watching(heartbeat=0)
        self._directory, self._config, self._say, self._clock, self._now = directory, config, say, clock, now
        self._step, self._steps = step, steps
        self._outbox = Outbox(directory)
        place = directory / "profile"
        self._trace = Trace(profiled if active else range(0), steps, self._outbox.path / "profile", place, say)
        self._sinks: dict[str, TensorBoard | WeightsAndBiases] = {}
        self._faults: set[str] = set()
        self._window, self._values = Window(), {}
        self._doing, self._waiting, self._waited = "starting", False, 0.0
        self._mark: float | None = None  # when the steps now under way began; None while the clock stands
        self._beaten: float | None = None  # the last heartbeat, or the first step that was timed
        self._written = -math.inf  # when heartbeat.json was
        self._sign = clock()  # of life: the last step that finished or the last change of what is done
        self._finished: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._say_if_late, daemon=True)

    def __enter__(self) -> "Watch":
        """Open what is written to; raises `UsageError` if nobody is logged in at Weights & Biases."""
        if self._watching.profile is not None and self._step >= profiled_steps(self._watching.profile).stop - 1:
            self._say(f"profile: no trace of {self._watching.profile}, the run goes on from step {self._step:,}")
        if self._watching.wandb is not None:
            with self._survive("wandb"):
                place = {"directory": self._directory, "own": self._outbox.path}
                self._sinks["wandb"] = sink = WeightsAndBiases(self._watching.wandb, self._config, **place)
                self._say(f"wandb: {sink.url or 'offline, `wandb sync` sends it'}")
        if self._watching.tensorboard:
            with self._survive("tensorboard"):
                self._sinks["tensorboard"] = TensorBoard(self._outbox.path / "tensorboard", self._step)
        if self._watching.heartbeat:
            self._write_heartbeat()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the trace, say in heartbeat.json what ended the run, and close what is written to."""
        self._end_trace()
        self._ended.set()
        if self._watching.heartbeat:
            self._thread.join()
            self._turn_to("ended" if kind is None else f"stopped by {kind.__name__}")
        for name, sink in self._sinks.items():
            with self._survive(name):
                sink.close(failed=kind is not None)
        self._send()
        self._outbox.close()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in the context as time spent waiting for data."""
        began, self._waiting = self._clock(), True
        try:
            yield
        finally:
            self._waiting = False
            self._waited += self._clock() - began

    def dispatching(self, first: int, last: int, drain: Callable[[], object]) -> None:
        """Begin or end the trace if that is due before the dispatch of the steps `first` to `last`.

        Only then `drain` is called: it waits for the device and calls `dispatched` for all that was under way.
        """
        ends, begins = self._trace.ends(first - 1), self._trace.begins(first, last)
        if not ends and not begins:
            return
        drain()
        running = self._mark is not None
        self.pause("profile")
        if begins:
            with self._survive("profile"):
                self._trace.begin(first)
        if running:
            self.resume()

    def dispatched(self, steps: int, images: int) -> None:
        """Count the steps of one more dispatch, which is finished; unless paused, each took its share of the time."""
        now = self._clock()
        self._step, self._sign, self._finished = self._step + steps, now, self._now()
        if self._mark is None:
            return
        self._beaten = self._mark if self._beaten is None else self._beaten
        self._window.add(now - self._mark, waited=self._waited, steps=steps, images=images)
        self._mark, self._waited = now, 0.0
        if self._watching.heartbeat and now - self._beaten >= self._watching.heartbeat:
            self._beat(now)

    def pause(self, doing: str) -> None:
        """Stop the clock for something that is no step, as "evaluation"; the device must be idle.

        The time since the last dispatch that finished counts neither as step nor as waiting.
        """
        self._mark = None
        if self._trace.ends(self._step):
            self._end_trace()
        self._turn_to(doing)

    def resume(self) -> None:
        """Let the clock run for the next dispatch; the device must be idle."""
        self._turn_to("training")
        self._mark, self._waited = self._clock(), 0.0

    def go_back(self, step: int) -> None:
        """Count from an earlier step on: the run has gone back there after divergence."""
        self._step = step
        self.pause("going back")
        self._tell(lambda sink: sink.go_back(step))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Write an epoch's metrics; those that are None are left out."""
        values = {_tag(name): float(value) for name, value in row.items() if value is not None and name != "step"}
        self._write(row["step"], values)
        self._send()

    def _beat(self, now: float) -> None:
        self._beaten, self._values, self._window = now, self._window.values(), Window()
        self._write_heartbeat()
        line = f"step {self._step:,}/{self._steps:,}"
        if values := self._values:
            p50, p90, p99, most = (values[f"step_time_ms/{name}"] for name in ("p50", "p90", "p99", "max"))
            line += f"  {values['images_per_second']:,.0f} images/s"
            line += f"  {p50:,.1f} ms a step (p90 {p90:,.1f}, p99 {p99:,.1f}, max {most:,.1f})"
            line += f"  waiting for data {values['waiting_percent']:.1f} %"
        self._say(line)
        self._write(self._step, values)

    def _turn_to(self, doing: str) -> None:
        self._doing, self._sign = doing, self._clock()
        if self._watching.heartbeat:
            self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        now = self._clock()
        if now - self._written < least_seconds(self._directory) and not self._ended.is_set():
            return
        self._written = now
        record = {
            "time": utc(self._now()),
            "doing": self._doing,
            "step": self._step,
            "of": self._steps,
            "finished": None if self._finished is None else utc(self._finished),
            **{name: round(value, 3) for name, value in self._values.items()},
            "process": os.getpid(),
            "host": socket.gethostname(),
        }
        with self._survive("heartbeat", "tried again at the next one"):
            replace_file(self._directory / "heartbeat.json", json.dumps(record, indent=2) + "\n")

    def _say_if_late(self) -> None:
        """Say that no step has finished for two heartbeats, for twice as long, and so on."""
        seconds = self._watching.heartbeat
        allowed = 2 * seconds
        while not self._ended.wait(seconds):
            silent = self._clock() - self._sign
            if silent < 2 * seconds:
                allowed = 2 * seconds
            elif silent >= allowed:
                allowed = 2 * silent
                doing = "waiting for data" if self._waiting else self._doing
                self._say(f"step {self._step:,}: no step has finished for {silent:,.0f} s ({doing})")

    def _end_trace(self) -> None:
        if self._trace.running:
            with self._survive("profile"):
                self._trace.end(self._step)

    def _write(self, step: int, values: Values) -> None:
        self._tell(lambda sink: sink.write(step, values))

    def _send(self) -> None:
        """Send what is new of profile, TensorBoard and wandb to the run directory, where they are not written in it."""
        with self._survive("upload", "tried again after the next epoch"):
            self._outbox.send()

    def _tell(self, what: Callable[[TensorBoard | WeightsAndBiases], None]) -> None:
        for name, sink in self._sinks.items():
            if name not in self._faults:
                with self._survive(name):
                    what(sink)

    @contextlib.contextmanager
    def _survive(self, what: str, then: str = "off for the rest of this run") -> Iterator[None]:
        """Turn the first error, whichever a disk, a network or another's package may raise, into a warning."""
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            if what not in self._faults:
                warnings.warn(f"{what} failed and is {then}: {one_line(error)}", stacklevel=4)
            self._faults.add(what)


def _tag(name: str) -> str:
    """Return a metric's name as sinks group it.

    >>> _tag("train_top1"), _tag("lr")
    ('train/top1', 'lr')
    """
    split, _, rest = name.partition("_")
    return f"{split}/{rest}" if split in SPLITS else name


def utc(seconds: float) -> str:
    """Return a time, given in seconds since 1970, in ISO 8601."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
