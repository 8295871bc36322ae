"""benchmarks/train_step.py: what its report says of given numbers, what it refuses, and that it runs."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxclf.errors import RunError, UsageError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("train_step")


@pytest.fixture
def torch_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def contestant(bench: Any, variant: str = "jaxclf", network: str = "resnet8") -> Any:
    return bench.Contestant(network, variant, "float32", "cpu", 4, 2, "nowhere.npz")


def row(variant: str, rates: list[float], failed: str | None = None) -> dict[str, Any]:
    rounds = [{"images_per_second": rate, "memory_bytes": int(rate) * 2**28} for rate in rates]
    named = {"network": "resnet8", "precision": "float32", "batch": 4, "variant": variant}
    return {**named, "failed": failed, "rounds": rounds}


def test_ratio_is_taken_within_a_round_to_the_fastest_of_torchs_that_finished(bench: Any) -> None:
    given = [
        row("jaxclf", [6.0, 8.0, 9.0]),
        row("torch_eager", [4.0, 2.0, 3.0]),
        row("torch_channels_last", [3.0, 4.0, 6.0]),
        row("torch_compile", [99.0], "not done after 60 s"),
    ]
    ours, eager, _, compiled = bench.compare(given)
    assert ours["to_torch"] == {"rounds": [1.5, 2.0, 1.5], "median": 1.5, "min": 1.5, "max": 2.0}
    assert ours["images_per_second"] == {"rounds": [6.0, 8.0, 9.0], "median": 8.0, "min": 6.0, "max": 9.0}
    assert ours["memory_bytes"] == 9 * 2**28
    assert eager["to_torch"]["rounds"] == [1.0, 0.5, 0.5]
    assert compiled == given[3]
    assert "to_torch" not in bench.compare([given[0], given[3]])[0]


def test_table_has_medians_and_ranges_and_says_what_did_not_finish(bench: Any) -> None:
    rows = bench.compare([row("jaxclf", [1200.0, 900.0, 1000.0]), row("torch_eager", [], "ended with 1: a | b")])
    ours, failed = map(bench.table_row, rows)
    assert ours == "| resnet8 | float32 | 4 | jaxclf | 1,000 (900 to 1,200) | - | 300.00 GiB |"
    assert failed == "| resnet8 | float32 | 4 | torch_eager | ended with 1: a / b | | |"
    assert {line.count(" |") for line in (ours, failed)} == {len(bench.HEAD)}
    torch = bench.compare([row("torch_eager", [2.0])])[0]
    assert bench.table_row(torch).endswith("| 2.0 (2.0 to 2.0) | 1.00 (1.00 to 1.00) | 0.50 GiB |")


def test_training_is_the_same_where_parameters_and_first_losses_are(bench: Any) -> None:
    ours = {"parameters": 1000, "first_losses": [4.0, 2.0]}
    assert bench.difference(ours | {"first_losses": [4.0003, 2.01]}, ours, 1e-4) is None
    assert bench.difference(ours | {"first_losses": [3.0]}, ours, 1e-4) is None
    assert bench.difference(ours, ours | {"first_losses": [3.0]}, 1e-4) is None
    said = bench.difference(ours | {"parameters": 1010}, ours, 1e-4)
    assert said == "has 1,010 parameters instead of 1,000"
    for losses in ([4.001, 2.0], [4.0, 2.03], [float("nan"), 2.0], [3.1]):
        assert bench.difference(ours | {"first_losses": losses}, ours, 1e-4).startswith("has the first losses [")


def test_a_cpu_is_measured_in_float32_and_a_gpu_in_three_precisions(bench: Any) -> None:
    on_cpu = list(bench.groups(bench.Arguments(), "cpu", Path("/w")))
    assert [(group[0].network, group[0].batch) for group in on_cpu] == [
        *(("resnet32", 128), ("densenet_bc_100_12", 64), ("resnet18", 16)),
        *(("resnet50", 8), ("mobilenet_v2", 16), ("shufflenet_v2_x0_5", 16)),
    ]
    rivals = ["torch_eager", "torch_channels_last", "torch_compile"]
    assert {tuple(one.variant for one in group) for group in on_cpu} == {("jaxclf", "jaxclf_cores", *rivals)}
    assert {(one.precision, one.checked) for group in on_cpu for one in group} == {("float32", 2)}
    first, *rest = bench.groups(bench.Arguments(batch_size=32), "gpu", Path("/w"))
    assert first[1] == bench.Contestant("resnet32", "jaxclf_8_steps", "float32", "gpu", 32, 8, "/w/resnet32.npz")
    assert [one.variant for one in first] == ["jaxclf", "jaxclf_8_steps", *rivals, "torch_cuda_graphs"]
    assert [group[0].precision for group in (first, *rest)] == ["float32", "tf32", "bfloat16"] * 6


def test_the_clock_starts_warm_and_stops_after_whole_calls(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now, parts = 0.0, []

    class Training:
        steps = 8

        def run(self, calls: int) -> None:
            nonlocal now
            now += calls * (10.0 if not parts else 0.5)  # the first call after a stop is slow
            parts.append(calls)

        def loss(self) -> float:
            return 2.5

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    found = bench.rate(Training(), 4, 10.0)
    assert parts == [1, 1] + [2] * 10
    assert found == {"images_per_second": 64.0, "step_ms": 62.5, "steps": 160, "loss": 2.5}
    monkeypatch.setattr(Training, "loss", lambda self: float("nan"))
    with pytest.raises(RunError, match="the loss is nan after 160 timed steps"):
        bench.rate(Training(), 4, 10.0)


class Fake:
    """Stands for a process; `bad` are variants that fail to start, `late` those that fail in the second round."""

    bad, late, events = "", "", []
    losses = {}

    def __init__(self, one: Any, *, limit: float, huge_pages: bool) -> None:
        if one.variant == self.bad:
            raise RunError(f"not done after {limit:g} s")
        self.name, self.count = one.variant, 0
        self.facts = {"parameters": 10, "first_losses": self.losses.get(one.variant, [4.0, 3.0])}

    def measure(self, seconds: float) -> dict[str, float]:
        self.events.append(self.name)
        self.count += 1
        if self.name == self.late and self.count == 2:
            raise RunError("ended with -9: it said nothing")
        return {"images_per_second": 1.0, "memory_bytes": 2}

    def close(self) -> None:
        self.events.append("closed")


def test_rounds_alternate_and_who_fails_is_left_out_and_named(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("jaxclf", "jaxclf_8_steps", "torch_eager", "torch_channels_last", "torch_compile")
    monkeypatch.setattr(bench, "Process", Fake)
    monkeypatch.setattr(Fake, "bad", "torch_compile")
    monkeypatch.setattr(Fake, "late", "torch_channels_last")
    monkeypatch.setattr(Fake, "losses", {"jaxclf_8_steps": [9.0]})
    monkeypatch.setattr(Fake, "events", [])
    rows = bench.measure([contestant(bench, name) for name in names], bench.Arguments(rounds=3, limit=60))
    assert [one["failed"] for one in rows] == [
        None,
        "has the first losses [9.0] instead of [3.5]",
        None,
        "ended with -9: it said nothing",
        "not done after 60 s",
    ]
    assert [len(one["rounds"]) for one in rows] == [3, 0, 3, 1, 0]
    there, back = ["jaxclf", "torch_eager", "torch_channels_last"], ["torch_channels_last", "torch_eager", "jaxclf"]
    assert Fake.events == [*there, *back, "jaxclf", "torch_eager", *["closed"] * 4]


def test_report_is_written_and_the_exit_code_says_that_something_failed(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("Process", Fake), ("write_weights", lambda *_: None), ("require_measurable", lambda *_: None)):
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "facts_of_the_machine", lambda: {"platform": "cpu"})
    monkeypatch.setattr(Fake, "events", [])
    report = tmp_path / "report.json"
    assert bench.main(["--quick", "--json", str(report)]) == 0
    assert [one["variant"] for one in json.loads(report.read_text())["rows"]] == [
        *("jaxclf", "jaxclf_cores", "torch_eager", "torch_channels_last", "torch_compile"),
    ]
    monkeypatch.setattr(Fake, "bad", "torch_compile")
    assert bench.main(["--quick", "--json", str(report)]) == 1
    assert json.loads(report.read_text())["rows"][4]["failed"] == "not done after 600 s"
    assert "| torch_compile | not done after 600 s | | |\n" in capsys.readouterr().out


@pytest.mark.usefixtures("torch_installed")
def test_what_cannot_work_is_refused_before_anything_starts(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "facts_of_the_machine", lambda: {"platform": "cpu"})
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("measured"))
    for given, said in {
        ("--networks", "resnet33"): "unknown network 'resnet33'; did you mean 'resnet32'",
        ("--networks",): "no network is given",
        ("--precisions", "tf32"): "unknown precision 'tf32'; did you mean 'float32'? Valid: bfloat16, float32\n",
        ("--variants", "torch_eagre"): "unknown variant 'torch_eagre'; did you mean 'torch_eager'",
        ("--rounds", "0", "--seconds", "inf", "--batch-size", "1"): "batch_size is 1, rounds is 0, seconds is inf; ",
    }.items():
        assert bench.main(list(given)) == 2
        assert capsys.readouterr().err.startswith(f"train_step: {said}")
    with pytest.raises(UsageError, match="JAX's device is a tpu, where PyTorch is not compared; it must be cpu or gpu"):
        bench.require_measurable(bench.Arguments(), "tpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"the comparison needs PyTorch: pip install -e '\.\[parity\]'"):
        bench.require_measurable(bench.Arguments(), "cpu")


def test_process_that_ends_is_named_with_its_last_words(bench: Any) -> None:
    with pytest.raises(RunError, match=r"^ended with 1: KeyError: 'nobody'$"):
        bench.Process(contestant(bench, "nobody"), limit=60.0, huge_pages=False)


def test_process_that_takes_too_long_is_killed(bench: Any) -> None:
    with pytest.raises(RunError, match=r"^not done after 0\.1 s$"):
        bench.Process(contestant(bench), limit=0.1, huge_pages=False)


@pytest.mark.slow
def test_quick_run_trains_the_same_on_both_sides_and_measures_everyone(tmp_path: Path) -> None:
    pytest.importorskip("torch.nn", reason="the comparison needs PyTorch (the extra `parity`)")
    report = tmp_path / "report.json"
    # Threads of torch that wait for work spin, which beside other tests takes minutes.
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "train_step.py"), "--quick", "--json", str(report)],
        **{"capture_output": True, "text": True, "check": False, "timeout": 900},
        env=os.environ | {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert {"jax", "torch", "cpu", "device", "date", "load_average", "variables"} <= set(found["environment"])
    assert found["settings"]["rounds"] == 1
    rows = {one["variant"]: one for one in found["rows"]}
    assert list(rows) == ["jaxclf", "jaxclf_cores", "torch_eager", "torch_channels_last", "torch_compile"]
    ours = rows["jaxclf"]["first_losses"]
    assert 4.4 < ours[1] < ours[0] < 5.0  # of 100 classes, ln 100 = 4.6, and a step has been taken
    for variant, one in rows.items():
        assert (one["network"], one["batch"], one["precision"], one["failed"]) == ("resnet8", 32, "float32", None)
        assert one["parameters"] == 464 + 4_672 + 13_952 + 55_552 + 6_500  # stem, three blocks with option A, fc
        assert one["first_losses"] == pytest.approx(ours, rel=1e-4)
        assert one["images_per_second"]["median"] == one["rounds"][0]["images_per_second"] > 0
        assert one["rounds"][0]["steps"] >= 1
        assert one["rounds"][0]["loss"] < ours[1]
        assert 2**20 < one["memory_bytes"] < 2**32
        assert one["to_torch"]["median"] > 0
        assert one["start_seconds"] > 0
        assert f"| {variant} |" in done.stdout
    assert max(rows[name]["to_torch"]["median"] for name in rows if name.startswith("torch")) == 1.0
