"""Augmentation against torchvision 0.28: the same drawn parameters give the same pixels; and they are drawn alike.

Pixels are equal integers, those of torchvision on PIL images. Draws are compared by two-sample tests of level 1e-3
with fixed seeds; each states, or asserts, what it would find with probability .999.
"""

import importlib
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats as untyped

from jaxclf.config import AugmentConfig
from jaxclf.data import augment as ours
from jaxclf.data import rand_augment
from jaxclf.data.colour import HUE, Jitter, apply_jitter, draw_jitter, shift_hue
from jaxclf.data.rand_augment import OPERATIONS, Operations, apply_rand_augment, draw_rand_augment
from tests.tiers import quick

HEIGHT, WIDTH = 24, 20
stats: Any = untyped  # scipy's annotations do not know what its tests return
ADJUST = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
OURS, THEIRS = 20_000, 4_000
LEVEL = 1e-3


@pytest.fixture(scope="module")
def functional(torchvision: Any) -> Any:
    return importlib.import_module("torchvision.transforms.functional")


def pictures(channels: int = 3) -> np.ndarray:
    """Noise, a dark and narrow range, a ramp of few levels, one colour, and mostly saturated pixels."""
    rng = np.random.default_rng(0)
    shape = (HEIGHT, WIDTH, channels)
    ramp = np.broadcast_to(np.arange(WIDTH)[None, :, None] * 7 % 90 + 60, shape)
    saturated = rng.choice([0, 255, 254, 128], shape, p=[0.4, 0.4, 0.1, 0.1])
    images = [rng.integers(0, 256, shape), rng.integers(20, 91, shape), ramp, np.full(shape, 77), saturated]
    return np.stack(images).astype(np.uint8)


def to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pil(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def torch_images(images: np.ndarray) -> Any:
    return importlib.import_module("torch").from_numpy(np.moveaxis(images, -1, -3).copy())


def draws(draw: Any, count: int = OURS, seed: int = 0) -> Any:
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys))


def same_distribution(mine: np.ndarray, other: np.ndarray) -> None:
    """Kolmogorov-Smirnov: finds a distribution function that is .06 away anywhere, with probability .999.

    At that place the difference of the empirical functions has a deviation below .5 sqrt(1/n + 1/m) = .0087, and the
    critical value is 1.95 sqrt(1/n + 1/m) = .0338: 3.1 deviations below .06. Ties only make the level smaller.
    """
    assert (len(mine), len(other)) == (OURS, THEIRS)
    assert stats.ks_2samp(mine, other, method="asymp").pvalue > LEVEL


def same_frequencies(mine: np.ndarray, other: np.ndarray, cells: int) -> None:
    """Chi-squared: finds one of `cells` equally likely values that is twice as likely, with probability .999."""
    counts = np.stack([np.bincount(mine, minlength=cells), np.bincount(other, minlength=cells)])
    assert counts.shape == (2, cells)
    effect = 1 / cells + 1 / (cells * (cells - 1))
    size = len(mine) * len(other) / (len(mine) + len(other))
    assert stats.ncx2.sf(stats.chi2.isf(LEVEL, cells - 1), cells - 1, size * effect) > 0.999
    assert stats.chi2_contingency(counts).pvalue > LEVEL


@pytest.mark.parametrize(
    ("kind", "channels"), quick([(0, 3), (1, 3), (2, 3), (3, 3), (0, 1), (1, 1)], (1, 3), (3, 3), (0, 1))
)
def test_each_jitter_gives_torchvisions_pixels(kind: int, channels: int, functional: Any) -> None:
    rng = np.random.default_rng(kind)
    if kind == HUE:
        factors = np.array([-0.5, -0.3, -0.1, -1 / 255, 0, 1 / 255, 0.1, 0.37, 0.5, *rng.uniform(-0.5, 0.5, 20)])
    else:
        factors = np.array([0, 0.3, 0.5, 0.7, 1, 1.25, 1.7, 2, *rng.uniform(0, 2.5, 20)])
    factors = factors.astype(np.float32)
    on = [0.5 * (kind == other) for other in range(4)]
    ranges = on[0], on[1], on[2], on[3]

    @jax.jit
    def apply(images: jax.Array, factor: jax.Array) -> jax.Array:
        drawn = Jitter(jnp.array([kind], jnp.int32), jnp.full(4, factor))
        return jax.vmap(lambda image: apply_jitter(ranges, image, drawn))(images)

    images = pictures(channels)
    for factor in factors:
        adjust = getattr(functional, ADJUST[kind])
        expected = np.stack([from_pil(adjust(to_pil(image), float(factor))) for image in images])
        np.testing.assert_array_equal(apply(images, factor), expected, err_msg=f"factor {factor}")


@pytest.mark.slow
def test_jitters_in_every_order_give_torchvisions_pixels(functional: Any) -> None:
    ranges = (0.4, 0.4, 0.4, 0.1)
    drawn = draws(lambda key: draw_jitter(ranges, key), 40)
    image = pictures()[0]
    got = jax.jit(jax.vmap(lambda drawn: apply_jitter(ranges, jnp.asarray(image), drawn)))(drawn)
    assert len({tuple(order) for order in drawn.order}) > 15
    for number, pixels in enumerate(np.asarray(got)):
        expected = to_pil(image)
        for kind in drawn.order[number]:
            expected = getattr(functional, ADJUST[kind])(expected, float(drawn.factors[number][kind]))
        np.testing.assert_array_equal(pixels, from_pil(expected))


@pytest.mark.slow
def test_every_hue_turns_as_in_torchvision(functional: Any) -> None:
    levels = np.arange(256)
    face = np.stack(np.broadcast_arrays(255, levels[:, None], levels[None]), -1)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3))
    image = np.concatenate([np.roll(face, turn, -1) for turn in range(3)] + [noise]).astype(np.uint8)
    shift = jax.jit(shift_hue)
    for factor in np.array([0, 0.213, -0.5], np.float32):
        np.testing.assert_array_equal(
            shift(image, factor), from_pil(functional.adjust_hue(to_pil(image), float(factor)))
        )


def check_rand_augment(images: np.ndarray, magnitude: int, *, compiled: bool) -> None:
    """Compare every operation and sign at this magnitude, on every image."""
    autoaugment = importlib.import_module("torchvision.transforms.autoaugment")
    policy = autoaugment.RandAugment(magnitude=magnitude)
    space = list(policy._augmentation_space(31, images.shape[1:3]).items())
    assert len(space) == len(OPERATIONS) == 14
    cases = [(kind, negative) for kind in range(14) for negative in (False, True)]
    kinds, negatives = (np.array(column)[:, None] for column in zip(*cases, strict=True))

    def apply(drawn: Operations) -> jax.Array:
        one = jax.vmap(lambda image, drawn: apply_rand_augment(magnitude, image, drawn), (0, None))
        return jax.vmap(one, (None, 0))(jnp.asarray(images), drawn)

    drawn = Operations(jnp.asarray(kinds, jnp.int32), jnp.asarray(negatives))
    got = np.asarray((jax.jit(apply) if compiled else apply)(drawn))
    for (kind, negative), results in zip(cases, got, strict=True):
        name, (magnitudes, signed) = space[kind]
        level = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
        level *= -1 if signed and negative else 1
        for image, pixels in zip(images, results, strict=True):
            mode = importlib.import_module("torchvision.transforms").InterpolationMode.NEAREST
            expected = from_pil(autoaugment._apply_op(to_pil(image), name, level, mode, None))
            np.testing.assert_array_equal(pixels, expected, err_msg=f"{name} {level}")


@pytest.mark.slow
@pytest.mark.parametrize(("magnitude", "channels"), [(0, 3), (9, 3), (20, 3), (30, 3), (9, 1)])
def test_each_operation_of_rand_augment_gives_torchvisions_pixels(
    magnitude: int, channels: int, torchvision: Any
) -> None:
    check_rand_augment(pictures(channels), magnitude, compiled=True)


def test_levels_are_those_of_torch_to_the_last_bit(torchvision: Any) -> None:
    torch: Any = importlib.import_module("torch")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch.linspace rounds otherwise on this processor")
    ends = [(0, 0.3), (0, 0.9), (0, 30), (255, 0)] + [(0, 150 / 331 * size) for size in range(1, 300)]
    for first, last in ends:
        assert torch.linspace(first, last, 31).tolist() == [rand_augment._level(first, last, m) for m in range(31)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(24, 20), (32, 32), (57, 83), (224, 224)])
def test_every_magnitude_of_rand_augment_gives_torchvisions_pixels(size: tuple[int, int], torchvision: Any) -> None:
    rng = np.random.default_rng(1)
    images = np.stack([rng.integers(0, 256, (*size, 3)), rng.integers(30, 200, (*size, 3))]).astype(np.uint8)
    for magnitude in range(31) if size[0] < 200 else (5, 10, 23):
        check_rand_augment(images, magnitude, compiled=False)  # op by op: nothing is compiled anew


@pytest.mark.parametrize("pad", quick([3, 7], 3))
@pytest.mark.parametrize(("pad_mode", "theirs"), [("zero", "constant"), ("reflect", "reflect")])
def test_a_crop_is_that_of_torchvisions_padded_image(pad: int, pad_mode: str, theirs: str, functional: Any) -> None:
    images, indices, key = pictures(), np.arange(5, dtype=np.int32), jax.random.key(1)
    crop = jax.jit(ours.crop_flip, static_argnames=("pad", "flip", "pad_mode"))
    got = crop(images, indices, key, pad=pad, flip=True, pad_mode=pad_mode)
    for index, pixels in zip(indices, np.asarray(got), strict=True):
        drawn = ours.draw_crop(pad, jax.random.fold_in(key, index))
        top, left = (int(offset) + pad for offset in drawn.offset)
        padded = functional.pad(to_pil(images[index]), pad, padding_mode=theirs)
        expected = functional.crop(padded, top, left, HEIGHT, WIDTH)
        expected = functional.hflip(expected) if drawn.mirrored else expected
        # The mirror image is cropped, not the crop mirrored: the same distribution, the other offset.
        flipped = functional.crop(functional.hflip(padded), top, 2 * pad - left, HEIGHT, WIDTH)
        assert not drawn.mirrored or np.array_equal(expected, flipped)
        np.testing.assert_array_equal(pixels, from_pil(expected))


def test_light_is_added_as_in_the_reference(torchvision: Any) -> None:
    torch: Any = importlib.import_module("torch")
    std = (0.2, 0.3, 0.25)
    alphas = np.random.default_rng(0).normal(0, 0.1, (5, 3)).astype(np.float32)
    batch = np.random.default_rng(1).normal(size=(5, 4, 6, 3)).astype(np.float32)
    got = jax.jit(ours.apply_lighting, static_argnums=2)(batch, alphas, std)
    # eladhoffer/convNet.pytorch, preprocess.py, class Lighting, before Normalize.
    values = torch.tensor([0.2175, 0.0188, 0.0045])
    vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    for number, alpha in enumerate(torch.from_numpy(alphas)):
        rgb = (vectors * alpha.view(1, 3) * values.view(1, 3)).sum(1).numpy()
        expected = (batch[number] * np.array(std) + rgb) / np.array(std)
        assert np.abs(np.asarray(got)[number] - expected).max() < 1e-6


def test_erased_rectangles_are_torchvisions(functional: Any) -> None:
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(40, HEIGHT, WIDTH, 3)).astype(np.float32)
    drawn = draws(lambda key: ours.draw_erasing(0.8, key, HEIGHT, WIDTH), 40)
    got = jax.jit(jax.vmap(ours.apply_erasing))(batch, drawn)
    erased = 0
    for number, image in enumerate(torch_images(batch)):
        top, bottom, left, right = (int(end[number]) for end in drawn)
        erased += bottom > top
        expected = functional.erase(image, top, left, bottom - top, right - left, 0.0).numpy()
        np.testing.assert_array_equal(np.asarray(got)[number], np.moveaxis(expected, 0, -1))
    assert 20 < erased < 40


@pytest.mark.parametrize("share", [0.0, 0.3, 0.77, 1.0])
def test_mixup_is_torchvisions(share: float, torchvision: Any) -> None:
    torch: Any = importlib.import_module("torch")
    v2 = importlib.import_module("torchvision.transforms.v2")
    batch = np.random.default_rng(0).normal(size=(4, 6, 5, 3)).astype(np.float32)
    labels = np.array([2, 0, 1, 1])
    theirs = v2.MixUp(num_classes=3)
    theirs._dist = SimpleNamespace(sample=lambda shape: torch.tensor([share]))
    images, targets = (value.numpy() for value in theirs(torch_images(batch), torch.from_numpy(labels)))
    got = jax.jit(ours.apply_mixup)(batch, np.eye(3, dtype=np.float32)[labels], np.float32(share))
    assert np.abs(np.asarray(got[0]) - np.moveaxis(images, 1, -1)).max() < 1e-6
    assert np.abs(np.asarray(got[1]) - targets).max() < 1e-6


@pytest.mark.parametrize("share", [0.0, 0.21, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("centre", [(0, 0), (11, 7), (23, 19), (3, 15)])
def test_cutmix_is_torchvisions(
    share: float, centre: tuple[int, int], torchvision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch: Any = importlib.import_module("torch")
    v2 = importlib.import_module("torchvision.transforms.v2")
    batch = np.random.default_rng(0).normal(size=(4, HEIGHT, WIDTH, 3)).astype(np.float32)
    labels = np.array([2, 0, 1, 1])
    theirs = v2.CutMix(num_classes=3)
    theirs._dist = SimpleNamespace(sample=lambda shape: torch.tensor([share]))
    places = iter([torch.tensor([centre[1]]), torch.tensor([centre[0]])])  # the column is drawn first
    monkeypatch.setattr(torch, "randint", lambda *args, **options: next(places))
    images, targets = (value.numpy() for value in theirs(torch_images(batch), torch.from_numpy(labels)))
    got = cutmix(batch, np.eye(3, dtype=np.float32)[labels], np.float32(share), np.array(centre, np.int32))
    np.testing.assert_array_equal(got[0], np.moveaxis(images, 1, -1))
    assert np.abs(np.asarray(got[1]) - targets).max() < 1e-6


@jax.jit
def cutmix(batch: jax.Array, targets: jax.Array, share: jax.Array, centre: jax.Array) -> Any:
    drawn = ours.cutmix_rectangle(share, centre[0], centre[1], HEIGHT, WIDTH)
    return ours.apply_cutmix(batch, targets, drawn)


@pytest.mark.parametrize("side", [None, 16, 13, 19, 20])
@pytest.mark.parametrize("test", ["five_crop", "ten_crop"])
def test_views_are_torchvisions_crops(test: Any, side: int | None, functional: Any) -> None:
    images = pictures()
    got = np.asarray(ours.views(AugmentConfig(test=test, test_crop=side), jnp.asarray(images)))
    expected = getattr(functional, test)(torch_images(images), side or 17)
    np.testing.assert_array_equal(got, np.stack([np.moveaxis(view.numpy(), 1, -1) for view in expected]))


@pytest.mark.slow
def test_the_whole_chain_is_torchvisions_in_its_order(functional: Any, torchvision: Any) -> None:
    autoaugment = importlib.import_module("torchvision.transforms.autoaugment")
    mode = importlib.import_module("torchvision.transforms").InterpolationMode.NEAREST
    jitter, mean, std = (0.4, 0.4, 0.4, 0.1), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    config = AugmentConfig(
        pad=2, pad_mode="reflect", rand_augment=(2, 9), jitter=jitter, lighting=0.1, erasing=0.5, mixup=0, cutmix=0
    )
    images, key = np.concatenate([pictures()] * 4), jax.random.key(5)
    indices = np.array([7, 0, 3, 12, 19, 5, 15, 10], np.int32)
    got = np.asarray(jax.jit(ours.augment, static_argnums=(0, 4, 5))(config, images, indices, key, mean, std))
    space = list(autoaugment.RandAugment()._augmentation_space(31, (HEIGHT, WIDTH)).items())
    cropped = ours.crop_flip(jnp.asarray(images), jnp.asarray(indices), key, pad=2, flip=True, pad_mode="reflect")
    for index, crop, pixels in zip(indices, np.asarray(cropped), got, strict=True):
        own = jax.random.fold_in(key, index)
        image = to_pil(crop)
        operations = draw_rand_augment(2, jax.random.fold_in(own, ours.RAND_AUGMENT))
        for kind, negative in zip(operations.kinds, operations.negative, strict=True):
            operation, (magnitudes, signed) = space[int(kind)]
            level = float(magnitudes[9]) if magnitudes.ndim else 0.0
            image = autoaugment._apply_op(image, operation, -level if signed and negative else level, mode, None)
        drawn = draw_jitter(jitter, jax.random.fold_in(own, ours.JITTER))
        for kind in drawn.order:
            image = getattr(functional, ADJUST[int(kind)])(image, float(drawn.factors[kind]))
        tensor = functional.to_tensor(image)
        light = ours.SHIFTS @ np.asarray(ours.draw_lighting(0.1, jax.random.fold_in(own, ours.LIGHTING)))
        tensor = functional.normalize(tensor + torch_images(light[None, None]), mean, std)
        top, bottom, left, right = map(
            int, ours.draw_erasing(0.5, jax.random.fold_in(own, ours.ERASING), HEIGHT, WIDTH)
        )
        tensor = functional.erase(tensor, top, left, bottom - top, right - left, 0.0)
        assert np.abs(pixels - np.moveaxis(tensor.numpy(), 0, -1)).max() < 2e-6


@pytest.mark.slow
def test_jitter_is_drawn_as_by_torchvision(transforms: Any) -> None:
    ranges = (0.4, 1.3, 0.2, 0.1)
    jitter = transforms.ColorJitter(*ranges)
    bounds = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    theirs = [jitter.get_params(*bounds) for _ in range(THEIRS)]
    mine = draws(lambda key: draw_jitter(ranges, key))
    for kind in range(4):
        same_distribution(mine.factors[:, kind], np.array([drawn[1 + kind] for drawn in theirs]))
    numbers = 4 ** np.arange(4)
    orders = np.array([np.asarray(drawn[0]) for drawn in theirs]) @ numbers, mine.order @ numbers
    names, codes = np.unique(np.concatenate(orders), return_inverse=True)
    assert len(names) == 24
    same_frequencies(codes[THEIRS:], codes[:THEIRS], 24)
    # A common part of two factors, or of a factor and the order, of 3.5% would show: 5 deviations of 1 / sqrt(n).
    everything = np.concatenate([mine.factors, mine.order[:, :3]], 1)
    assert np.abs(np.corrcoef(everything.T)[:4] - np.eye(4, 7)).max() < 5 / math.sqrt(OURS)


@pytest.mark.slow
def test_rectangles_to_erase_are_drawn_as_by_torchvision(transforms: Any) -> None:
    image = torch_images(np.zeros((HEIGHT, 32, 3), np.float32))
    parameters = transforms.RandomErasing.get_params
    theirs = [parameters(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(THEIRS)]
    top, left, height, width = np.array(theirs).T
    mine = draws(lambda key: ours.draw_erasing(1.0, key, HEIGHT, 32))
    rows, columns = mine.bottom - mine.top, mine.right - mine.left
    assert rows.min() > 0
    same_distribution(rows, height)
    same_distribution(columns, width)
    same_distribution(rows * columns, height * width)
    same_distribution(rows / columns, height / width)
    same_distribution(mine.top / (HEIGHT - rows), top / (HEIGHT - height))
    same_distribution(mine.left / (32 - columns), left / (32 - width))


@pytest.mark.slow
def test_rectangles_to_erase_keep_to_torchvisions_bounds_and_come_near_them() -> None:
    mine = draws(lambda key: ours.draw_erasing(1.0, key, 2000, 2000))
    rows, columns = mine.bottom - mine.top, mine.right - mine.left
    for values, low, high in ((rows * columns / 2000**2, 0.02, 0.33), (rows / columns, 0.3, 3.3)):
        assert low * 0.99 < values.min() < low * 1.01
        assert high * 0.99 < values.max() < high * 1.01


@pytest.mark.slow
def test_without_a_rectangle_that_fits_nothing_is_erased(transforms: Any) -> None:
    image = torch_images(np.zeros((2, 30, 3), np.float32))
    parameters = transforms.RandomErasing.get_params
    theirs = [parameters(image, (0.02, 0.33), (0.3, 3.3), [0.0])[2:4] == (2, 30) for _ in range(THEIRS)]
    mine = draws(lambda key: ours.draw_erasing(1.0, key, 2, 30))
    assert 0.02 < np.mean(theirs) < 0.9
    same_frequencies((mine.bottom == mine.top).astype(int), np.array(theirs).astype(int), 2)


def test_the_share_of_erased_images_is_the_probability() -> None:
    mine = draws(lambda key: ours.draw_erasing(0.25, key, HEIGHT, WIDTH))
    # Deviation .0031: a share of .27 or .23 is found with probability .999.
    assert abs((mine.bottom > mine.top).mean() - 0.25) < 0.0101


def test_crops_and_mirrors_are_drawn_as_by_torchvision(transforms: Any) -> None:
    padded = torch_images(np.zeros((12, 12, 3), np.uint8))
    theirs = np.array([transforms.RandomCrop.get_params(padded, (8, 8))[:2] for _ in range(2 * THEIRS)])
    mirrored = np.random.default_rng(0).integers(0, 2, 2 * THEIRS)
    mine = draws(lambda key: ours.draw_crop(2, key))
    codes = (mine.offset + 2) @ np.array([10, 2]) + mine.mirrored
    same_frequencies(codes, theirs @ np.array([10, 2]) + mirrored, 50)


@pytest.mark.slow
def test_operations_are_drawn_as_by_torchvision(transforms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    autoaugment = importlib.import_module("torchvision.transforms.autoaugment")
    calls: list[tuple[str, float]] = []

    def record(image: Any, name: str, magnitude: float, **options: Any) -> Any:
        calls.append((name, magnitude))
        return image

    monkeypatch.setattr(autoaugment, "_apply_op", record)
    policy, image = autoaugment.RandAugment(num_ops=2), to_pil(pictures()[0])
    for _ in range(THEIRS):
        policy(image)
    assert len(calls) == 2 * THEIRS
    names = list(policy._augmentation_space(31, (HEIGHT, WIDTH)))
    mine = draws(lambda key: draw_rand_augment(2, key))
    kinds = np.array([names.index(name) for name, _ in calls])
    for place in range(2):
        same_frequencies(mine.kinds[:, place], kinds[place::2], 14)
    signs = np.array([magnitude < 0 for name, magnitude in calls if 1 <= names.index(name) <= 9])
    both = mine.negative[(mine.kinds >= 1) & (mine.kinds <= 9)].astype(int)
    same_frequencies(both, signs.astype(int), 2)
    # The second operation does not depend on the first, nor its sign on its kind.
    pairs = mine.kinds[:, 0] * 14 + mine.kinds[:, 1]
    assert stats.chisquare(np.bincount(pairs, minlength=196)).pvalue > LEVEL
    table = np.stack([np.bincount(mine.kinds[:, 0][mine.negative[:, 0] == sign], minlength=14) for sign in (0, 1)])
    assert stats.chi2_contingency(table).pvalue > LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixups_share_is_drawn_as_by_torchvision(alpha: float, transforms: Any) -> None:
    theirs = importlib.import_module("torchvision.transforms.v2").MixUp(alpha=alpha, num_classes=2)
    mine = draws(lambda key: ours.draw_mixup(alpha, key))
    same_distribution(mine, np.array([theirs.make_params([])["lam"] for _ in range(THEIRS)]))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_cutmixs_rectangle_is_drawn_as_by_torchvision(alpha: float, transforms: Any) -> None:
    theirs = importlib.import_module("torchvision.transforms.v2").CutMix(alpha=alpha, num_classes=2)
    image = torch_images(np.zeros((2, HEIGHT, WIDTH, 3), np.float32))
    left, top, right, bottom = np.array([theirs.make_params([image])["box"] for _ in range(THEIRS)]).T
    mine = draws(lambda key: ours.draw_cutmix(alpha, key, HEIGHT, WIDTH))
    for here, there in zip(mine, (top, bottom, left, right), strict=True):
        same_distribution(here, there)
    area = (mine.bottom - mine.top) * (mine.right - mine.left)
    same_distribution(area, (bottom - top) * (right - left))
