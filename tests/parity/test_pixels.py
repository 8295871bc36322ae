"""Crops of files against torchvision 0.28 on PIL, where it is installed: no pixel differs, and boxes are drawn alike.

pip install --no-deps torchvision==0.28.0

The photographs are those in the wheels of scikit-image and scikit-learn. Draws are compared by two-sample tests of
level 1e-3 with fixed seeds; each states what it would find with probability .999, and must reject wrong versions.
"""

import importlib
import importlib.util
import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats as untyped

from jaxclf.data import transforms as ours
from jaxclf.data.decoding import decode
from jaxclf.data.sources import Folder
from jaxclf.data.transforms import RandomResizedCrop, ResizeCenterCrop

stats: Any = untyped  # scipy's annotations do not know what its tests return
LEVEL = 1e-3
SKIMAGE = (
    "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png coins.png grass.png "
    "gravel.png horse.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png motorcycle_right.png retina.jpg "
    "rocket.jpg"
)
PHOTOGRAPHS = [("skimage", "data", name) for name in SKIMAGE.split()]
PHOTOGRAPHS += [("sklearn", "datasets/images", name) for name in ("china.jpg", "flower.jpg")]
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def photograph(package: str, folder: str, name: str) -> Image.Image:
    """Return a photograph in colours; of large ones the middle."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the photographs of {package} are not installed")
    image = Image.open(Path(spec.origin).parent / folder / name).convert("RGB")
    width, height = min(image.width, 641), min(image.height, 427)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpegs(image: Image.Image) -> dict[str, bytes]:
    found = {
        f"quality {quality}, subsampling {part}": encoded(image, quality=quality, subsampling=part)
        for quality in (30, 75, 95)
        for part in range(3)  # 4:4:4, 4:2:2, 4:2:0
    }
    found["progressive"] = encoded(image, quality=85, progressive=True)
    found["restarts"] = encoded(image, quality=85, restart_marker_blocks=5)
    return found


def other_files(image: Image.Image) -> dict[str, bytes]:
    exif, indices = Image.Exif(), image.quantize(256)
    exif[0x0112] = 8
    alpha = np.arange(256, dtype=np.uint8).tobytes()
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return {
        "grey": encoded(image.convert("L")),
        "CMYK": encoded(image.convert("CMYK")),
        "RGB": encoded(image, keep_rgb=True),
        "turned": encoded(image, exif=exif),
        "PNG": encoded(image, "PNG"),
        "PNG alpha": encoded(image.convert("RGBA"), "PNG"),
        "palette": encoded(indices, "PNG"),
        "palette alpha": encoded(indices, "PNG", transparency=alpha),
        "palette one": encoded(indices, "PNG", transparency=9),
        "16 bits": encoded(deep, "PNG"),
        "bits": encoded(image.convert("1"), "PNG"),
        "GIF": encoded(image, "GIF", save_all=True, append_images=[image.rotate(180)]),
        "MPO": encoded(image, "MPO", save_all=True, append_images=[image.rotate(180)]),
        "a pixel": encoded(image.crop((0, 0, 1, 1))),
        "a pixel, PNG": encoded(image.crop((0, 0, 1, 1)), "PNG"),
        "a row": encoded(image.crop((0, 0, 400, 1))),
        "a column": encoded(image.crop((0, 0, 1, 400))),
        "small": encoded(image.crop((0, 0, 91, 150))),
    }


def load(data: bytes, file: Path) -> Image.Image:
    """Read a file as torchvision's ImageFolder does; the name says JPEG, whatever it is."""
    file.write_bytes(data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Palette images with Transparency")
        return importlib.import_module("torchvision.datasets.folder").pil_loader(file)


def compare(data: bytes, transforms: Any, file: Path, rng: np.random.Generator, boxes: int) -> None:
    """Compare what is decoded, `boxes` boxes of torchvision's drawing, and the evaluation's crops."""
    image = load(data, file)
    np.testing.assert_array_equal(decode(data), np.asarray(image))
    pixels = decode(data)
    for interpolation in ("bilinear", "bicubic"):
        mode = transforms.InterpolationMode(interpolation)
        for _ in range(boxes):
            size, mirrored = (224, 112, 31)[rng.integers(3)], bool(rng.integers(2))
            box = transforms.RandomResizedCrop.get_params(image, SCALE, RATIO)
            expected = transforms.functional.resized_crop(image, *box, [size, size], mode)
            expected = transforms.functional.hflip(expected) if mirrored else expected
            crop = RandomResizedCrop(size, interpolation=interpolation)
            np.testing.assert_array_equal(crop.apply(pixels, ours.Box(*box), mirrored=mirrored), np.asarray(expected))
        for resize, size in ((256, 224), (min(image.size), 224), (99, 128)):
            chain = transforms.Compose([transforms.Resize(resize, mode), transforms.CenterCrop(size)])
            crop = ResizeCenterCrop(resize=resize, size=size, interpolation=interpolation)
            if max(image.size) * resize / min(image.size) > 2e4:
                continue  # a strip of one pixel would become one of a hundred thousand
            np.testing.assert_array_equal(crop(data, rng), np.asarray(chain(image)))


def check_photograph(place: tuple[str, str, str], transforms: Any, file: Path, count: int, boxes: int) -> None:
    rng = np.random.default_rng(PHOTOGRAPHS.index(place))
    found = list(jpegs(photograph(*place)).items())
    chosen = rng.permutation(len(found))[:count]
    for name, data in (found[number] for number in chosen):
        try:
            compare(data, transforms, file, rng, boxes)
        except AssertionError as error:
            raise AssertionError(f"{place[2]}, {name}") from error


@pytest.mark.parametrize("place", PHOTOGRAPHS, ids=lambda place: place[2])
def test_no_pixel_of_a_photograph_differs(place: tuple[str, str, str], transforms: Any, tmp_path: Path) -> None:
    check_photograph(place, transforms, tmp_path / "a.JPEG", 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("place", PHOTOGRAPHS, ids=lambda place: place[2])
def test_no_pixel_differs_in_any_coding(place: tuple[str, str, str], transforms: Any, tmp_path: Path) -> None:
    check_photograph(place, transforms, tmp_path / "a.JPEG", 11, 5)


@pytest.mark.parametrize("place", PHOTOGRAPHS[4:5], ids=lambda place: place[2])
def test_no_pixel_of_an_unusual_file_differs(place: tuple[str, str, str], transforms: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, data in other_files(photograph(*place).crop((0, 0, 403, 287))).items():
        if name == "16 bits":  # torchvision clips them to white
            continue
        try:
            compare(data, transforms, tmp_path / "a.JPEG", rng, 2)
        except AssertionError as error:
            raise AssertionError(name) from error


def test_grey_crops_are_those_of_the_grey_image(transforms: Any, tmp_path: Path) -> None:
    data = encoded(photograph(*PHOTOGRAPHS[4]))
    image = load(data, tmp_path / "a.JPEG").convert("L")
    box = transforms.RandomResizedCrop.get_params(image, SCALE, RATIO)
    expected = np.asarray(transforms.functional.resized_crop(image, *box, [64, 64]))
    got = RandomResizedCrop(64, channels=1).apply(decode(data, 1), ours.Box(*box), mirrored=False)
    np.testing.assert_array_equal(got[..., 0], expected)
    chain = transforms.Compose([transforms.Resize(72), transforms.CenterCrop(64)])
    got = ResizeCenterCrop(resize=72, size=64, channels=1)(data, np.random.default_rng(0))
    np.testing.assert_array_equal(got[..., 0], np.asarray(chain(image)))


def draw_theirs(transforms: Any, height: int, width: int, count: int) -> np.ndarray:
    image = Image.new("L", (width, height))
    return np.array([transforms.RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(count)])


def draw_ours(height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    crop, rng = RandomResizedCrop(8, flip=False), np.random.default_rng(seed)
    return np.array([crop.draw(rng, height, width)[0] for _ in range(count)])


def marginals(boxes: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
    """Everything about a box whose distribution is compared: top, left, height, width, and what joins them."""
    top, left, rows, columns = boxes.T
    yield from (top, left, rows, columns, rows * columns, columns / rows)
    yield from ((top + 0.5) / (height - rows + 1), (left + 0.5) / (width - columns + 1))  # uniform given the size
    yield from (top * columns, left * rows, 2 * top + rows, 2 * left + columns)


def least_level(mine: np.ndarray, other: np.ndarray, height: int, width: int) -> float:
    """Kolmogorov-Smirnov on each of `marginals`: return the least p-value.

    All twelve together have the level 1e-3, so each has a twelfth: its critical value is 2.25 sqrt(2 / n) for n draws
    each, and the deviation of the difference at most sqrt(2 / n) / 2. So a distribution function that is away by
    3.8 sqrt(2 / n) anywhere is found with probability .999: .076 for 5,000 draws, .038 for 20,000, .017 for
    100,000. Ties make the level smaller.
    """
    pairs = zip(marginals(mine, height, width), marginals(other, height, width), strict=True)
    return min(stats.ks_2samp(here, there, method="asymp").pvalue for here, there in pairs)


SHAPES = [(375, 500), (30, 400), (500, 333)]
"""In the second most draws fit nowhere, and the central box is taken."""
COUNTS = [5_000, pytest.param(100_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        *((shape, 5_000) for shape in SHAPES[:2]),
        *(
            pytest.param(*given, marks=pytest.mark.slow)
            for given in zip(SHAPES, (100_000, 20_000, 20_000), strict=True)
        ),
    ],
)
def test_boxes_are_drawn_as_by_torchvision(shape: tuple[int, int], count: int, transforms: Any) -> None:
    mine, other = draw_ours(*shape, count), draw_theirs(transforms, *shape, count)
    assert least_level(mine, other, *shape) > LEVEL / 12
    if 30 in shape:
        central = [((boxes[:, 2:] == (40, 30)) | (boxes[:, 2:] == (30, 40))).all(1) for boxes in (mine, other)]
        assert 0.3 < np.mean(central[1]) < 0.99
        table = [[found.sum(), count - found.sum()] for found in central]
        assert stats.chi2_contingency(table).pvalue > LEVEL


@pytest.mark.parametrize(
    ("replaced", "shape"),
    [
        ({"math": SimpleNamespace(log=float, exp=float, sqrt=math.sqrt)}, (500, 500)),  # a uniform ratio
        ({"range": lambda tries: range(1)}, (375, 500)),  # one try
        ({"round": int}, (7, 6)),  # rounded down
    ],
    ids=["uniform ratio", "one try", "rounded down"],
)
def test_boxes_drawn_otherwise_are_told_apart(
    replaced: dict[str, Any], shape: tuple[int, int], transforms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 5_000
    other = draw_theirs(transforms, *shape, count)
    assert least_level(draw_ours(*shape, count), other, *shape) > LEVEL / 12
    for name, value in replaced.items():
        monkeypatch.setattr(ours, name, value, raising=False)
    assert least_level(draw_ours(*shape, count), other, *shape) < LEVEL / 12


@pytest.mark.parametrize("count", COUNTS)
def test_images_are_mirrored_as_often_as_by_torchvision(count: int, transforms: Any) -> None:
    # A share of .5 +- .045 (5,000 draws) or .01 (100,000) is found with probability .999.
    image, flip = Image.fromarray(np.array([[0, 255]], np.uint8)), transforms.RandomHorizontalFlip()
    theirs = sum(flip(image).getpixel((0, 0)) == 255 for _ in range(count))
    crop, rng = RandomResizedCrop(8), np.random.default_rng(0)
    drawn = [crop.draw(rng, 60, 60) for _ in range(count)]
    mine = np.array([mirrored for _, mirrored in drawn])
    table = [[mine.sum(), count - mine.sum()], [theirs, count - theirs]]
    assert stats.chi2_contingency(table).pvalue > LEVEL
    # Nor does it depend on the box.
    boxes = np.array([box for box, _ in drawn])
    assert least_level(boxes[mine], boxes[~mine], 60, 60) > LEVEL / 12


def test_a_folder_is_torchvisions_image_folder(torchvision: Any, tmp_path: Path) -> None:
    inside = ("b/1.JPG", "b/10.jpeg", "b/2.png", "b/notes.txt", "b/deep/0.webp", "b/a.tif", "Z/é.ppm", "a b/x.bmp")
    for file in ("readme.jpg", *inside, "Z/deep/deeper/y.PGM", "Z/deep-1/z.tiff"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    theirs = importlib.import_module("torchvision.datasets").ImageFolder(str(tmp_path))
    folder = Folder(tmp_path)
    assert folder.class_names == tuple(theirs.classes)
    assert [(folder.name(i), int(folder.labels()[i])) for i in range(len(folder))] == theirs.samples
