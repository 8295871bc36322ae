"""A run as an outsider sees it: the heartbeat's numbers, the traced steps, the points in the sinks."""

import contextlib
import importlib.util
import json
import os
import re
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.config import Config, Watching, validate
from jaxclf.errors import UsageError
from jaxclf.training import watch as watching_module
from jaxclf.training.sinks import TensorBoard, require_sinks
from jaxclf.training.watch import KEPT, Watch

CONFIG = Config()
BEAT = "heartbeat.json"
ROW = {"epoch": 1, "step": 6, "lr": 0.1, "train_loss": 0.5, "train_top1": 90.0, "test_loss": None, "test_top1": None}


class Time:
    """A clock that a test sets; it is the time of day as well."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Run:
    """A watched run whose every step takes as long as the test says."""

    def __init__(self, directory: Path, watching: Watching, *, step: int = 0, steps: int = 100, active: bool = True):
        self.time, self.said, self.directory = Time(), list[str](), directory
        self.watch = Watch(
            *(watching, directory),
            config=CONFIG,
            step=step,
            steps=steps,
            say=self.said.append,
            active=active,
            clock=self.time,
            now=self.time,
        )

    def __enter__(self) -> "Run":
        self.watch.__enter__()
        self.watch.resume()
        return self

    def __exit__(self, *error: Any) -> None:
        self.watch.__exit__(*error)

    def dispatch(self, seconds: float, *, waited: float = 0.0, steps: int = 1, images: int = 10) -> None:
        with self.watch.waiting():
            self.time.seconds += waited
        self.time.seconds += seconds - waited
        self.watch.dispatched(steps, images)

    def heartbeat(self) -> dict[str, Any]:
        return json.loads((self.directory / BEAT).read_text())


@contextlib.contextmanager
def warned() -> Iterator[list[str]]:
    """Collect the texts of warnings."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
        texts += [str(each.message) for each in caught]


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


# The heartbeat


def test_a_heartbeat_holds_the_percentiles_and_the_share_of_waiting_since_the_last(tmp_path: Path) -> None:
    with Run(tmp_path, Watching(heartbeat=10.0)) as run:
        for seconds in (1.0, 2.0, 3.0):
            run.dispatch(seconds, waited=0.5)
        assert run.said == []
        run.dispatch(4.0, waited=1.0)
        assert run.said == [
            "step 4/100  4 images/s  2,500.0 ms a step (p90 3,700.0, p99 3,970.0, max 4,000.0)  waiting for data 25.0 %"
        ]
        assert run.heartbeat() == {
            "time": "1970-01-01T00:16:50+00:00",
            "doing": "training",
            "step": 4,
            "of": 100,
            "finished": "1970-01-01T00:16:50+00:00",
            "images_per_second": 4.0,
            "steps_per_second": 0.4,
            "step_time_ms/p50": 2500.0,
            "step_time_ms/p90": 3700.0,
            "step_time_ms/p99": 3970.0,
            "step_time_ms/max": 4000.0,
            "waiting_percent": 25.0,
            "process": os.getpid(),
            "host": run.heartbeat()["host"],
        }
        for _ in range(2):
            run.dispatch(5.0)
    assert run.said[1:] == [
        "step 6/100  2 images/s  5,000.0 ms a step (p90 5,000.0, p99 5,000.0, max 5,000.0)  waiting for data 0.0 %"
    ]


def test_a_dispatch_of_several_steps_counts_as_so_many_steps_of_equal_length(tmp_path: Path) -> None:
    with Run(tmp_path, Watching(heartbeat=12.0)) as run:
        run.dispatch(8.0, steps=8, images=80)
        run.dispatch(4.0, steps=2, images=20)
    # Of eight times 1 s and two of 2 s: positions 4.5, 8.1 and 8.91 of 0 to 9.
    assert [run.heartbeat()[f"step_time_ms/{name}"] for name in ("p50", "p90", "p99", "max")] == [
        1000,
        2000,
        2000,
        2000,
    ]
    assert run.heartbeat()["steps_per_second"] == 0.833
    assert run.heartbeat()["images_per_second"] == 8.333
    assert run.heartbeat()["step"] == 10


def test_what_a_pause_covers_is_neither_step_nor_waiting(tmp_path: Path) -> None:
    with Run(tmp_path, Watching(heartbeat=4.0)) as run:
        run.dispatch(1.0)
        with run.watch.waiting():
            run.time.seconds += 50.0  # for the first batch of another shape, whose program is compiled next
        run.watch.pause("compilation")
        run.dispatch(100.0, waited=7.0)
        run.watch.resume()
        run.dispatch(3.0, waited=1.0)
    beat = run.heartbeat()
    assert beat["step"] == 3, "the step of the compilation counts as a step, without a time"
    assert (beat["step_time_ms/p50"], beat["step_time_ms/max"]) == (2000.0, 3000.0)
    assert (beat["waiting_percent"], beat["steps_per_second"]) == (25.0, 0.5)


def test_the_first_heartbeat_waits_for_the_first_timed_steps_not_for_the_compilation(tmp_path: Path) -> None:
    with Run(tmp_path, Watching(heartbeat=2.0)) as run:
        run.watch.pause("compilation")
        run.dispatch(100.0)
        run.watch.resume()
        run.dispatch(1.0)
        assert run.said == []
        run.dispatch(1.0)
        assert len(run.said) == 1


def test_the_file_says_what_the_run_turned_to_and_is_not_written_between(tmp_path: Path) -> None:
    run = Run(tmp_path, Watching(heartbeat=60.0))
    run.watch.__enter__()
    assert (run.heartbeat()["doing"], run.heartbeat()["finished"]) == ("starting", None)
    run.time.seconds = 1010.0
    run.watch.resume()
    run.dispatch(5.0)
    run.dispatch(5.0)
    beat = run.heartbeat()
    assert (beat["doing"], beat["time"], beat["step"]) == ("training", "1970-01-01T00:16:50+00:00", 0)
    run.watch.pause("evaluation")
    beat = run.heartbeat()
    assert (beat["doing"], beat["time"], beat["step"]) == ("evaluation", "1970-01-01T00:17:00+00:00", 2)
    run.time.seconds += 30.0
    run.watch.__exit__(None, None, None)
    beat = run.heartbeat()
    assert (beat["doing"], beat["time"]) == ("ended", "1970-01-01T00:17:30+00:00")
    assert beat["finished"] == "1970-01-01T00:17:00+00:00", "the time of the last step that finished"
    assert [path.name for path in tmp_path.iterdir()] == [BEAT]


def test_a_run_that_is_stopped_leaves_in_the_file_by_what(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Run(tmp_path, Watching()):
        raise KeyboardInterrupt
    assert json.loads((tmp_path / BEAT).read_text())["doing"] == "stopped by KeyboardInterrupt"


def test_while_no_step_finishes_it_is_said_and_the_file_grows_old(tmp_path: Path) -> None:
    said, two = list[str](), threading.Event()

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            two.set()

    watch = Watch(Watching(heartbeat=0.05), tmp_path, config=CONFIG, step=7, steps=9, say=say)
    with watch:
        watch.resume()
        written = (tmp_path / BEAT).stat().st_mtime_ns
        with watch.waiting():
            assert two.wait(20)
        assert (tmp_path / BEAT).stat().st_mtime_ns == written
    for line in said[:2]:
        assert re.fullmatch(r"step 7: no step has finished for \d+ s \(waiting for data\)", line)
    assert not watch._thread.is_alive()


def test_a_million_steps_between_two_heartbeats_need_no_more_memory_than_65536(tmp_path: Path) -> None:
    with Run(tmp_path, Watching(heartbeat=1e9), steps=2_000_000) as run:
        for _ in range(1000):
            run.dispatch(1.0, steps=1000)
        assert len(run.watch._window._times) == KEPT == 65536
        run.dispatch(1e9)
    assert run.heartbeat()["step"] == 1_000_001
    assert run.heartbeat()["step_time_ms/p50"] == 1.0


@pytest.mark.parametrize(
    ("watching", "active"), [(Watching(heartbeat=0.0), True), (Watching(1.0, "1:3", True, "project"), False)]
)
def test_without_heartbeat_and_in_other_processes_nothing_is_written_or_said(
    tmp_path: Path, watching: Watching, active: bool
) -> None:
    with Run(tmp_path, watching, active=active) as run:
        run.watch.dispatching(1, 1, drain=lambda: pytest.fail("drained"))
        run.dispatch(100.0)
        run.watch.pause("evaluation")
        run.watch.epoch(ROW)
    assert (run.said, list(tmp_path.iterdir())) == ([], [])


def test_a_disk_that_refuses_the_heartbeat_is_one_warning_and_the_next_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = watching_module.replace_file
    with Run(tmp_path, Watching(heartbeat=1.0)) as run:
        monkeypatch.setattr(watching_module, "replace_file", full)
        with warned() as texts:
            run.dispatch(1.0)
            run.dispatch(1.0)
        assert texts == [
            "heartbeat failed and is tried again at the next one: OSError: [Errno 28] No space left on device"
        ]
        monkeypatch.setattr(watching_module, "replace_file", replace)
        run.dispatch(1.0)
        assert run.heartbeat()["step"] == 3


# The profile


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What jax.profiler is asked for, and, by `train`, the steps between."""
    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: calls.append(f"start {directory.name}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def train(run: Run, calls: list[str], dispatches: list[range], *, total: int = 100) -> None:
    """Act as the loop does: a dispatch is reported when the next one is under way, and an epoch ends in a pause."""
    in_flight: list[range] = []

    def drain() -> None:
        while in_flight:
            run.dispatch(1.0, steps=len(in_flight.pop(0)))

    for steps in dispatches:
        run.watch.dispatching(steps[0], steps[-1], drain)
        calls.append(f"{steps[0]}-{steps[-1]}")
        in_flight.append(steps)
        if len(in_flight) > 1:
            run.dispatch(1.0, steps=len(in_flight.pop(0)))
        if steps[-1] in (6, total):
            drain()
            run.watch.pause("evaluation")
            calls.append("evaluation")
            run.watch.resume()


def singles(first: int, last: int) -> list[range]:
    return [range(step, step + 1) for step in range(first, last + 1)]


def test_a_trace_covers_exactly_the_steps_from_start_to_before_stop(tmp_path: Path, calls: list[str]) -> None:
    with Run(tmp_path, Watching(profile="3:5")) as run:
        train(run, calls, singles(1, 6))
    assert calls == ["1-1", "2-2", "start profile", "3-3", "4-4", "stop", "5-5", "6-6", "evaluation"]
    place = tmp_path / "profile"
    assert run.said == [
        f"profile: steps 3 to 4, in {place}; `xprof --logdir {place}` (pip install xprof) shows it, and "
        "ui.perfetto.dev opens the *.trace.json.gz in it"
    ]


def test_starting_and_stopping_a_trace_is_no_step_time(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run(tmp_path, Watching(heartbeat=6.0, profile="3:5")) as run:
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: setattr(run.time, "seconds", run.time.seconds + 100))
        train(run, calls, singles(1, 6))
    assert (run.heartbeat()["step"], run.heartbeat()["step_time_ms/max"]) == (6, 1000.0)


def test_several_steps_a_dispatch_round_the_trace_outward(tmp_path: Path, calls: list[str]) -> None:
    with Run(tmp_path, Watching(profile="6:9")) as run:
        train(run, calls, [range(1, 5), range(5, 9), range(9, 13)])
    assert calls == ["1-4", "start profile", "5-8", "stop", "9-12"]
    assert run.said[0].startswith("profile: steps 5 to 8, in ")


def test_a_trace_ends_at_a_pause_before_what_follows(tmp_path: Path, calls: list[str]) -> None:
    with Run(tmp_path, Watching(profile="5:7")) as run:
        train(run, calls, singles(1, 8))
    assert calls[4:] == ["start profile", "5-5", "6-6", "stop", "evaluation", "7-7", "8-8"]


def test_a_resumed_run_traces_what_is_left_or_says_that_nothing_is(tmp_path: Path, calls: list[str]) -> None:
    with Run(tmp_path, Watching(profile="3:10"), step=7) as run:
        train(run, calls, singles(8, 10))
    assert calls == ["start profile", "8-8", "9-9", "stop", "10-10"]
    assert run.said[0].startswith("profile: steps 8 to 9, in ")
    calls.clear()
    with Run(tmp_path, Watching(profile="3:8"), step=7) as run:
        train(run, calls, singles(8, 9))
    assert calls == ["8-8", "9-9"]
    assert run.said == ["profile: no trace of 3:8, the run goes on from step 7"]


def test_a_run_that_ends_first_ends_the_trace_before_the_last_evaluation(tmp_path: Path, calls: list[str]) -> None:
    with Run(tmp_path, Watching(profile="8:20"), step=6, steps=9) as run:
        train(run, calls, singles(7, 9), total=9)
    assert run.said[0].startswith("profile: steps 8 to 9, where the run ended, of 8:20, in ")
    assert calls == ["7-7", "start profile", "8-8", "9-9", "stop", "evaluation"]


def test_a_run_that_is_stopped_ends_the_trace_and_says_where(tmp_path: Path, calls: list[str]) -> None:
    run = Run(tmp_path, Watching(profile="2:5"), step=1).__enter__()
    run.watch.dispatching(2, 2, drain=lambda: None)
    run.dispatch(1.0)
    run.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert calls == ["start profile", "stop"]
    assert run.said[0].startswith("profile: steps 2 to 2, where the run ended, of 2:5, in ")


def test_a_trace_that_cannot_begin_is_a_warning_and_is_not_tried_again(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        calls.append("refused")
        raise RuntimeError("Only one profile may be run at a time.")

    monkeypatch.setattr(jax.profiler, "start_trace", refuse)
    with Run(tmp_path, Watching(profile="2:4")) as run, pytest.warns(UserWarning, match="profile failed and is off"):
        train(run, calls, singles(1, 5))
    assert calls == ["1-1", "refused", "2-2", "3-3", "4-4", "5-5"]


def test_a_real_trace_is_a_file_that_perfetto_opens(tmp_path: Path) -> None:
    step = jax.jit(lambda x: x @ x)
    with Run(tmp_path, Watching(profile="2:3")) as run:
        x = jnp.eye(64)
        for number in (1, 2, 3):
            run.watch.dispatching(number, number, drain=x.block_until_ready)
            x = step(x).block_until_ready()
            run.dispatch(1.0)
    found = sorted(path.suffixes[-3:] for path in (tmp_path / "profile").rglob("*") if path.is_file())
    assert [".trace", ".json", ".gz"] in found


# The sinks

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard (the extra tensorboard)"
)


def events(directory: Path) -> list[Any]:
    """Read the event files as they are, in the order of their names."""
    from tensorboard.compat.proto import event_pb2

    found = []
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(vars(event_pb2)["Event"].FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


@pytest.fixture
def accumulator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TensorBoard's reader, kept from loading TensorFlow where that is installed."""
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    from tensorboard.backend.event_processing import event_accumulator

    return event_accumulator.EventAccumulator


@needs_tensorboard
def test_epochs_and_heartbeats_are_points_at_their_steps(tmp_path: Path) -> None:
    with Run(tmp_path, Watching(heartbeat=4.0, tensorboard=True)) as run:
        run.dispatch(1.0)
        run.dispatch(3.0, waited=1.0)
        run.watch.epoch(ROW | {"test_loss": None, "test_top1": 87.5})
        points = {
            (event.step, value.tag): value.simple_value
            for event in events(tmp_path / "tensorboard")  # while the run goes on: a kill here would lose nothing
            for value in event.summary.value
        }
    assert points == {
        (2, "images_per_second"): 5.0,
        (2, "steps_per_second"): 0.5,
        (2, "step_time_ms/p50"): 2000.0,
        (2, "step_time_ms/p90"): 2800.0,
        (2, "step_time_ms/p99"): pytest.approx(2980.0),
        (2, "step_time_ms/max"): 3000.0,
        (2, "waiting_percent"): 25.0,
        (6, "epoch"): 1.0,
        (6, "lr"): np.float32(0.1),
        (6, "train/loss"): 0.5,
        (6, "train/top1"): 90.0,
        (6, "test/top1"): 87.5,
    }


@needs_tensorboard
def test_tensorboard_shows_no_step_of_a_resumed_run_twice(tmp_path: Path, accumulator: Any) -> None:
    for step, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5)), (0, (1, 2))):
        sink = TensorBoard(tmp_path, step)
        for number in steps:
            sink.write(number, {"train/loss": number + step / 16})
        sink.close(failed=True)
        read = accumulator(str(tmp_path))
        read.Reload()
        shown = [(event.step, event.value) for event in read.Scalars("train/loss")]
        expected = {(0, 4): [1, 2, 3, 4], (2, 3): [1, 2, 3.125, 4.125, 5.125], (0, 2): [1, 2]}[step, len(steps)]
        assert shown == [(int(value), value) for value in expected]


@needs_tensorboard
def test_a_sink_that_fails_is_one_warning_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(tmp_path, Watching(heartbeat=1.0, tensorboard=True)) as run:
        monkeypatch.setattr(TensorBoard, "write", full)
        with warned() as texts:
            run.dispatch(1.0)
            run.dispatch(1.0)
            run.watch.epoch(ROW)
        assert texts == [
            "tensorboard failed and is off for the rest of this run: OSError: [Errno 28] No space left on device"
        ]
        assert (len(run.said), run.heartbeat()["step"]) == (2, 2)


class Wandb(ModuleType):
    """Stands for the package: what was asked of it."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.exit_codes: list[int] = []
        self.fault: Exception | None = None
        self.offline, self.url = False, "https://wandb.example/run"
        self.errors = ModuleType("wandb.errors")
        self.errors.UsageError = type("UsageError", (Exception,), {})  # pyright: ignore[reportAttributeAccessIssue]

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **arguments: Any) -> "Wandb":
        self.inits.append(arguments)
        if self.fault is not None:
            raise self.fault
        return self

    def log(self, values: dict[str, float], *, step: int) -> None:
        if self.fault is not None:
            raise self.fault
        self.logged.append((step, values))

    def finish(self, *, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_config_and_points_and_how_it_ended(tmp_path: Path, wandb: Wandb) -> None:
    with Run(tmp_path, Watching(wandb="thesis")) as run:
        run.watch.epoch(ROW)
    assert wandb.logged == [(6, {"epoch": 1.0, "lr": 0.1, "train/loss": 0.5, "train/top1": 90.0})]
    given = wandb.inits[0]
    assert (given["project"], given["resume"], given["dir"]) == ("thesis", "allow", str(tmp_path))
    assert given["name"] == "digits-resnet20-learned-s0-fb4cfd"
    assert given["config"]["optim"]["lr"] == 0.1
    assert given["settings"] == {"console": "off", "silent": True, "finish_timeout": 60}
    assert run.said == ["wandb: https://wandb.example/run"]
    with pytest.raises(KeyboardInterrupt), Run(tmp_path, Watching(wandb="thesis")):
        raise KeyboardInterrupt
    assert wandb.exit_codes == [0, 1]


def test_a_run_directory_is_one_run_at_wandb_and_sends_no_step_twice(tmp_path: Path, wandb: Wandb) -> None:
    for directory, steps in (("a", (2, 4, 6)), ("a", (4, 6, 8)), ("b", (2,))):
        (tmp_path / directory).mkdir(exist_ok=True)
        with Run(tmp_path / directory, Watching(heartbeat=0.0, wandb="thesis")) as run:
            for step in steps:
                run.watch.epoch({"step": step, "lr": 0.1})
    assert [step for step, _ in wandb.logged] == [2, 4, 6, 8, 2]
    first, again, other = (given["id"] for given in wandb.inits)
    assert first == again != other


def test_without_network_wandb_is_one_warning_and_the_run_goes_on(tmp_path: Path, wandb: Wandb) -> None:
    wandb.fault = ConnectionError("no such\nhost")
    off = ["wandb failed and is off for the rest of this run: ConnectionError: no such host"]
    with warned() as texts, Run(tmp_path, Watching(wandb="thesis")) as run:
        run.watch.epoch(ROW)
    assert (texts, wandb.logged) == (off, [])
    wandb.fault = None
    with warned() as texts, Run(tmp_path, Watching(wandb="thesis")) as run:
        wandb.fault = ConnectionError("no such\nhost")
        run.watch.epoch(ROW)
        wandb.fault = None
        run.watch.epoch(ROW)
    assert (texts, wandb.logged) == (off, [])
    assert wandb.inits[0]["id"] == wandb.inits[1]["id"]


def test_nobody_logged_in_at_wandb_is_an_error_before_the_first_step(tmp_path: Path, wandb: Wandb) -> None:
    wandb.fault = wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")
    with (
        pytest.raises(UsageError, match=r"^wandb thesis: No API key configured"),
        Run(tmp_path, Watching(wandb="thesis")),
    ):
        pytest.fail("entered")


def test_the_real_wandb_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb (the extra wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Run(tmp_path, Watching(wandb="thesis")) as run:
        run.watch.epoch(ROW)
        run.watch.epoch(ROW | {"step": 12})
    record = json.loads((tmp_path / "wandb.json").read_text())
    assert record["step"] == 12
    assert run.said == ["wandb: offline, `wandb sync` sends it"]
    (file,) = tmp_path.glob(f"wandb/offline-run-*/run-{record['id']}.wandb")
    assert b"train/loss" in file.read_bytes()


# What is checked before anything is compiled


def test_all_fields_out_of_range_are_in_one_error() -> None:
    with pytest.raises(UsageError) as caught:
        validate(Watching(heartbeat=-1.0, profile="5:5", wandb="a/b"))
    assert str(caught.value) == (
        "heartbeat is -1.0 but must be at least 0 and finite; "
        "profile is '5:5' but must be START:STOP, steps from 1, START below STOP; "
        "wandb is 'a/b' but must be a project name, 128 characters at most, none of /\\#?%:"
    )


WRONG: Any = [{"profile": text} for text in ("", "5", "0:5", "5:4", "-1:4", "1:", ":4", "1:2:3", "a:b", "1.5:3")]
WRONG += [{"heartbeat": seconds} for seconds in (float("nan"), float("inf"), -0.1)]


@pytest.mark.parametrize("field", WRONG)
def test_a_profile_is_two_steps_in_order_and_a_heartbeat_a_number_of_seconds(field: Any) -> None:
    with pytest.raises(UsageError, match=r"^profile is .* must be START:STOP|^heartbeat is "):
        validate(Watching(**field))


def test_a_profile_behind_the_last_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^profile is 101:103 but the run has 100 steps$"):
        Run(tmp_path, Watching(profile="101:103"))


@pytest.mark.parametrize(("name", "value"), [("tensorboard", True), ("wandb", "a")])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    watching = Watching(**{name: value})
    expected = rf"^{name} needs a package that is not installed: pip install 'jaxclf\[{name}\]'$"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UsageError, match=expected):
        require_sinks(watching)
    (tmp_path / name).mkdir()  # as a run leaves one, and Python takes every directory for a package
    with pytest.raises(UsageError, match=expected):
        require_sinks(watching)
    require_sinks(Watching())
