"""What a network sees in image files: classes, sizes, turned and broken files, and what is refused before a compile."""

import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxclf.cli.main import main
from jaxclf.data.transforms import Preprocessing, open_image, preprocess
from jaxclf.errors import UsageError
from jaxclf.tools import seeing
from jaxclf.tools.seeing import Asked, Seen, costs, memory, obstacle, see
from jaxclf.training import weights
from jaxclf.training.weights import WeightRecord, Weights

SMALL = Preprocessing(8, 8, None, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
NAMES = ("ant", "bee", "cat", "dog", "7")


@pytest.fixture(scope="module")
def tiny() -> Weights:
    record = WeightRecord("tests.tiny:Tiny", 5, preprocessing=SMALL, class_names=NAMES)
    model = record.build()
    variables: Any = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    return Weights(model, variables, record)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A square picture, a wide one, a high one whose EXIF turns it by a quarter, a grey one, and no picture."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    files = [folder / name for name in ("square.png", "wide.png", "turned.jpg", "grey.png", "broken.jpg")]
    shapes = [(10, 10, 3), (12, 20, 3), (20, 12, 3), (10, 10)]
    for file, shape in zip(files, shapes, strict=False):
        image, exif = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)), Image.Exif()
        exif[0x0112] = 6 if file.stem == "turned" else 1
        image.save(file, exif=exif)
    files[-1].write_text("no picture")
    return files


def seen_by(tiny: Weights, files: list[Path], **asked: Any) -> list[Seen]:
    return list(see(tiny, files, Asked(**asked)))


def test_the_maps_of_the_strongest_classes_average_to_their_logits(tiny: Weights, pictures: list[Path]) -> None:
    seen = seen_by(tiny, pictures)
    assert [one.error for one in seen] == [None] * 4 + ["no image format that PIL knows"]
    images = np.stack([preprocess(open_image(file, 3), SMALL) for file in (pictures[0], pictures[1], pictures[3])])
    expected = np.asarray(jax.jit(tiny.model.apply)(tiny.variables, images))
    for one, logits in zip((seen[0], seen[1], seen[3]), expected, strict=True):
        (view,) = one.views
        np.testing.assert_allclose(view.logits, logits, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(view.classes, np.argsort(-logits)[:3])
        assert view.maps["maps"].shape == (3, 4, 4)
        np.testing.assert_allclose(view.maps["maps"].mean((1, 2)), logits[view.classes], rtol=0, atol=1e-6)
        assert view.pixels.shape == (8, 8, 3)


def test_a_turned_picture_is_seen_upright(tiny: Weights, pictures: list[Path]) -> None:
    (turned,) = seen_by(tiny, [pictures[2]], sizes=("original",))
    np.testing.assert_array_equal(turned.views[0].pixels, np.rot90(np.asarray(open_image(pictures[2], 3)), -1))
    assert turned.views[0].pixels.shape == (12, 20, 3)


def test_every_size_shows_the_same_classes_and_a_larger_picture_more_positions(
    tiny: Weights, pictures: list[Path]
) -> None:
    (one,) = seen_by(tiny, [pictures[1]], sizes=("own", "24", "original"), top=2)
    assert [view.size for view in one.views] == ["own", "24", "original"]
    assert [view.pixels.shape for view in one.views] == [(8, 8, 3), (24, 40, 3), (12, 20, 3)]
    assert [view.maps["maps"].shape for view in one.views] == [(2, 4, 4), (2, 12, 20), (2, 6, 10)]
    assert all(view.classes.tolist() == one.views[0].classes.tolist() for view in one.views)


def test_a_smaller_stride_shows_more_positions(tiny: Weights, pictures: list[Path]) -> None:
    plain, fine = (seen_by(tiny, pictures[:1], stride=stride)[0].views[0] for stride in (None, 1))
    assert (plain.maps["maps"].shape, fine.maps["maps"].shape) == ((3, 4, 4), (3, 8, 8))
    np.testing.assert_array_equal(plain.logits, fine.logits)


def test_classes_are_given_by_name_and_a_name_wins_over_a_number(tiny: Weights, pictures: list[Path]) -> None:
    (one,) = seen_by(tiny, pictures[:1], classes=("7", "ant", "2"))
    assert one.views[0].classes.tolist() == [4, 0, 2]


def test_every_method_answers_beside_the_others(tiny: Weights, pictures: list[Path]) -> None:
    methods = ("maps", "grad_cam", "gradient")
    (one,) = seen_by(tiny, pictures[:1], methods=methods, layer="conv1")
    found = one.views[0].maps
    assert {method: maps.shape for method, maps in found.items()} == {
        "maps": (3, 4, 4),
        "grad_cam": (3, 8, 8),
        "gradient": (3, 8, 8),
    }


def test_files_beyond_a_batch_are_answered_as_alone(tiny: Weights, pictures: list[Path]) -> None:
    files = [pictures[n % 4] for n in range(10)]
    many, alone = seen_by(tiny, files), seen_by(tiny, [pictures[1]])
    assert len(many) == 10
    np.testing.assert_allclose(many[9].views[0].logits, alone[0].views[0].logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"classes": ("cta",)}, "unknown class 'cta'; did you mean 'cat'"),
        ({"classes": ("9",)}, "class 9 given, but the model has 0 to 4"),
        ({"top": 6}, "top is 6 but must be from 1 to 5, the number of classes"),
        ({"sizes": ("large",)}, "size is 'large' but must be own, original or a short side in pixels"),
        ({"sizes": ("0",)}, "size is '0' but must be"),
        ({"sizes": ("own", "own")}, "sizes own, own given, but each can be given once"),
        ({"methods": ("gradcam",)}, "unknown method 'gradcam'; did you mean 'grad_cam'"),
        ({"methods": ("grad_cam",), "layer": "conv3"}, "unknown layer 'conv3'; did you mean 'conv"),
        ({"stride": 3}, "step is 3 but must divide the stride of the network, 2 pixels"),
        ({"stride": 1, "methods": ("gradient",)}, "stride given with gradient, but only maps take one"),
        ({"layer": "conv1"}, "layer 'conv1' given with maps, but only grad_cam"),
    ],
)
def test_what_does_not_exist_is_refused_before_a_file_is_read(tiny: Weights, asked: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        see(tiny, [Path("nowhere.png")], Asked(**asked))


def test_weights_that_do_not_say_how_images_are_prepared_are_refused(tiny: Weights) -> None:
    with pytest.raises(UsageError, match=r"do not say how tests\.tiny:Tiny wants its images prepared"):
        see(Weights(tiny.model, tiny.variables, WeightRecord("tests.tiny:Tiny", 5)), [], Asked())


def test_a_picture_too_large_for_memory_is_named_with_the_size_that_fits(
    tiny: Weights, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first map, 8 numbers a pixel, is the largest output: 2 x 8 x 4 bytes x 240 pixels do not fit, 60 do."""
    monkeypatch.setattr(seeing, "free_memory", lambda: 64 * 60)
    small, large = seen_by(tiny, [pictures[0], pictures[1]], sizes=("original",))
    said = "it is 20x12 pixels, for which the network needs about 0.0 GiB, but 0.0 GiB are free; about 10x6 fits"
    assert large.error == said
    assert small.error is not None  # 100 pixels


def test_the_memory_that_is_needed_is_what_the_compiler_reserves_within_a_factor_of_two() -> None:
    model, shape = WeightRecord("resnet8", 10).build(), (4, 96, 96, 3)
    image = jax.ShapeDtypeStruct(shape, np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def total(image: jax.Array, variables: Any) -> jax.Array:
        logits: Any = model.apply(variables, image)
        return logits.sum()

    for function, backward in ((total, False), (jax.grad(total), True)):
        reserved: Any = jax.jit(function).lower(image, variables).compile().memory_analysis()
        needed = memory(model, shape, backward=backward)
        assert needed / 2 < reserved.temp_size_in_bytes < 2 * needed


def test_a_picture_whose_logits_are_not_finite_is_named(tiny: Weights, pictures: list[Path]) -> None:
    broken = jax.tree.map(lambda leaf: leaf * np.nan, tiny.variables)
    (one,) = list(see(Weights(tiny.model, broken, tiny.record), pictures[:1], Asked()))
    assert (one.views, one.error) == ((), "5 of its 5 logits are not finite")


def test_pictures_too_small_for_a_network_are_said_to_be() -> None:
    model = WeightRecord("vgg11", 10).build()
    said = obstacle(model, (1, 200, 300, 3), backward=False)
    assert said is not None
    assert "224" in said


def test_costs_are_multiples_of_the_forward_pass(tiny: Weights) -> None:
    found = costs(tiny.model, tiny.variables, np.zeros((1, 8, 8, 3), np.float32), ("maps", "gradient"), rounds=3)
    assert list(found) == ["maps", "gradient"]
    assert all(0 < cost < float("inf") for cost in found.values())


def test_the_command_writes_a_page_and_a_picture_a_file_and_names_the_broken_one(
    tiny: Weights, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights.write(tmp_path / "tiny.safetensors", tiny)
    given = ["--weights", str(tmp_path / "tiny.safetensors"), "--out", str(tmp_path / "maps"), "--top", "2"]
    assert main(["maps", *map(str, pictures), *given, "--size", "own", "16", "--method", "maps", "grad_cam"]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{pictures[4]}: no image format that PIL knows", str(tmp_path / "maps" / "index.html")]
    assert f"1 of 5 files could not be shown: {pictures[4]}" in err
    written = sorted(file.name for file in (tmp_path / "maps").iterdir())
    assert written == ["grey.png", "index.html", "square.png", "turned.png", "wide.png"]
    page = (tmp_path / "maps" / "index.html").read_text()
    assert page.count("<figcaption>picture</figcaption>") == 4 * 2 * 2
    assert "Grad-CAM" in page
    assert "Cost of one class" in page


@pytest.mark.parametrize("figure", ["figure_5_2", "figure_5_3", "figure_5_4"])
def test_a_figure_of_the_thesis_is_maps_with_its_own_flags(
    figure: str, tiny: Weights, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.write(tmp_path / "tiny.safetensors", tiny)
    given = [str(pictures[0]), "--weights", str(tmp_path / "tiny.safetensors"), "--out", str(tmp_path / "maps")]
    file = Path(__file__).parents[2] / "experiments" / f"{figure}.py"
    monkeypatch.setattr("sys.argv", [str(file), *given])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(file), run_name="__main__")
    assert leaving.value.code == 0
    panels = {"figure_5_2": 1 + 1, "figure_5_3": 1 + 3, "figure_5_4": 2 * (1 + 1)}[figure]
    assert (tmp_path / "maps" / "index.html").read_text().count("<img") == panels
