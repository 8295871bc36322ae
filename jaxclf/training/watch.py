"""What an outsider sees of a run while it goes on: heartbeat, profile, TensorBoard, Weights & Biases.

    heartbeat.json   step, speed, step times, share of time spent waiting for data; replaced whole
    profile/         traces of `jax.profiler`
    tensorboard/     event files
    wandb.json       id of the run at Weights & Biases and its last step there;  wandb/   its own files

Nothing here changes a number, and no disk, network or package that fails here ends a run: it is one warning.
"""

import collections
import contextlib
import datetime
import importlib
import importlib.util
import itertools
import json
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclf.config import Config, Watching, profiled_steps, validate
from jaxclf.errors import UsageError

KEPT = 2**16
"""Step times at most between two heartbeats; of more, the latest."""
SPLITS = ("train", "validation", "test")
Values = Mapping[str, float]


def check(watching: Watching) -> None:
    """Check the fields and that the packages they need are there; every fault is a `UsageError`."""
    validate(watching)
    wanted = {"tensorboard": watching.tensorboard, "wandb": watching.wandb is not None}
    for name, want in wanted.items():
        if want and not _installed(name):
            raise UsageError(f"{name} needs a package that is not installed: pip install 'jaxclf[{name}]'")


def _installed(package: str) -> bool:
    """Return whether a package is there; a mere directory of its name, as both write one, is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


class TensorBoard:
    """One event file of a directory; what earlier files hold of later steps is no longer shown.

    The records are what torch.utils.tensorboard writes, by the same package, but written by the caller and not by a
    thread behind a queue: a kill loses none of them, and a full disk is an error here and now.
    """

    def __init__(self, directory: Path, step: int) -> None:
        """Go on behind `step`; raises `OSError`."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        event, summary = vars(event_pb2), vars(summary_pb2)  # made at run time, so no attributes to a type checker
        self._event, self._summary, session = event["Event"], summary["Summary"], event["SessionLog"]
        directory.mkdir(exist_ok=True)
        # TensorBoard reads a directory's files in the order of their names.
        self._file = (directory / f"events.out.tfevents.{time.time_ns()}").open("xb")
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        self._start = session(status=session.START)
        self.go_back(step)

    def go_back(self, step: int) -> None:
        """Let what was written of steps behind `step` be shown no more; raises `OSError`."""
        self._add(step=step + 1, session_log=self._start)

    def write(self, step: int, values: Values) -> None:
        """Add values as scalars of a step; raises `OSError`."""
        each = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=step, summary=self._summary(value=each))

    def close(self, *, failed: bool) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()


class WeightsAndBiases:
    """One run at Weights & Biases, the same one however often a run directory goes on.

    Its id is drawn once and kept in wandb.json, beside the last step sent: two directories of one config are two runs,
    and a directory that moves is still the same. Steps that were sent before a kill are not sent again.
    """

    def __init__(self, project: str, directory: Path, config: Config) -> None:
        """Start or resume the run; raises `UsageError` if nobody is logged in, and what wandb raises."""
        wandb = importlib.import_module("wandb")
        self._file = directory / "wandb.json"
        if not self._file.exists():
            self._remember(secrets.token_hex(4), step=0)
        record = json.loads(self._file.read_text())
        self._id, self._sent = record["id"], record["step"]
        self._last = self._sent
        # By default it waits without end for an upload at the end of a run, and takes over stdout and stderr.
        settings = wandb.Settings(console="off", silent=True, finish_timeout=60)
        names = {"project": project, "id": self._id, "name": config.run_id(), "dir": str(directory)}
        try:
            self._run = wandb.init(**names, resume="allow", config=config.to_dict(), settings=settings)
        except wandb.errors.UsageError as error:
            raise UsageError(f"wandb {project}: {error}") from error
        self.url: str | None = None if self._run.offline else self._run.url
        """Page of the run; None offline."""

    def go_back(self, step: int) -> None:
        """Do nothing: what was sent cannot be taken back, and steps up to there are not sent again."""
        self._sent = self._last

    def write(self, step: int, values: Values) -> None:
        """Send values of a step that is behind all that were sent before this process, or before it went back."""
        if step > self._sent:
            self._run.log(dict(values), step=step)
            self._remember(self._id, step)
            self._last = step

    def close(self, *, failed: bool) -> None:
        """Wait up to a minute for what is still to be sent; what is left then, `wandb sync` sends."""
        self._run.finish(exit_code=int(failed))

    def _remember(self, id: str, step: int) -> None:
        _replace(self._file, json.dumps({"id": id, "step": step}) + "\n")


class Trace:
    """`jax.profiler`'s trace of a range of steps, taken once."""

    def __init__(self, steps: range, total: int, directory: Path, say: Callable[[str], None]) -> None:
        """Plan it for a run of `total` steps; an empty range is none."""
        self._steps, self._total, self._directory, self._say = steps, total, directory, say
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
            f"{self._directory}; `xprof --logdir {self._directory}` (pip install xprof) shows it, and ui.perfetto.dev "
            "opens the *.trace.json.gz in it"
        )


class Window:
    """What the steps since the last heartbeat took."""

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
        directory: Path,
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
        self._trace = Trace(profiled if active else range(0), steps, directory / "profile", say)
        self._sinks: dict[str, TensorBoard | WeightsAndBiases] = {}
        self._faults: set[str] = set()
        self._window, self._values = Window(), {}
        self._doing, self._waiting, self._waited = "starting", False, 0.0
        self._mark: float | None = None  # when the steps now under way began; None while the clock stands
        self._beaten: float | None = None  # the last heartbeat, or the first step that was timed
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
                self._sinks["wandb"] = sink = WeightsAndBiases(self._watching.wandb, self._directory, self._config)
                self._say(f"wandb: {sink.url or 'offline, `wandb sync` sends it'}")
        if self._watching.tensorboard:
            with self._survive("tensorboard"):
                self._sinks["tensorboard"] = TensorBoard(self._directory / "tensorboard", self._step)
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
        record = {
            "time": _utc(self._now()),
            "doing": self._doing,
            "step": self._step,
            "of": self._steps,
            "finished": None if self._finished is None else _utc(self._finished),
            **{name: round(value, 3) for name, value in self._values.items()},
            "process": os.getpid(),
            "host": socket.gethostname(),
        }
        with self._survive("heartbeat", "tried again at the next one"):
            _replace(self._directory / "heartbeat.json", json.dumps(record, indent=2) + "\n")

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
                said = " ".join(str(error).split())
                warnings.warn(f"{what} failed and is {then}: {type(error).__name__}: {said}", stacklevel=4)
            self._faults.add(what)


def _replace(file: Path, text: str) -> None:
    """Replace a file whole; unlike a result it need not survive a power cut, and nothing waits for the disk."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text)
    part.replace(file)


def _tag(name: str) -> str:
    """Return a metric's name as sinks group it.

    >>> _tag("train_top1"), _tag("lr")
    ('train/top1', 'lr')
    """
    split, _, rest = name.partition("_")
    return f"{split}/{rest}" if split in SPLITS else name


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
