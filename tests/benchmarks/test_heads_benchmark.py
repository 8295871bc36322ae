"""benchmarks/heads.py: what it says of given times, what it refuses, and that it runs."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclf.errors import UsageError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("heads")


def test_ratios_are_taken_within_a_round(bench: Any) -> None:
    found = bench.compared([1.0, 3.0, 8.0], [2.0, 2.0, 4.0])
    assert found["to_dense"] == {"rounds": [0.5, 1.5, 2.0], "median": 1.5, "min": 0.5, "max": 2.0}
    row = {"size": 512, "head": "identity", "forward": found, "forward_backward": bench.compared([0.25], [1000.0])}
    assert bench.table_row(row) == "| 512 | identity | 3 (1 to 8) | 1.5 (0.5 to 2) | 0.25 (0.25 to 0.25) | " + (
        "0.00025 (0.00025 to 0.00025) |"
    )


def test_what_parts_from_the_dense_product_is_not_timed(bench: Any) -> None:
    dense = (np.array([1.0, -4.0]), {"x": np.array([2.0])})
    bench.check_equal((dense[0] + 0, dense[1]), dense, "hadamard, transform")
    for own in ((dense[0], {"x": np.array([2.1])}), (dense[0] * np.nan, dense[1])):
        with pytest.raises(UsageError, match="hadamard, transform parts from the dense product by "):
            bench.check_equal(own, dense, "hadamard, transform")


def test_arguments_that_cannot_work_are_refused_together(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--sizes", "1", "--rounds", "0"]) == 2
    assert capsys.readouterr().err.startswith("heads: sizes is (1,), rounds is 0; sizes must be 2 or more, ")


@pytest.mark.slow
def test_quick_run_measures_everyone(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(BENCHMARKS / "heads.py"), "--quick", "--json", str(report)],
        **{"capture_output": True, "text": True, "check": False, "timeout": 300},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert {"jax", "cpu", "device", "date", "load_average"} <= set(found["environment"])
    assert (found["settings"]["batch"], found["settings"]["sizes"]) == (256, [16])
    names = ["learned", "orthoplex, dense", "orthoplex, gather", "hadamard, dense", "hadamard, transform", "identity"]
    assert [row["head"] for row in found["rows"]] == names
    for row in found["rows"]:
        assert f"| 16 | {row['head']} |" in done.stdout
        assert all(row[kind]["ms"]["median"] > 0 for kind in ("forward", "forward_backward"))
    assert found["rows"][1]["forward"]["to_dense"]["median"] == 1.0
