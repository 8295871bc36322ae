"""benchmarks/attribution.py: that it runs, and what it refuses."""

import importlib
import json
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
        yield importlib.import_module("attribution")


def test_it_prints_a_line_a_network_and_keeps_the_numbers(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--networks", "tests.tiny:Tiny", "--side", "8", "--rounds", "2", "--json", str(tmp_path / "found.json")]
    assert bench.main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| network | maps | grad_cam | grad_cam_plus_plus | gradient |"
    assert lines[2].startswith("| tests.tiny:Tiny | ")
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["costs"]["tests.tiny:Tiny"]) == ["maps", "grad_cam", "grad_cam_plus_plus", "gradient"]
    assert found["settings"]["rounds"] == 2


def test_readme_has_the_committed_costs(bench: Any) -> None:
    found = json.loads((BENCHMARKS / "results" / "attribution_cpu.json").read_text())
    readme = (BENCHMARKS.parent / "README.md").read_text()
    assert len(found["costs"]) == 3
    assert all(bench.table_row(name, costs) in readme for name, costs in found["costs"].items())


def test_what_cannot_be_measured_is_refused(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--rounds", "0"]) == 2
    assert "rounds 0: all must be 1 or more" in capsys.readouterr().err
    assert bench.main(["--networks", "resnet17"]) == 2
    assert "unknown backbone 'resnet17'" in capsys.readouterr().err
