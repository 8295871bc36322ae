"""The counted tables, and `jaxclf summary`."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from jaxclf.cli.main import main
from jaxclf.models.classifier import create_model
from jaxclf.models.count import count
from jaxclf.report.experiment import CountTable
from tests.tiers import quick

POOLS = ("average", "max")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PRINTED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "counting_tools.json").read_text()
)["networks"]
"""What thop, ptflops, torchsummary and PyTorch's own counter say of torchvision's networks."""
ALEXNET = {
    # side of the output, channels in, side of the kernel, channels out
    "backbone/features_0": (55, 3, 11, 64),  # (224 + 2 * 2 - 11) // 4 + 1
    "backbone/features_3": (27, 64, 5, 192),  # the first pool leaves (55 - 3) // 2 + 1
    "backbone/features_6": (13, 192, 3, 384),
    "backbone/features_8": (13, 384, 3, 256),
    "backbone/features_10": (13, 256, 3, 256),
    "backbone/classifier_1": (1, 256, 6, 4096),  # 6 x 6 positions, flattened
    "backbone/classifier_4": (1, 4096, 1, 4096),
    "head": (1, 4096, 1, 1000),
}


def test_alexnet_is_counted_as_by_hand() -> None:
    counted = count(create_model("alexnet", num_classes=1000), (224, 224, 3))
    layers = {layer.path: layer for layer in counted.layers if layer.trainable}
    assert list(layers) == list(ALEXNET)
    for path, (side, inputs, kernel, outputs) in ALEXNET.items():
        weights, places = inputs * kernel**2 * outputs, side**2
        assert layers[path].trainable == weights + outputs, path
        assert layers[path].macs == weights * places, path
        # A sum of n products takes n - 1 additions, and the bias one more.
        assert layers[path].flops == places * outputs * (2 * inputs * kernel**2 - 1 + 1), path
    assert counted.total("trainable") == 61_100_840
    assert counted.total("macs") == 714_188_480
    assert counted.total("flops") == 1_428_376_960


@pytest.mark.parametrize("name", quick(PRINTED, "alexnet"))
def test_each_convention_counts_what_its_tool_prints(name: str) -> None:
    printed = PRINTED[name]
    options: dict[str, Any] = {"auxiliary": False} if name in ("googlenet", "inception_v3") else {}
    options |= {"head": "identity", "maps": 1000} if name == "squeezenet1_1" else {}
    model = create_model(name, num_classes=1000, **options)
    shape = (model.backbone.image_size, model.backbone.image_size, 3)
    counted = count(model, shape)
    assert counted.total("trainable") == printed["parameters"]
    for convention in printed.keys() & {"flops", "thop", "flops_2020"}:
        assert counted.total(convention) == printed[convention], convention
    if printed.get("megabytes"):
        assert [f"{size:.2f}" for size in counted.megabytes(shape, 1)] == printed["megabytes"]


def test_summary_counts_under_one_convention(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--num-classes", "10", "--channels", "1", "--convention"]
    assert main(["summary", "lenet5", *options, "thop"]) == 0
    text = capsys.readouterr().out
    assert "thop" in text
    assert "macs" not in text
    assert main(["summary", "lenet5", *options, "torchsummary", "--batch-size", "1024"]) == 0
    text = capsys.readouterr().out
    # 28 * 28 values of four bytes, 1024 times; 44,426 parameters do not depend on the batch.
    assert [line.split("│")[2].strip() for line in text.splitlines() if " MB for " in line][::2] == ["3.06", "0.17"]
    for given in (["macs", "--batch-size", "2"], ["torchsummary", "--batch-size", "0"]):
        assert main(["summary", "lenet5", *options, *given]) == 2
    said = capsys.readouterr().err
    assert "--batch-size is for --convention torchsummary; the convention is macs" in said
    assert "--batch-size is 0 but must be at least 1" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "verdict", "row"),
    [
        (
            "table_5_5_savings",
            "12 of 12 printed numbers are reproduced to the printed digits",
            "| shufflenet_v2_x0_5, 102 classes | 446,342 | 162,822 | 63.52 | 63.52 |",
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
            "| mobilenet_v2 | 3,504,872 | 1,281,000 | 36.55 |",
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


def savings(*names: str) -> CountTable:
    spec = importlib.util.spec_from_file_location("savings_of_the_zoo", EXPERIMENTS / "savings_of_the_zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_table(names)


ROWS = {
    "lenet5": (1, 28),
    "resnet8": (3, 32),
    "nin": (3, 32),
    "vgg11": (3, 224),
    "googlenet_paper": (3, 224),
    "densenet_bc_100_12": (3, 32),
}
"""Channels and sides of images, of a network of each kind: other layers lost, by birth, auxiliary, without maps."""


@pytest.mark.parametrize("name", quick(ROWS, "lenet5"))
def test_savings_of_a_network_traced_once_are_those_of_its_counts_and_of_the_committed_page(name: str) -> None:
    (label, cells), *others = savings(name).rows
    assert not others
    channels, side = ROWS[name]
    numbers: list[Any] = [cell.ours for cell in cells]
    for place, classes in enumerate((10, 100, 1000)):
        saved, (learned, identity) = numbers[place], numbers[3 + 2 * place : 5 + 2 * place]
        maps = {} if name.startswith("densenet") else {"maps": classes}
        assert learned == trainable(name, classes, channels, side)
        if (name, classes) == ("densenet_bc_100_12", 1000):  # 342 features
            assert (saved, identity) == (None, None)
            continue
        assert identity == trainable(name, classes, channels, side, head="identity", **maps)
        assert saved == pytest.approx(100 * (1 - identity / learned), abs=1e-9)
    row = f"| {label} | {' | '.join(cell.text for cell in cells)} |"
    assert row in (EXPERIMENTS / "results" / "savings_of_the_zoo.md").read_text().splitlines()


def trainable(name: str, classes: int, channels: int, side: int, **options: Any) -> int:
    model = create_model(name, num_classes=classes, auxiliary=False, **options)
    return count(model, (side, side, channels)).total("trainable")


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
