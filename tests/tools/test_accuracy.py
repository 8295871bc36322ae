"""The accuracy of weights on a data set is that of the run that made them, and of prediction file by file."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxclf.cli.main import main
from jaxclf.config import DataConfig
from jaxclf.data.transforms import Preprocessing
from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.tools.accuracy import accuracy
from jaxclf.tools.predict import predict
from jaxclf.training.loop import train
from jaxclf.training.run_directory import Result
from jaxclf.training.weights import WeightRecord, Weights, read
from tests.models.drawn import drawn
from tests.training.runs import TINY, config

CROPPED = Preprocessing(None, 8, 2, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
"""A preprocessing that no config has: the crop is cut before it is resized."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(config(epochs=1), workdir, quiet=True)


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Tiny for four classes of RGB images, drawn."""
    model = create_model(TINY, num_classes=4)
    return Weights(model, drawn(model, 8, 8, 3), WeightRecord(TINY, 4, preprocessing=CROPPED))


def test_the_weights_of_a_run_have_its_accuracy(trained: tuple[Path, Result]) -> None:
    workdir, result = trained
    found = accuracy(read(workdir), DataConfig("digits"))
    assert (found.images, found.top1, found.top5, found.per_class) == (
        445,
        result.top1,
        result.top5,
        result.per_class,
    )
    assert found.loss == pytest.approx(result.loss, rel=1e-5)
    held_out = accuracy(read(workdir), DataConfig("digits", validation=0.1), split="validation")
    assert held_out.images == 130


def test_images_of_a_folder_are_prepared_as_is_kept_with_the_weights(photo_folder: Path, weights: Weights) -> None:
    found = accuracy(weights, DataConfig(f"folder:{photo_folder}"))
    files = sorted((photo_folder / "val").rglob("*.png"))
    answers = predict(weights.model, weights.variables, CROPPED, files)
    names = ["ant", "bee", "cat", "dog"]
    hits = [
        answer.guesses[0].index == names.index(file.parent.name) for file, answer in zip(files, answers, strict=True)
    ]
    assert (found.images, found.preprocessing) == (12, CROPPED)
    assert found.top1 == pytest.approx(100 * np.mean(hits))


def test_what_cannot_be_evaluated_is_one_line(photo_folder: Path, weights: Weights, tmp_path: Path) -> None:
    folder = DataConfig(f"folder:{photo_folder}")
    with pytest.raises(UsageError, match="the weights know 4 classes, but digits has 10"):
        accuracy(weights, DataConfig("digits"))
    with pytest.raises(UsageError, match="the weights take images of 3 channels, but digits has 1"):
        accuracy(weights, DataConfig("digits", classes=4))
    with pytest.raises(UsageError, match="there is no split 'validation'; there: train, test"):
        accuracy(weights, folder, split="validation")
    broken: dict[str, Any] = {**weights.variables, "params": {**weights.variables["params"]}}
    broken["params"]["head"] = {"kernel": jnp.full((8, 4), jnp.inf), "bias": jnp.zeros(4)}
    with pytest.raises(UsageError, match=r"the loss of the weights on folder:.* is nan"):
        accuracy(Weights(weights.model, broken, weights.record), folder)


def test_the_command_takes_a_run_or_weights(
    trained: tuple[Path, Result], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    workdir, result = trained
    assert main(["eval", "--weights", str(workdir), "--data.dataset", "digits"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"test top-1 {result.top1:.2f} %  top-5 {result.top5:.2f} %  loss {result.loss:.4f}")
    assert "445 images of digits, Preprocessing(" in out
    for flags, named in ((["--loader.threads", "2"], "--loader"), (["--data.image-size", "9"], "image_size given")):
        assert main(["eval", "--weights", str(workdir), *flags]) == 2
        assert named in capsys.readouterr().err
    assert main(["eval", "--workdir", str(workdir), "--split", "train", "--head", "learned"]) == 2
    assert capsys.readouterr().err == "jaxclf: eval --workdir does not use --split, --head\n"
    for args in ([], ["--weights", str(workdir), "--workdir", str(workdir)]):
        assert main(["eval", *args]) == 2
        assert "eval needs --workdir DIR, a run, or --weights FILE, and not both" in capsys.readouterr().err


def test_predict_answers_in_json_for_paths_on_stdin(
    trained: tuple[Path, Result],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    digit = tmp_path / "digit.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(digit)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{digit}\n\n{tmp_path}/none.png\n"))
    assert main(["predict", "--weights", str(trained[0]), "--json", "--top", "2", "-"]) == 2
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert (first["file"], first["error"], len(first["guesses"])) == (str(digit), None, 2)
    assert first["guesses"][0].keys() == {"index", "name", "probability", "logit"}
    assert (second["error"], second["guesses"]) == ("No such file or directory", [])
    assert err.startswith("jaxclf: 1 of 2 files could not be read")
    assert main(["predict", "--weights", str(trained[0])]) == 2
    assert capsys.readouterr().err.startswith("jaxclf: there is no image to classify: give files, or -")
