"""Image files to answers: pixels as torchvision makes them on PIL images, files of every mode, broken files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxclf.data.decoding import decode
from jaxclf.data.transforms import (
    EFFICIENTNET_LITE,
    TORCHVISION,
    Preprocessing,
    center_crop,
    default_preprocessing,
    open_image,
    padded_center_crop,
    preprocess,
    resize,
)
from jaxclf.errors import UsageError
from jaxclf.models.classifier import Classifier, create_model
from jaxclf.tools.predict import predict

SMALL = Preprocessing(32, 32, None, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model() -> Classifier:
    return create_model("resnet8", num_classes=10)


@pytest.fixture(scope="module")
def variables(model: Classifier) -> dict[str, Any]:
    return jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))


def test_resize_sets_the_short_side_and_rounds_the_long_one_down() -> None:
    assert resize(picture(600, 400), 256).size == (384, 256)
    assert resize(picture(400, 601), 256).size == (256, 384)
    assert resize(picture(333, 500), 224).size == (224, 336)
    assert resize(picture(10, 25), 20).size == (20, 50)
    same = picture(256, 300)
    assert resize(same, 256) is same


def test_center_crop_rounds_half_to_even_and_pads_with_zeros() -> None:
    pixels = np.arange(7 * 9, dtype=np.uint8).reshape(7, 9)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(np.asarray(center_crop(image, 4)), pixels[2:6, 2:6])  # round(1.5) = round(2.5) = 2
    padded = np.asarray(center_crop(image, 10))
    np.testing.assert_array_equal(padded[1:8, 0:9], pixels)
    assert padded.sum() == pixels.sum()


def test_padded_center_crop_takes_seven_eighths_of_the_short_side() -> None:
    image = picture(600, 401)  # 224/256 of 401 is 350.875
    result = padded_center_crop(image, 224, 32)
    expected = image.crop((125, 26, 475, 376)).resize((224, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))


def test_the_input_is_scaled_to_one_then_normalised() -> None:
    image = Image.new("RGB", (224, 224), (127, 255, 0))
    values = preprocess(image, EFFICIENTNET_LITE)
    assert (values.shape, values.dtype) == ((224, 224, 3), np.float32)
    np.testing.assert_allclose(values[5, 5], [0.0, 1.0, -127 / 128], atol=1e-6)
    np.testing.assert_allclose(preprocess(image, TORCHVISION)[0, 0], [0.05693, 2.42857, -1.80444], atol=1e-5)
    grey = Preprocessing(None, 28, None, "bilinear", (0.0,), (1.0,))
    assert preprocess(Image.new("L", (28, 28), 51), grey)[3, 4].tolist() == [np.float32(0.2)]


def test_preprocessing_survives_json() -> None:
    for values in (TORCHVISION, EFFICIENTNET_LITE, SMALL):
        assert Preprocessing.from_dict(json.loads(json.dumps(dataclasses.asdict(values)))) == values


def test_faults_of_preprocessing_are_listed_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        Preprocessing(256, 0, 32, "bilinear", (0.5, 0.5), (0.5, 0.0))
    for part in ("crop is 0", "mean is (0.5, 0.5)", "std is (0.5, 0.0)", "resize is 256 beside crop_padding 32"):
        assert part in str(caught.value)
    with pytest.raises(UsageError, match="it needs"):
        Preprocessing.from_dict({"crop": 224})


def test_defaults_are_those_of_the_published_weights() -> None:
    def default(name: str) -> Preprocessing | None:
        return default_preprocessing(create_model(name, num_classes=10).backbone)

    assert default("resnet50") == default("vgg16") == default("mobilenet_v2") == TORCHVISION
    assert default("efficientnet_lite0") == EFFICIENTNET_LITE
    assert default("efficientnet_lite2") == dataclasses.replace(EFFICIENTNET_LITE, crop=260)
    assert default("efficientnet_b2") == dataclasses.replace(TORCHVISION, resize=288, crop=288, interpolation="bicubic")
    assert default("inception_v3") == Preprocessing(342, 299, None, "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert default("googlenet") == dataclasses.replace(TORCHVISION, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert default("bninception") is default("googlenet_paper") is default("shufflenet_v2_x1_0_megvii") is None
    assert default("resnet20") is None
    assert default("lenet5") is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file per mode and kind, all of the same grey ramp, 40x30."""
    path = tmp_path_factory.mktemp("images")
    ramp = np.tile(np.arange(40, dtype=np.uint8) * 6, (30, 1))
    grey = Image.fromarray(ramp)
    grey.save(path / "grey.png")
    grey.convert("RGB").save(path / "rgb.png")
    grey.convert("P").save(path / "palette.png")
    grey.convert("P").save(path / "palette.gif", transparency=3)
    grey.convert("P").save(path / "transparent.png", transparency=bytes(range(256)))
    grey.convert("RGBA").save(path / "rgba.png")
    grey.convert("LA").save(path / "la.png")
    grey.convert("CMYK").save(path / "cmyk.tif")
    for kind in ("png", "pgm", "tif"):
        Image.fromarray(ramp.astype(np.uint16) * 257).save(path / f"sixteen.{kind}")
    Image.fromarray(ramp.astype(np.int32)).save(path / "thirtytwo.tif")
    Image.fromarray(ramp > 100).save(path / "one.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    grey.rotate(90, expand=True).convert("RGB").save(path / "turned.png", exif=exif)
    whole = (path / "rgb.png").read_bytes()
    (path / "broken.png").write_bytes(whole[: len(whole) // 2])
    (path / "text.jpg").write_text("no image")
    Image.fromarray(ramp.astype(np.float32)).save(path / "floats.tif")
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("grey.png", "rgb.png", "palette.png", "palette.gif", "transparent.png"),
        *("rgba.png", "la.png", "cmyk.tif", "sixteen.png", "sixteen.pgm", "sixteen.tif"),
    ],
)
def test_every_mode_gives_the_same_pixels(folder: Path, name: str) -> None:
    expected = np.repeat(np.tile(np.arange(40) * 6, (30, 1))[..., None], 3, axis=2)
    image = open_image(folder / name, 3)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert open_image(folder / name, 1).mode == "L"


def test_a_broken_file_is_named_and_the_rest_answered(
    folder: Path, model: Classifier, variables: dict[str, Any]
) -> None:
    names = ["rgb.png", "broken.png", "text.jpg", "missing.png", "floats.tif", "grey.png", "thirtytwo.tif", ""]
    names = [str(folder / name) for name in names]
    results = predict(model, variables, SMALL, names, [f"class {index}" for index in range(10)], top=3)
    assert [result.file for result in results] == names
    errors = [
        "",
        "runcated",
        "no image format that PIL",
        "No such file",
        "floats, whose range",
        "",
        "32 bits",
        "directory",
    ]
    for result, error in zip(results, errors, strict=True):
        assert error in (result.error or "")
        assert (result.error is None) == (error == "")
        assert len(result.guesses) == (0 if error else 3)
    guess = results[0].guesses[0]
    assert guess.name == f"class {guess.index}"
    assert results[0].guesses == results[5].guesses


def test_an_image_that_exif_turns_is_read_as_it_is_stored_and_a_warning_says_so(
    folder: Path, model: Classifier, variables: dict[str, Any]
) -> None:
    turned = folder / "turned.png"
    np.testing.assert_array_equal(np.asarray(open_image(turned, 3)), decode(turned.read_bytes()))
    assert decode(turned.read_bytes()).shape == (40, 30, 3)  # the ramp is 30 x 40 upright
    with pytest.warns(
        UserWarning, match=r"EXIF says that 1 of 2 .*turned\.png; they are read as they are stored, as in training"
    ):
        predict(model, variables, SMALL, [turned, folder / "rgb.png"])


def test_logits_that_are_not_finite_are_no_answer(folder: Path, model: Classifier, variables: dict[str, Any]) -> None:
    broken = jax.tree.map(lambda leaf: leaf, variables)
    broken["params"]["head"]["bias"] = np.where(np.arange(10) == 3, np.nan, 0).astype(np.float32)
    (answer,) = predict(model, broken, SMALL, [folder / "rgb.png"])
    assert (answer.error, answer.guesses) == ("1 of its 10 logits are not finite", ())


def test_answers_are_the_softmax_of_the_logits_in_order(
    tmp_path: Path, model: Classifier, variables: dict[str, Any]
) -> None:
    files = [tmp_path / f"{index}.png" for index in range(35)]  # more than one batch
    for index, file in enumerate(files):
        picture(32 + index, 40).save(file)
    results = predict(model, variables, SMALL, files, top=99)
    assert len(results) == 35
    for file, result in list(zip(files, results, strict=True))[::17]:
        image = jnp.asarray(preprocess(open_image(file, 3), SMALL))[None]
        logits = np.asarray(model.apply(variables, image), np.float64)[0]
        expected = np.exp(logits) / np.exp(logits).sum()
        assert [guess.index for guess in result.guesses] == np.argsort(-logits, kind="stable").tolist()
        for guess in result.guesses:
            assert guess.name == str(guess.index)
            assert guess.probability == pytest.approx(expected[guess.index], abs=1e-5)


def test_wrong_requests_are_usage_errors(folder: Path, model: Classifier, variables: dict[str, Any]) -> None:
    files = [folder / "rgb.png"]
    with pytest.raises(UsageError, match="3 class names for 10 classes"):
        predict(model, variables, SMALL, files, ["a", "b", "c"])
    with pytest.raises(UsageError, match="top is 0"):
        predict(model, variables, SMALL, files, top=0)
    grey = Preprocessing(32, 32, None, "bilinear", (0.5,), (0.5,))
    with pytest.raises(UsageError, match="takes images of 3 channels, but the preprocessing is for 1"):
        predict(model, variables, grey, files)
    assert predict(model, variables, SMALL, []) == []
