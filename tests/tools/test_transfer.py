"""`jaxclf probe`: the features of weights and runs, on their own images and on others."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.cli.main import main
from jaxclf.config import DataConfig, Probing
from jaxclf.data.datasets import resolve
from jaxclf.data.kinds import ResidentSet
from jaxclf.data.transforms import Preprocessing
from jaxclf.errors import UsageError
from jaxclf.intervals import student_half_width, wilson
from jaxclf.models.classifier import create_model
from jaxclf.tools.probe import Labelled, few_shot, linear_probe, nearest_neighbours
from jaxclf.tools.transfer import transfer
from jaxclf.training.loop import train
from jaxclf.training.weights import WeightRecord, Weights, read, write
from tests.models.drawn import drawn
from tests.training.runs import TINY, config

GREY = Preprocessing(8, 8, None, "bilinear", (0.3,), (0.4,))
RGB = Preprocessing(8, 8, None, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def weights(preprocessing: Preprocessing | None = GREY, *, channels: int = 1, head: str = "learned") -> Weights:
    """Tiny for seven classes, drawn."""
    model = create_model(TINY, num_classes=7, head=head)
    record = WeightRecord(TINY, 7, head=head, preprocessing=preprocessing)
    return Weights(model, drawn(model, 8, 8, channels), record)


@pytest.mark.slow
def test_the_command_says_in_the_same_bytes_what_the_features_of_a_weight_file_are_worth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights know seven classes and the images are of three."""
    given = weights()
    write(tmp_path / "w.safetensors", given)
    command = ["probe", "--weights", str(tmp_path / "w.safetensors"), "--data.dataset", "digits"]
    command += ["--data.classes", "3", "--neighbours", "3", "--shots", "2", "--draws", "4", "--seed", "5", "--json"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out == said
    dataset = resolve(DataConfig("digits", classes=3))
    assert isinstance(dataset, ResidentSet)
    parts = dataset.images().values()
    images = np.concatenate([part.images for part in parts]).astype(np.float32) / 255
    step = jax.jit(functools.partial(given.model.apply, method="logits_and_features"))
    features: Any = step(given.variables, jnp.asarray((images - np.float32(0.3)) / np.float32(0.4)))
    labels = [part.labels for part in parts]
    known, asked = map(Labelled, np.split(np.asarray(features[1]), [len(labels[0])]), labels)
    told = linear_probe(known).predict(asked.features), nearest_neighbours(known, asked.features, neighbours=3)
    hits, count = [int((answer == asked.labels).sum()) for answer in told], len(asked.labels)
    shares = few_shot(known, asked, 2, draws=4, seed=5)
    found = json.loads(said)
    linear, near, few = found["scores"]
    assert (found["train_images"], found["test_images"], found["num_classes"]) == (len(known.labels), count, 3)
    assert [one["classifier"] for one in found["scores"]] == [
        "linear probe",
        "3 nearest neighbours",
        "2 images a class",
    ]
    for one, number in ((linear, hits[0]), (near, hits[1])):
        low, high = wilson(number, count)
        assert (one["top1"], one["low"], one["high"]) == pytest.approx((100 * number / count, 100 * low, 100 * high))
    half, mean = student_half_width(shares), np.mean(shares)
    assert half is not None
    assert (few["top1"], few["low"]) == pytest.approx((100 * mean, 100 * (mean - half)))


@pytest.mark.slow
def test_a_run_is_probed_on_its_own_images_and_on_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(epochs=1), tmp_path, quiet=True)
    assert main(["probe", "--weights", str(tmp_path), "--shots", "1"]) == 0
    out = capsys.readouterr().out
    assert [line.rsplit("  ", 2)[0].strip() for line in out.splitlines()[1:4]] == [
        "linear probe",
        "20 nearest neighbours",
        "1 image a class",
    ]
    assert "1,352 training and 445 test images of digits, 8 features, Preprocessing(resize=8, crop=8" in out
    assert main(["probe", "--weights", str(tmp_path), "--data.dataset", "digits", "--shots", "1"]) == 0
    assert capsys.readouterr().out == out
    assert main(["probe", "--weights", str(tmp_path), "--data.classes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_classes"] == 2
    found = transfer(read(tmp_path), DataConfig("digit_pairs", classes=12), Probing(shots=(), neighbours=5))
    assert (found.train_images, found.test_images, len(found.scores)) == (1200, 480, 2)
    assert found.preprocessing.crop == 8  # the pairs are of 16x16 pixels
    assert all(100 / 12 < score.low < score.top1 < score.high for score in found.scores)


@pytest.mark.slow
def test_images_of_a_folder_are_probed(photo_folder: Path) -> None:
    found = transfer(weights(RGB, channels=3), DataConfig(f"folder:{photo_folder}"), Probing(shots=(5,), neighbours=3))
    assert (found.train_images, found.test_images, found.num_classes) == (32, 12, 4)
    assert found.scores[0].top1 > 50  # classes differ in their brightness


def test_what_cannot_be_probed_is_one_line(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, digits = DataConfig(f"folder:{photo_folder}"), DataConfig("digits")
    monkeypatch.delattr("jax.jit")  # all of it is found before anything is compiled
    with pytest.raises(
        UsageError, match=r"^a draw of 10 needs 10 training images of each class, but ant has 8, bee has"
    ):
        transfer(weights(RGB, channels=3), folder)
    with pytest.raises(UsageError, match="neighbours is 40 but must be from 1 to 32, the number of training images"):
        transfer(weights(RGB, channels=3), folder, Probing(shots=(1,), neighbours=40))
    with pytest.raises(UsageError, match="Conv3x3 stands before the pool, so there are no pooled features"):
        transfer(weights(head="conv3x3"), digits)
    for kept in (RGB, None):  # a bare file of a network for small images does not say how it wants them
        with pytest.raises(UsageError, match="the weights take images of 3 channels, but digits has 1"):
            transfer(weights(kept, channels=3), digits)
    with pytest.raises(UsageError, match=r"^draws is 1 but must be at least 2$"):
        transfer(weights(), digits, Probing(draws=1))
    with pytest.raises(UsageError, match=r"^seed is -1 but must be at least 0$"):
        transfer(weights(), digits, Probing(seed=-1))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, r"^params\.backbone\.bn2\.bias holds 1 of 8 values that are not finite$"),  # a ReLU may make it 0
        (3e38, r"^the features of 271 of 271 train images are not finite$"),  # the sum over positions is too large
    ],
)
def test_weights_and_features_that_are_not_finite_are_refused(value: float, said: str) -> None:
    broken = weights()
    broken.variables["params"]["backbone"]["bn2"]["bias"][0] = value
    with pytest.raises(UsageError, match=said):
        transfer(broken, DataConfig("digits", classes=2))


def test_only_a_run_has_images_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--weights", str(tmp_path / "w.safetensors")]) == 2
    assert capsys.readouterr().err == (
        f"jaxclf: {tmp_path}/w.safetensors is no run, whose data set would be own; give --data.dataset\n"
    )
