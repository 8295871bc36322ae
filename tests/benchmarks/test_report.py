"""benchmarks/report.py: README's tables of speed are those of the committed results."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report() -> Iterator[Any]:
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("report")


def test_readmes_tables_are_those_of_the_committed_results(report: Any) -> None:
    assert report.main(check=True) == 0


def test_a_number_that_was_typed_by_hand_is_found_and_mended(report: Any) -> None:
    text = (ROOT / "README.md").read_text()
    forged = re.sub(r"(<!-- cpu: .*?\| ResNet-32 \| 128 \|) [\d.]+ ", r"\1 9999 ", text, count=1, flags=re.DOTALL)
    assert forged != text
    assert report.rendered(forged) == text


def test_a_table_without_a_place_is_named(report: Any) -> None:
    with pytest.raises(ValueError, match=r"must have one <!-- layers: benchmarks/report\.py --> and one <!-- end of"):
        report.rendered((ROOT / "README.md").read_text().replace("<!-- end of layers -->", ""))
