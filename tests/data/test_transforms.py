"""One image: decoding is PIL's on every file, boxes and pixels are as written down here, and fast is never by default.

The comparison with torchvision itself is tests/parity/test_pixels.py.
"""

import io
import math
import pickle
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from jaxclf.data import decoding, fast_transforms, transforms
from jaxclf.data.decoding import decode
from jaxclf.data.fast_transforms import FastRandomResizedCrop, FastResizeCenterCrop, require_fast
from jaxclf.data.transforms import (
    TORCHVISION,
    Box,
    RandomResizedCrop,
    ResizeCenterCrop,
    draw_random_resized_crop,
    preprocess,
)
from jaxclf.errors import UsageError


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as in a photograph."""
    rng = np.random.default_rng(seed)
    waves = rng.uniform(0, 255, (4, 5, 3)).astype(np.uint8)
    smooth = Image.fromarray(waves).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(smooth) + rng.normal(0, 4, (height, width, 3))).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pil(data: bytes, mode: str = "RGB") -> np.ndarray:
    """torchvision's pil_loader, without the warning about a palette's alpha, as an array [h w c]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def files() -> dict[str, bytes]:
    """Files of every kind that a folder of images may hold."""
    image, exif = picture(61, 47), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    alpha = np.arange(256, dtype=np.uint8)[::-1].tobytes()
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (20, 30)).astype(np.uint16))
    jpeg = encoded(image)
    found = {f"JPEG {quality} {part}": encoded(image, quality=quality, subsampling=part)
             for quality in (30, 75, 95) for part in range(3)}  # fmt: skip
    found |= {
        f"JPEG {part}": simplejpeg.encode_jpeg(np.asarray(image), colorsubsampling=part) for part in ("440", "411")
    }
    found |= {
        "progressive": encoded(image, progressive=True),
        "restart markers": encoded(image, restart_marker_blocks=2),
        "progressive with restarts": encoded(image, progressive=True, restart_marker_rows=1),
        "optimised": encoded(image, optimize=True),
        "JPEG of RGB": encoded(image, keep_rgb=True),
        "JPEG grey": encoded(image.convert("L")),
        "JPEG CMYK": encoded(image.convert("CMYK")),
        "JPEG turned": encoded(image, exif=exif),
        "JPEG and more": jpeg + b"and more" * 99,
        "JPEG twice": jpeg + encoded(picture(20, 20)),
        "MPO": encoded(image, "MPO", save_all=True, append_images=[picture(61, 47, 1)]),
        "PNG": encoded(image, "PNG"),
        "PNG alpha": encoded(image.convert("RGBA"), "PNG"),
        "PNG grey alpha": encoded(image.convert("LA"), "PNG"),
        "PNG bits": encoded(image.convert("1"), "PNG"),
        "PNG 16 bits": encoded(deep, "PNG"),
        "PNG one colour transparent": encoded(image, "PNG", transparency=(1, 2, 3)),
        "palette": encoded(image.quantize(256), "PNG"),
        "palette alpha": encoded(image.quantize(256), "PNG", transparency=alpha),
        "palette, one transparent": encoded(image.quantize(16), "PNG", transparency=3),
        "GIF": encoded(image.quantize(200), "GIF", transparency=7),
        "GIF frames": encoded(image, "GIF", save_all=True, append_images=[picture(61, 47, 1)]),
        "TIFF": encoded(image, "TIFF"),
        "TIFF floats": encoded(Image.fromarray(np.linspace(-9, 300, 600, dtype=np.float32).reshape(20, 30)), "TIFF"),
        "BMP": encoded(image, "BMP"),
        "JPEG of a pixel": encoded(picture(1, 1)),
        "PNG of a pixel": encoded(picture(1, 1), "PNG"),
        "JPEG row": encoded(picture(300, 1)),
        "JPEG column": encoded(picture(1, 300)),
    }  # fmt: skip
    return found


FILES = files()
READ = {name: data for name, data in FILES.items() if name != "TIFF floats"}
"""Those that are read at all."""


@pytest.mark.parametrize("name", FILES)
def test_decoding_is_pils_but_for_pixels_of_more_than_8_bits(name: str) -> None:
    if name == "TIFF floats":
        with pytest.raises(ValueError, match="its pixels are floats, whose range is unknown"):
            decode(FILES[name])
        return
    colours, grey = decode(FILES[name]), decode(FILES[name], channels=1)
    assert (colours.dtype, colours.shape[2], grey.shape[2]) == (np.uint8, 3, 1)
    expected = pil(FILES[name]), pil(FILES[name], "L")
    if name == "PNG 16 bits":  # which PIL clips to white
        upper = (np.asarray(Image.open(io.BytesIO(FILES[name]))) >> 8).astype(np.uint8)[..., None]
        expected = np.repeat(upper, 3, axis=2), upper
    np.testing.assert_array_equal(colours, expected[0])
    np.testing.assert_array_equal(grey, expected[1])


def test_decoding_gives_literal_pixels() -> None:
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (10, 20, 30))
    assert decode(encoded(image, "PNG")).tolist() == [[[255, 0, 0], [10, 20, 30]]]
    assert decode(encoded(image, "PNG"), channels=1).tolist() == [[[76], [18]]]
    assert decode(encoded(Image.new("RGB", (8, 8), (200, 100, 50)))).reshape(-1, 3).tolist() == [[200, 100, 50]] * 64
    np.testing.assert_array_equal(decode(FILES["JPEG turned"]), decode(FILES["JPEG 75 2"]))  # not turned by its EXIF


@pytest.mark.parametrize("channels", [1, 3])
def test_a_palettes_alpha_is_dropped_without_a_warning(channels: Any) -> None:
    rng, mode = np.random.default_rng(0), {1: "L", 3: "RGB"}[channels]
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())  # also makes it a palette's image
    data = encoded(image, "PNG", transparency=rng.integers(0, 256, 256, dtype=np.uint8).tobytes())
    with pytest.warns(UserWarning, match="should be converted to RGBA"):
        expected = np.asarray(Image.open(io.BytesIO(data)).convert(mode))
    np.testing.assert_array_equal(decode(data, channels).squeeze(), expected)
    by_way_of_alpha = Image.open(io.BytesIO(data)).convert("RGBA").convert(mode)
    np.testing.assert_array_equal(np.asarray(by_way_of_alpha), expected)


def test_plain_jpegs_alone_are_decoded_by_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    decode_jpeg = simplejpeg.decode_jpeg
    for name, data in READ.items():
        monkeypatch.setattr(
            decoding.simplejpeg, "decode_jpeg", lambda *a, n=name, **k: [used.append(n), decode_jpeg(*a, **k)][1]
        )
        decode(data)
        decode(data, channels=1)
    colours = {name for name in FILES if "JPEG" in name or "rogressive" in name} - {"JPEG grey", "JPEG CMYK"}
    assert set(used) == colours | {"restart markers", "optimised"}
    assert len(used) == len(set(used))


def test_pils_pixels_stand_where_simplejpeg_fails_or_sees_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ValueError("Premature end of JPEG file")

    data = FILES["JPEG 75 2"]
    answers: list[Callable[..., Any]] = [fail, lambda *args, **options: np.zeros((47, 60, 3), np.uint8)]
    for answer in answers:
        monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", answer)
        np.testing.assert_array_equal(decode(data), pil(data))
    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", lambda *args, **options: np.zeros((47, 61, 3), np.uint8))
    assert decode(data).max() == 0
    monkeypatch.setattr(decoding, "PIL_DECODES_WITH_LIBJPEG_TURBO", False)
    np.testing.assert_array_equal(decode(data), pil(data))


def test_what_pil_raises_passes_through() -> None:
    for data in (b"", b"\xff\xd8\xff", b"no image"):
        with pytest.raises(Image.UnidentifiedImageError):
            decode(data)
    with pytest.raises(OSError, match="Truncated File Read"):
        decode(FILES["PNG"][:20])
    with pytest.raises(OSError, match="truncated"):
        decode(FILES["JPEG 75 2"][:-200])
    twelve = FILES["JPEG 75 2"].replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c")
    with pytest.raises(Exception, match=r"^no image format that PIL knows$") as error:
        decode(twelve)
    assert type(error.value) is Image.UnidentifiedImageError


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, flip bits, zero a range, change a marker, write into the header, insert, or remove."""
    changed, kind, place = bytearray(data), rng.integers(7), int(rng.integers(len(data)))
    count = int(rng.integers(1, 100))
    if kind == 0:
        del changed[place:]
    elif kind == 1:
        for place in rng.integers(len(data), size=rng.integers(1, 5)):
            changed[place] ^= 1 << rng.integers(8)
    elif kind == 2:
        changed[place : place + count] = bytes(len(changed[place : place + count]))
    elif kind == 3:
        markers = [i for i in range(len(data) - 1) if data[i] == 255 and data[i + 1] not in (0, 255)] or [0]
        changed[rng.choice(markers) + 1] = rng.integers(0xC0, 256)
    elif kind == 4:
        changed[place % 700 % len(data)] = rng.integers(256)
    elif kind == 5:
        changed[place:place] = rng.bytes(count)
    else:
        del changed[place : place + count]
    return bytes(changed)


def answer(read: Callable[[bytes], np.ndarray], data: bytes) -> tuple[Any, ...]:
    """Return a reader's result for a file: pixels, or the type of the error."""
    try:
        pixels = read(data)
    except Exception as error:
        return (type(error),)
    return (pixels.shape, pixels.tobytes())


@pytest.mark.filterwarnings("ignore")  # PIL warns of some faults; of which, and when, is not compared
@pytest.mark.parametrize("count", [700, pytest.param(15_000, marks=pytest.mark.slow)])
def test_of_damaged_files_decoding_is_pils_or_both_fail(count: int) -> None:
    rng, names = np.random.default_rng(count), [name for name in READ if name not in ("TIFF", "PNG 16 bits", "BMP")]
    failed = 0
    for number in range(count):
        name = names[rng.integers(len(names))]
        data = damaged(FILES[name], rng)
        expected, got = answer(pil, data), answer(decode, data)
        assert got == expected, f"{name}, number {number}"
        failed += len(expected) == 1
    assert count * 0.2 < failed < count * 0.8


@pytest.mark.filterwarnings("ignore")
def test_of_damaged_files_fast_crops_fail_only_where_pil_does() -> None:
    pytest.importorskip("cv2")
    rng, names = np.random.default_rng(1), [name for name in FILES if name.startswith("JPEG")]
    fast = FastRandomResizedCrop(8)
    for _ in range(300):
        data = damaged(FILES[names[rng.integers(len(names))]], rng)
        fine = len(answer(pil, data)) == 2
        got = answer(lambda data: fast(data, np.random.default_rng(0)), data)
        assert (got[0] == (8, 8, 3)) if fine else (len(got) == 1 or data.startswith(b"\xff\xd8"))


DEFAULT = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3), (30, 400), (375, 500), (500, 375)])
def test_boxes_lie_inside_the_image(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([draw_random_resized_crop(rng, *size, **DEFAULT) for _ in range(500)])
    assert boxes[:, :2].min() >= 0
    assert boxes[:, 2:].min() >= 1
    assert (boxes[:, :2] + boxes[:, 2:] <= size).all()


def test_without_a_box_that_fits_the_largest_one_in_the_middle_is_taken() -> None:
    def draw(height: int, width: int, low: float, high: float) -> Box:
        rng = np.random.default_rng(0)
        return draw_random_resized_crop(rng, height, width, scale=(1.0, 1.0), ratio=(low, high))

    assert draw(30, 400, 3 / 4, 4 / 3) == Box(top=0, left=180, height=30, width=40)
    assert draw(401, 30, 3 / 4, 4 / 3) == Box(top=180, left=0, height=40, width=30)
    assert draw(9000, 9000, 3 / 4, 4 / 3) == Box(0, 0, 9000, 9000)
    assert draw(1, 100, 0.1, 0.2) == Box(0, 49, 1, 1)
    assert draw(100, 1, 5.0, 9.0) == Box(49, 0, 1, 1)


def test_a_box_that_always_fits_has_the_drawn_area_and_ratio() -> None:
    rng = np.random.default_rng(0)
    boxes = [draw_random_resized_crop(rng, 1000, 1000, scale=(0.25, 0.25), ratio=(2.0, 2.0)) for _ in range(2000)]
    assert {(box.height, box.width) for box in boxes} == {(354, 707)}
    assert {type(number) for number in boxes[0]} == {int}
    corners = np.array(boxes)[:, :2]
    assert corners.min(0).tolist() == [0, 0]
    assert corners.max(0).tolist() == [646, 293]
    # Uniform: the deviation of the mean is 1 / sqrt(12 * 2000) = .0065 of the range.
    np.testing.assert_allclose(corners.mean(0) / [646, 293], 0.5, atol=0.03)


def test_crops_are_literal_pixels() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    crop = RandomResizedCrop(2)
    assert crop.apply(image, Box(1, 1, 2, 2), mirrored=False)[..., 0].tolist() == [[15, 18], [27, 30]]
    assert crop.apply(image, Box(1, 1, 2, 2), mirrored=True).tolist() == [
        [[18, 19, 20], [15, 16, 17]],
        [[30, 31, 32], [27, 28, 29]],
    ]
    # PIL's filter smooths: of four pixels in a row, the first of two is (3 * 0 + 3 * 3 + 1 * 6) / 7 = 2.14.
    assert crop.apply(image, Box(0, 0, 2, 4), mirrored=False)[0, :, 0].tolist() == [2, 7]
    grey = RandomResizedCrop(2, channels=1).apply(image[..., :1], Box(2, 0, 2, 2), mirrored=True)
    assert grey.tolist() == [[[27], [24]], [[39], [36]]]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_is_cut_before_it_is_resized(interpolation: Any, channels: Any) -> None:
    image = np.asarray(picture(70, 50))[..., :channels]
    crop = RandomResizedCrop(16, interpolation=interpolation, channels=channels)
    box = Box(10, 20, 30, 25)
    cut = Image.fromarray(np.ascontiguousarray(image[10:40, 20:45]).squeeze())
    expected = np.asarray(cut.resize((16, 16), transforms.FILTERS[interpolation])).reshape(16, 16, channels)
    np.testing.assert_array_equal(crop.apply(image, box, mirrored=False), expected)
    np.testing.assert_array_equal(crop.apply(image, box, mirrored=True), expected[:, ::-1])
    flipped = image[::-1, ::-1]
    np.testing.assert_array_equal(crop.apply(np.asfortranarray(image), box, mirrored=False), expected)
    assert crop.apply(flipped, box, mirrored=False).shape == (16, 16, channels)


def test_a_result_is_a_function_of_the_bytes_and_the_generator() -> None:
    crop, data = RandomResizedCrop(24), FILES["JPEG 95 0"]
    images = [crop(data, np.random.default_rng(seed)) for seed in range(20)]
    for seed, image in enumerate(images):
        np.testing.assert_array_equal(crop(data, np.random.default_rng(seed)), image)
        np.testing.assert_array_equal(crop.pixels(decode(data), np.random.default_rng(seed)), image)
        box, mirrored = crop.draw(np.random.default_rng(seed), 47, 61)
        np.testing.assert_array_equal(crop.apply(decode(data), box, mirrored=mirrored), image)
    assert len({image.tobytes() for image in images}) == 20


def test_half_of_the_results_are_mirrored_or_none() -> None:
    rng = np.random.default_rng(0)
    drawn = [RandomResizedCrop(8).draw(rng, 40, 40)[1] for _ in range(2000)]
    assert {type(mirrored) for mirrored in drawn} == {bool}
    assert abs(np.mean(drawn) - 0.5) < 0.037  # 3.3 deviations
    assert not any(RandomResizedCrop(8, flip=False).draw(rng, 40, 40)[1] for _ in range(100))


def test_the_evaluation_resizes_cuts_and_pads() -> None:
    rng = np.random.default_rng(0)
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    middle = ResizeCenterCrop(resize=2, size=2)(encoded(Image.fromarray(image), "PNG"), rng)
    assert middle.tolist() == [[[3, 4, 5], [6, 7, 8]], [[15, 16, 17], [18, 19, 20]]]
    padded = ResizeCenterCrop(resize=2, size=5, channels=1).pixels(image[..., :1], rng)[..., 0]
    assert padded.tolist() == [[0] * 5, [0, 3, 6, 9, 0], [12, 15, 18, 21, 0], [0] * 5, [0] * 5]
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_a_networks_own_preparation_has_the_same_pixels() -> None:
    data = encoded(picture(300, 260), "PNG")
    pixels = ResizeCenterCrop(resize=256, size=224)(data, np.random.default_rng(0))
    values = (pixels / np.float32(255) - np.array(TORCHVISION.mean, np.float32)) / np.array(TORCHVISION.std, np.float32)
    np.testing.assert_array_equal(preprocess(Image.open(io.BytesIO(data)), TORCHVISION), values)


def test_transforms_are_values() -> None:
    transforms: list[Any] = [
        RandomResizedCrop(24, scale=(0.2, 0.9), interpolation="bicubic"),
        ResizeCenterCrop(resize=28, size=24, channels=1),
    ]
    for transform in transforms:
        copy = pickle.loads(pickle.dumps(transform))
        assert len({copy, transform}) == 1
        one, other = (crop(FILES["JPEG 75 2"], np.random.default_rng(5)) for crop in (copy, transform))
        np.testing.assert_array_equal(one, other)


def test_faulty_fields_are_named() -> None:
    wrong: Any = {"interpolation": "nearest"}
    with pytest.raises(UsageError) as error:
        RandomResizedCrop(0, scale=(0.5, 0.2), ratio=(0.0, 1.0))
    for part in ("size is 0", "scale is (0.5, 0.2)", "ratio is (0.0, 1.0)"):
        assert part in str(error.value)
    with pytest.raises(UsageError, match=r"resize is 0 but must be at least 1; size is -1"):
        ResizeCenterCrop(resize=0, size=-1)
    with pytest.raises(Exception, match="nearest"):
        RandomResizedCrop(8, **wrong)


def test_the_exact_transforms_know_nothing_of_the_fast_ones() -> None:
    for module in (transforms, decoding):
        text = Path(str(module.__file__)).read_text()
        assert "cv2" not in text
        assert "min_width" not in text
        assert "Fast" not in text
    assert RandomResizedCrop(24) != RandomResizedCrop(24, flip=False)
    pytest.importorskip("cv2")
    assert FastRandomResizedCrop(24) != RandomResizedCrop(24)
    assert repr(FastRandomResizedCrop(24)).startswith("FastRandomResizedCrop(")


def test_without_opencv_fast_crops_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    for build in (require_fast, lambda: FastRandomResizedCrop(24), lambda: FastResizeCenterCrop(resize=28, size=24)):
        with pytest.raises(UsageError, match=r"pip install 'jaxclf\[fast\]'"):
            build()


def test_fast_crops_refuse_what_they_cannot_do() -> None:
    pytest.importorskip("cv2")
    with pytest.raises(UsageError, match="bicubic"):
        FastRandomResizedCrop(24, interpolation="bicubic")
    with pytest.raises(UsageError, match="size is 30 but must be at most resize, 24"):
        FastResizeCenterCrop(resize=24, size=30)


def test_opencv_keeps_to_the_calling_thread() -> None:
    cv2: Any = pytest.importorskip("cv2")
    cv2.setNumThreads(2)
    fast = pickle.loads(pickle.dumps(FastRandomResizedCrop(24)))
    cv2.setNumThreads(2)
    fast(FILES["JPEG 75 2"], np.random.default_rng(0))
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (1200, 900), (90, 130)])
def test_fast_pixels_are_near_the_exact_ones(size: tuple[int, int]) -> None:
    pytest.importorskip("cv2")
    data, differ = encoded(picture(*size), quality=90), 0
    for seed in range(20):
        exact, fast = (
            kind(112)(data, np.random.default_rng(seed)).astype(int)
            for kind in (RandomResizedCrop, FastRandomResizedCrop)
        )
        assert fast.shape == (112, 112, 3)
        assert np.abs(fast - exact).mean() < 4  # of 255; another box, or no mirror image, is 20 and more away
        differ += bool((fast != exact).any())
    assert differ == 20
    for channels in (1, 3):
        exact = ResizeCenterCrop(resize=128, size=112, channels=channels)(data, np.random.default_rng(0)).astype(int)
        fast = FastResizeCenterCrop(resize=128, size=112, channels=channels)(data, np.random.default_rng(0))
        assert fast.shape == (112, 112, channels)
        assert np.abs(fast - exact).mean() < 4


def test_fast_crops_draw_the_boxes_of_the_exact_ones() -> None:
    pytest.importorskip("cv2")
    here, there = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(100):
        assert RandomResizedCrop(24).draw(here, 300, 200) == FastRandomResizedCrop(24).draw(there, 300, 200)


@pytest.mark.parametrize("name", READ)
def test_fast_crops_take_every_file(name: str) -> None:
    pytest.importorskip("cv2")
    data = FILES[name]
    assert fast_transforms.image_size(data) == pil(data).shape[:2]
    for channels in (1, 3):
        for seed in range(5):
            crop = FastRandomResizedCrop(16, channels=channels)
            assert crop(data, np.random.default_rng(seed)).shape == (16, 16, channels)
        fast = FastResizeCenterCrop(resize=18, size=16, channels=channels)
        exact = ResizeCenterCrop(resize=18, size=16, channels=channels)
        got, expected = (kind(data, np.random.default_rng(0)).astype(int) for kind in (fast, exact))
        if math.prod(pil(data).shape) > 1000 and "bits" not in name:
            # In files so small a whole pixel is several levels; the mirror image is far more than twice as far away.
            assert np.abs(got - expected).mean() < 0.5 * np.abs(got[:, ::-1] - expected).mean()
        np.testing.assert_array_equal(fast.pixels(decode(data, channels), np.random.default_rng(0)).shape, got.shape)
    with pytest.raises(Image.UnidentifiedImageError):
        FastRandomResizedCrop(16)(b"", np.random.default_rng(0))


@pytest.mark.slow
def test_threads_that_meet_a_rare_format_first_all_read_it(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(encoded(picture(30, 20), "TIFF"))
    script = """
        import sys, threading
        from concurrent.futures import ThreadPoolExecutor
        from jaxclf.data.decoding import decode
        from PIL import Image
        data, start = open(sys.argv[1], "rb").read(), threading.Barrier(8)
        assert "TIFF" not in Image.ID
        def read(_):
            start.wait()
            return decode(data).shape
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(read, range(8))) == [(20, 30, 3)] * 8
        assert Image.ID[:6] == ["BMP", "DIB", "GIF", "JPEG", "PPM", "PNG"], Image.ID
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(tmp_path / "image")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
