"""What the README promises of its two real runs: the demo's table, and an epoch of Fashion-MNIST through TFDS."""

import dataclasses
import importlib.util
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from jaxclf import train
from jaxclf.cli.main import load, main
from jaxclf.tools import preparation

ROOT = Path(__file__).parents[2]
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


@pytest.mark.slow
def test_the_demo_answers_the_question(tmp_path: Path) -> None:
    experiment = str(ROOT / "experiments" / "digits_heads.py")
    assert main(["table", experiment, "--workdir", str(tmp_path), "--jobs", "2"]) == 0
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    top1 = {
        head: [record["top1"] for record in records if record["label"] == head]
        for head in ("learned", "orthogonal", "hadamard", "identity")
    }
    assert {head: len(values) for head, values in top1.items()} == dict.fromkeys(top1, 3)
    learned, identity = statistics.fmean(top1["learned"]), statistics.fmean(top1["identity"])
    assert learned > 97
    assert abs(identity - learned) < 1
    counts = {record["label"]: record["parameters"] for record in records}
    assert counts["learned"] == {"trainable": 75002, "fixed": 0, "statistics": 480}
    assert counts["orthogonal"] == {"trainable": 74362, "fixed": 640, "statistics": 480}
    page = (tmp_path / "index.html").read_text()
    assert "Digits under every head" in page
    assert "Class maps" in page


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TFDS directory with Fashion-MNIST, made by the real builder from Debian's files, which are recompressed."""
    if not FASHION.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs the prepare extra (TensorFlow)")
    directory = tmp_path_factory.mktemp("tfds")
    with pytest.warns(UserWarning, match="another checksum than TFDS knows, but the right content"):
        preparation.prepare("fashion_mnist", data_dir=directory, downloads=FASHION)
    return str(directory)


@pytest.mark.slow
def test_fashion_mnist_trains_an_epoch_through_tfds(tmp_path: Path, fashion: str) -> None:
    config = str(ROOT / "configs" / "fashion_mnist.py")
    run = ["--workdir", str(tmp_path / "run"), "--data.data-dir", fashion, "--run.epochs", "1"]
    run += ["--model.backbone", "lenet5"]  # seconds; the recipe's own network takes minutes
    assert main(["train", config, *run]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["step"] == 469  # 60,000 images in batches of 128, the last one smaller
    assert result["top1"] > 75


def committed(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "experiments" / "results" / name).read_text().splitlines()]


def test_the_committed_fashion_table_has_every_run_beside_its_twin() -> None:
    table = load(ROOT / "experiments" / "fashion_heads.py", "get_table")()
    expected = {(row.label, seed) for row in table.rows for seed in table.seeds}
    ours, twins = committed("fashion_heads.jsonl"), committed("fashion_heads_torch.jsonl")
    for records in (ours, twins):
        assert {(record["label"], record["seed"]) for record in records} == expected
        assert len(records) == len(expected)
    assert all("torch" in record["environment"] for record in twins)
    for record in ours:
        (twin,) = [other for other in twins if (other["label"], other["seed"]) == (record["label"], record["seed"])]
        assert record["parameters"] == twin["parameters"], record["label"]


LEARNED = ["lenet5 learned", "lenet5 orthogonal", "lenet5 hadamard", "lenet5 identity"]
"""ResNet-8's rows take minutes each; the committed table has them."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:hadamard")
@pytest.mark.parametrize("label", LEARNED)
def test_fashion_mnist_is_learned_as_by_the_twin(label: str, tmp_path: Path, fashion: str) -> None:
    table = load(ROOT / "experiments" / "fashion_heads.py", "get_table")()
    config = table.config(next(row for row in table.rows if row.label == label), 0)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=fashion))
    twins = [record["top1"] for record in committed("fashion_heads_torch.jsonl") if record["label"] == label]
    assert train(config, tmp_path, quiet=True).top1 == pytest.approx(statistics.fmean(twins), abs=3)
