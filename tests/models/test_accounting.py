"""The thesis's counted tables, and `jaxclf summary`."""

import json
from pathlib import Path

import pytest

from jaxclf.cli.main import main
from jaxclf.models.classifier import create_model
from jaxclf.models.count import count

POOLS = ("average", "max")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "verdict", "row"),
    [
        (
            "table_5_5_savings",
            "12 of 12 printed numbers are reproduced to the printed digits",
            "| shufflenet_v2_x0_5, 102 classes | 446,342 | – | 162,822 | – | 63.52 | 63.52 |",
        ),
        (
            "table_6_1",
            "16 of 16 printed numbers are reproduced to the printed digits",
            "| resnet50 | 4,121,924,096 | 4,121,924,096 | 118,013,952 | 118,013,952 "
            "| 2,048,000 | 2,048,000 | 0.05 | 0.05 |",
        ),
        (
            "figure_1_1",
            "Source: Z. Qian",
            "| mobilenet_v2 | 3,504,872 | – | 1,281,000 | – | 36.55 | – |",
        ),
    ],
)
def test_a_counted_table_is_rendered(name: str, verdict: str, row: str, tmp_path: Path) -> None:
    assert main(["table", str(EXPERIMENTS / f"{name}.py"), "--workdir", str(tmp_path)]) == 0
    text = (tmp_path / "table.md").read_text()
    assert verdict in text
    assert row in text
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    assert ("✓" in page) == (name != "figure_1_1")
    assert "≠" not in page


def test_summary_prints_layers_and_totals_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "resnet18", "--num-classes", "512", "--head", "orthogonal", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["totals"]["trainable"] == 11_177_024  # the reference th_rn18_512_orthogonal_fc
    assert summary["totals"]["fixed"] == 512 * 512
    first = summary["layers"][0]
    assert (first["path"], first["output"], first["macs"]) == ("backbone/conv1", [112, 112, 64], 118_013_952)


def test_a_global_maximum_takes_as_many_elements_as_an_average() -> None:
    average, largest = (count(create_model("resnet20", num_classes=10, pool=pool), (32, 32, 3)) for pool in POOLS)
    assert largest.total("flops_2020") == average.total("flops_2020")


def test_summary_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "lenet5", "--num-classes", "10", "--channels", "1"]) == 0
    text = capsys.readouterr().out
    assert "backbone/features_0" in text
    assert "44,426" in text
    assert "281,640" in text


def test_summary_refuses_what_cannot_be_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "resnet18", "--head", "identity"]) == 2
    assert "identity gives each class a feature of its own" in capsys.readouterr().err
