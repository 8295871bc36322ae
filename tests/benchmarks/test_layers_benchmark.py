"""benchmarks/layers.py: what it refuses, what it compares, and that it runs."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxclf.errors import RunError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("layers")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--layers", "attention"], "layers: no layer with a form of its own on a cpu begins with attention; layers: "),
        (["--batch", "0", "--seconds", "0"], "layers: batch is 0, seconds is 0.0; batch and rounds must be 1 or more"),
    ],
)
def test_arguments_that_cannot_work_are_refused(
    bench: Any, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(given) == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_form_that_computes_something_else_is_not_timed(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Callable[[str], dict[str, Any]] = bench.forms
    name = "conv 1x1, 7x7x320 to 1280"
    monkeypatch.setattr(
        bench, "forms", lambda name: plain(name) | {"jaxclf": lambda x, k: 1.01 * plain(name)["XLA"](x, k)}
    )
    with pytest.raises(RunError, match=f"{name}: the forms differ by "):
        bench.passes(name, 1, "float32")


@pytest.mark.parametrize(
    "name", ["batch_norm and ReLU, 112x112x64", "max_pool 3x3 / 2, 112x112x64", "conv 7x7 / 2 of images"]
)
def test_what_a_gpu_measures_can_be_compiled(bench: Any, name: str) -> None:
    with jax.numpy_rank_promotion("allow"):
        calls = bench.passes(name, 1, "bfloat16")
        both = [calls[form, "forward_backward"]() for form in bench.FORMS]
    assert [len(one) for one in both] == [{"batch_norm": 4}.get(name.split()[0], 2)] * 2  # images take no gradient


def test_it_measures_what_this_platform_compiles(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    with jax.numpy_rank_promotion("allow"):  # tests refuse it, and a benchmark's plain form uses it
        given = ["--layers", "conv 1x1, 7x7", "depthwise", "--batch", "1", "--rounds", "2", "--seconds", "0.001"]
        assert bench.main([*given, "--json", str(report)]) == 0
    found, table = json.loads(report.read_text()), capsys.readouterr().out
    assert {"jax", "cpu", "device", "date", "load_average"} <= set(found["environment"])
    assert [row["layer"] for row in found["rows"]] == ["conv 1x1, 7x7x320 to 1280", "depthwise 3x3, 56x56x144"]
    for row in found["rows"]:
        assert f"| {row['layer']} | 1 | " in table
        for one in ("forward", "forward_backward"):
            theirs, ours = (row[one][form]["rounds"] for form in ("XLA", "jaxclf"))
            assert row[one]["ratio"]["rounds"] == [a / b for a, b in zip(theirs, ours, strict=True)]
            assert min(theirs + ours) > 0
