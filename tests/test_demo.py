"""What the README promises of its two real runs: the demo's table, and an epoch of Fashion-MNIST through TFDS."""

import importlib.util
import json
import statistics
from pathlib import Path

import pytest

from jaxclf.__main__ import main

ROOT = Path(__file__).parents[1]
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


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs the prepare extra (TensorFlow)")
@pytest.mark.filterwarnings("default:.*another checksum")
def test_fashion_mnist_trains_an_epoch_through_tfds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data-dir", str(tmp_path / "tfds")]
    assert main(["data", "prepare", "fashion_mnist", *data, "--downloads", str(FASHION)]) == 0
    assert "another checksum than TFDS knows, but the right content" in capsys.readouterr().err  # recompressed
    config = str(ROOT / "configs" / "fashion_mnist.py")
    run = ["--workdir", str(tmp_path / "run"), "--data.data-dir", str(tmp_path / "tfds")]
    assert main(["train", config, *run]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["step"] == 469  # 60,000 images in batches of 128, the last one smaller
    assert result["top1"] > 75
