"""benchmarks/input_pipeline.py: what its report says of given numbers, when it refuses to compare, and that it runs."""

import dataclasses
import importlib
import importlib.util
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclf.errors import RunError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FORMS = ("uint8, num_workers=0", "uint8, num_workers=1", "float, num_workers=0", "float, num_workers=1")
TORCH = [f"torch DataLoader, {form}" for form in FORMS]
EVERYONE = {
    "imagenet": [
        *("jaxclf stream, threads", "jaxclf stream, 1 process", "jaxclf stream, threads, fast, other pixels"),
        *(*TORCH, "tf.data, no antialias, other pixels", "tf.data, antialias, other pixels"),
    ],
    "cifar": ["jaxclf resident, float", *TORCH, "tf.data, uint8"],
    "cifar_png": ["jaxclf stream, threads", *TORCH],
}
NEEDED = ("torch", "torchvision", "tensorflow", "cv2", "skimage", "sklearn", "importlib_resources")
RATES = ("images_per_second_per_core", "images_per_cpu_second")
COSTS = ("step_ms", "fixed_ms", "path_alone_ms", "order_ms", "dispatch_ms", "share", "path_alone_share", "order_share")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("input_pipeline")


@pytest.fixture
def plan(bench: Any, tmp_path: Path) -> Any:
    return bench.Plan(str(tmp_path), (0,), small_images=40, batch=16, small_batch=16)


@pytest.fixture
def all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def group(bench: Any) -> list[Any]:
    return [
        bench.Contestant("imagenet", "ours", iter),
        bench.Contestant("imagenet", "torch a", iter, ("torch",), "uint8"),
        bench.Contestant("imagenet", "torch b", iter, ("torch",), "uint8"),
        bench.Contestant("imagenet", "torch c", iter, ("torch",), "float"),
        bench.Contestant("cifar", "ours", iter),
    ]


def test_ratio_is_taken_within_a_round_to_the_fastest_rival_of_that_round(bench: Any):
    assert bench.ratios([300.0, 100.0, 90.0], [[100.0, 100.0, 30.0], [150.0, 50.0, 45.0]]) == [2.0, 1.0, 2.0]
    assert bench.spread([2.0, 1.0, 4.0]) == {"rounds": [2.0, 1.0, 4.0], "median": 2.0, "min": 1.0, "max": 4.0}


def rounds(clock: list[float], cpu: list[float]) -> list[dict[str, float]]:
    return [dict(zip(RATES, both, strict=True)) for both in zip(clock, cpu, strict=True)]


@pytest.mark.usefixtures("all_installed")
def test_rows_compare_with_torch_on_the_same_set(bench: Any):
    found = {
        "imagenet: ours": rounds([600.0, 450.0, 500.0], [600.0, 600.0, 800.0]),
        "imagenet: torch a": rounds([400.0, 500.0, 450.0], [500.0, 400.0, 100.0]),
        "imagenet: torch b": rounds([500.0, 400.0, 400.0], [400.0, 300.0, 200.0]),
        "imagenet: torch c": rounds([200.0, 150.0, 250.0], [1.0, 1.0, 1.0]),
        "cifar: ours": rounds([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]),
    }
    ours, first, _, _, alone = bench.compare(group(bench), found)
    assert ours["images_per_second_per_core"]["median"] == 500.0
    assert ours["images_per_cpu_second"]["rounds"] == [600.0, 600.0, 800.0]
    assert ours["to_torch_uint8"]["rounds"] == pytest.approx([1.2, 0.9, 500 / 450])
    assert ours["to_torch_uint8"]["median"] == pytest.approx(500 / 450)
    assert ours["to_torch_float"]["rounds"] == [3.0, 3.0, 2.0]
    assert ours["to_torch_uint8_by_cpu_time"]["rounds"] == [1.2, 1.5, 4.0]
    assert first["to_torch_uint8"]["rounds"] == [0.8, 1.0, 1.0]
    assert "to_torch_uint8" not in alone


def test_table_names_what_is_not_installed(bench: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else name)
    found = {"imagenet: ours": rounds([1500.0, 500.0, 1000.0], [1.0, 1.0, 1.0])}
    _, ours, torch = bench.table(bench.compare(group(bench)[:2], found))
    assert ours.split() == ["imagenet", "ours", "1,000", "(500-1,500)", "-", "-", "-"]
    assert torch.split() == ["imagenet", "torch", "a", "not", "installed:", "torch"]


def test_step_lines_hold_medians_and_ranges(bench: Any):
    costs = {name: bench.spread([0.5, 0.25, 1.0]) for name in COSTS}
    text = "\n".join(bench.step_lines(costs, 128, "resnet20"))
    assert "batch 128" in text
    assert text.count("0.500 ms (0.250 to 1.000)") == 5
    assert text.count("50.00 % (25.00 to 100.00)") == 3


@pytest.mark.usefixtures("all_installed")
def test_everyone_is_measured_by_name(bench: Any):
    found = [(one.set, one.name) for one in bench.contestants(1)]
    assert found == [(which, name) for which, names in EVERYONE.items() for name in names]
    assert "imagenet: jaxclf stream, 2 processes" in [one.key for one in bench.contestants(2)]
    assert {one.form for one in bench.contestants(1) if "torch" in one.packages} == {"uint8", "float"}


def test_what_was_read_ahead_is_outside_the_clock(bench: Any, monkeypatch: pytest.MonkeyPatch):
    now = 0.0

    def batches() -> Iterator[int]:
        nonlocal now
        for number in itertools.count():
            now += 0.0 if number < 12 else 0.5
            yield 10

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    monkeypatch.setattr(bench, "cpu_seconds", lambda: 2 * now)
    assert bench.rate(batches(), 2.0, cores=2) == {"images_per_second_per_core": 10.0, "images_per_cpu_second": 10.0}


def test_cpu_time_is_that_of_the_process_group(bench: Any):
    script = """
import subprocess, sys, time
from input_pipeline import cpu_seconds
burn = "import time; list(iter(lambda: time.process_time() < 0.5, False)); print(flush=True); input()"
worker = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
worker.stdout.readline()
print(cpu_seconds() - time.process_time())
worker.communicate("now it may end")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        **{"cwd": BENCHMARKS, "capture_output": True, "text": True, "check": True, "process_group": 0, "timeout": 60},
    )
    assert 0.4 < float(done.stdout) < 0.7


def test_rounds_are_interleaved_and_all_processes_closed(bench: Any, plan: Any, monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []

    class Process:
        def __init__(self, key: str, plan: Any) -> None:
            self.key = key

        def measure(self, seconds: float) -> Any:
            events.append(self.key)
            return seconds

        def close(self) -> None:
            events.append("closed")

    monkeypatch.setattr(bench, "Process", Process)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else name)
    found = bench.measure(group(bench), plan, 2, 0.5)
    assert found == {"imagenet: ours": [0.5, 0.5], "cifar: ours": [0.5, 0.5], bench.STEP: [0.5, 0.5]}
    assert events == ["imagenet: ours", "cifar: ours", bench.STEP] * 2 + ["closed"] * 3


@pytest.mark.usefixtures("all_installed")
def test_other_pixels_end_it_before_anything_is_measured(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    image = np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(bench, "write_images", lambda *_: None)
    monkeypatch.setattr(bench, "pixel_pairs", lambda _: iter([("imagenet", "a.JPEG", image, image)]))
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(bench, "identical", lambda *_: False)
    report = tmp_path / "report.json"
    assert bench.main(["--quick", "--directory", str(tmp_path), "--json", str(report)]) == 2
    assert not report.exists()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "input_pipeline: imagenet: our pixels of a.JPEG are not torchvision's, so there is nothing to compare\n"
    )


def test_images_are_the_same_only_to_the_last_bit(bench: Any):
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert bench.check_pixels([("cifar", "0", image, image.copy()), ("cifar", "1", image, image)]) == {"cifar": 2}
    assert not bench.identical(image, image ^ np.uint8(1))
    assert not bench.identical(image, image.astype(np.int32))
    assert not bench.identical(image, image[:1])


def test_arguments_out_of_range_are_refused_together(bench: Any, capsys: pytest.CaptureFixture[str]):
    assert bench.main(["--cores", "0", "--rounds", "0", "--seconds", "0"]) == 2
    assert capsys.readouterr().err.startswith("input_pipeline: cores is 0, rounds is 0, seconds is 0.0; cores must be")


def test_process_that_ends_is_named_with_its_last_words(bench: Any, plan: Any):
    with pytest.raises(RunError, match="nobody: the process ended: StopIteration"):
        bench.Process("nobody", plan)


def test_small_images_are_written_once(bench: Any, plan: Any, monkeypatch: pytest.MonkeyPatch):
    synthetic = importlib.import_module("synthetic_imagenet")
    for name in ("build", "write_folder"):
        monkeypatch.setattr(synthetic, name, lambda *_, **__: None)
    bench.write_images(plan, {})
    images, labels = bench.small_images(plan)
    assert images.shape == (40, 32, 32, 3)
    files = sorted(plan.png.glob("train/*/*.png"), key=lambda file: file.name)
    assert [int(file.parent.name) for file in files] == labels.tolist()
    assert np.array_equal(np.asarray(bench.Image.open(files[7])), images[7])
    assert len(list(plan.png.glob("test/*/*.png"))) == 10
    monkeypatch.setattr(bench, "small_images", None)  # making them again would raise
    bench.write_images(plan, {})


def test_sampler_shows_every_image_once_an_epoch_without_end(bench: Any):
    drawn = list(itertools.islice(bench.Endless(5, np.random.default_rng(0).permutation), 15))
    epochs = [drawn[:5], drawn[5:10], drawn[10:]]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3
    assert len({tuple(epoch) for epoch in epochs}) > 1


TOGETHER = """
import json, sys
import input_pipeline as bench
library, plan = sys.argv[1], bench.Plan(**json.loads(sys.argv[2]))
for one in bench.contestants(1):
    if one.name.startswith(library):
        batches = one.open(plan)
        print(json.dumps([one.key, bench.rate(batches, 0.1, cores=1)]))
        batches.close()
"""
"""Contestants of one library in one process, which imports it once."""


@pytest.mark.slow
def test_quick_run_measures_everyone(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (make full)")
    own, process, found = (bench.STEP, f"imagenet: {TORCH[-1]}"), bench.Process, {}

    class Shared:
        def __init__(self, key: str, plan: Any) -> None:
            self.key, library = key, key.split()[1]
            if library not in found:
                command = [sys.executable, "-c", TOGETHER, library, json.dumps(dataclasses.asdict(plan))]
                given = {"cwd": BENCHMARKS, "capture_output": True, "text": True, "process_group": 0, "timeout": 600}
                done = subprocess.run(command, check=False, **given)
                assert done.returncode == 0, done.stderr
                found[library] = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))

        def measure(self, seconds: float) -> Any:
            return found[self.key.split()[1]][self.key]

        def close(self) -> None:
            pass

    monkeypatch.setattr(bench, "Process", lambda key, plan: (process if key in own else Shared)(key, plan))
    file = tmp_path / "report.json"
    assert bench.main(["--quick", "--directory", str(tmp_path / "set"), "--json", str(file)]) == 0
    said, report = capsys.readouterr().out, json.loads(file.read_text())
    assert report["same_pixels"] == {"imagenet": 128, "cifar_png": 128, "cifar": 128}  # 64 images in two crops each
    named = {which: [row["name"] for row in report["contestants"] if row["set"] == which] for which in EVERYONE}
    assert named == EVERYONE
    for row in report["contestants"]:
        assert row["missing"] == []
        for column in (*RATES, "to_torch_uint8", "to_torch_float", "to_torch_uint8_by_cpu_time"):
            values = row[column]
            assert len(values["rounds"]) == 1
            assert values["rounds"][0] == values["median"] == values["min"] == values["max"] > 0
        assert row["name"] in said
    assert set(report["resident_step"]) == set(COSTS)
    assert all(report["resident_step"][name]["median"] > 0 for name in COSTS if name.endswith("_ms"))
    assert {"jax", "torch", "torchvision", "cpu", "cpu_cores", "date", "load_average"} <= set(report["environment"])
    assert {"cores", "rounds", "seconds", "batch", "small_batch"} <= set(report["settings"])
