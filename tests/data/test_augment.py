"""Augmentation of a batch against slow numpy and Pillow; tests/parity holds it against torchvision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxclf.config import AugmentConfig
from jaxclf.data import augment as module
from jaxclf.data.augment import crop_flip, normalise
from jaxclf.data.rand_augment import OPERATIONS, Operations, apply_rand_augment
from jaxclf.errors import UsageError

SIDE, PAD = 6, 2
OFFSETS = (2 * PAD + 1) ** 2
# Compiling is all that costs here, and half of that is LLVM's work on many small loops.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
augment = compiled(crop_flip, static_argnames=("pad", "flip", "pad_mode"))
whole_chain = compiled(module.augment, static_argnums=(0, 4, 5))
mix = compiled(module.mix, static_argnums=0)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
OFF = AugmentConfig(pad=0, flip=False)
EVERYTHING = AugmentConfig(
    pad=2, pad_mode="reflect", rand_augment=(1, 9), jitter=(0.4, 0.4, 0.4, 0.1), lighting=0.1, erasing=0.5
)


@functools.cache
def pictures(count: int = 50, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Random pixels, none of them zero: every crop of a picture differs from every other."""
    return np.random.default_rng(0).integers(1, 256, (count, height, width, 3), dtype=np.uint8)


def candidates(image: np.ndarray, pad: int, flip: bool) -> np.ndarray:
    """Every crop of the zero-padded image, then every crop mirrored: [2 (2 pad + 1)^2 h w c]."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    spots = [(top, left) for top in range(2 * pad + 1) for left in range(2 * pad + 1)]
    crops = [padded[top : top + height, left : left + width] for top, left in spots]
    return np.stack(crops + [crop[:, ::-1] for crop in crops] * flip)


def choices(images: np.ndarray, indices: np.ndarray, seed: int, *, pad: int, flip: bool) -> np.ndarray:
    """Which candidate each example became; fails for pixels that are no candidate, or several."""
    got = np.asarray(augment(images, indices, jax.random.key(seed), pad=pad, flip=flip))
    out = []
    for index, pixels in zip(indices, got, strict=True):
        found = np.flatnonzero((candidates(images[index], pad, flip) == pixels).all((1, 2, 3)))
        assert len(found) == 1
        out.append(found[0])
    return np.array(out)


def chi_squared(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(("pad", "flip", "height", "width"), [(1, False, 6, 9), (0, True, 5, 4), (7, True, 6, 6)])
def test_pixels_are_one_of_the_crops_of_the_zero_padded_image(pad: int, flip: bool, height: int, width: int) -> None:
    images = pictures(20, height, width)
    got = np.asarray(augment(images, np.arange(20, dtype=np.int32), jax.random.key(0), pad=pad, flip=flip))
    assert got.dtype == np.uint8
    for image, pixels in zip(images, got, strict=True):
        assert (candidates(image, pad, flip) == pixels).all((1, 2, 3)).any()


@pytest.mark.slow
def test_every_crop_and_mirror_is_equally_likely() -> None:
    images = pictures()
    indices = np.arange(50, dtype=np.int32)
    drawn = np.concatenate([choices(images, indices, seed, pad=PAD, flip=True) for seed in range(40)])
    counts = np.bincount(drawn, minlength=2 * OFFSETS)
    assert len(counts) == 50
    assert counts.min() > 0
    # 49 degrees of freedom: a uniform draw exceeds 98.6 once in 30,000 keys; the key is fixed.
    assert chi_squared(counts) < 98.6
    mirrored = (drawn >= OFFSETS).sum()
    assert abs(mirrored - 1000) < 4.5 * np.sqrt(2000 / 4)  # false alarm below 1e-5


def test_an_example_looks_the_same_in_every_batch_of_an_epoch() -> None:
    images, key = pictures(), jax.random.key(3)
    whole = np.asarray(augment(images, np.arange(50, dtype=np.int32), key, pad=PAD, flip=True))
    for batch in ([7, 3, 11], [49, 7, 0], [7, 7, 7]):
        part = augment(images, np.array(batch, np.int32), key, pad=PAD, flip=True)
        assert np.array_equal(part, whole[batch])


def test_another_key_draws_again() -> None:
    images, indices = pictures(), np.arange(50, dtype=np.int32)
    a, b = (choices(images, indices, seed, pad=PAD, flip=True) for seed in (0, 1))
    assert (a == b).sum() < 10


def test_equal_images_at_different_indices_are_cropped_differently() -> None:
    images = np.repeat(pictures(1), 50, axis=0)
    drawn = choices(images, np.arange(50, dtype=np.int32), 0, pad=PAD, flip=True)
    assert len(set(drawn)) > 20


def test_without_padding_and_mirror_images_are_only_picked() -> None:
    images, indices = pictures(), np.array([4, 0, 4, 49], np.int32)
    assert np.array_equal(augment(images, indices, jax.random.key(0), pad=0, flip=False), images[indices])


def test_normalise_is_torchvisions_formula() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    levels = np.tile(np.arange(256, dtype=np.uint8)[:, None, None, None], (1, 1, 1, 3))
    got = compiled(normalise, static_argnums=(1, 2))(jnp.asarray(levels), mean, std)
    assert got.dtype == jnp.float32
    assert np.abs(np.asarray(got) - (levels / 255 - np.array(mean)) / np.array(std)).max() < 1e-6


def test_crops_of_a_seed_are_those_of_earlier_versions() -> None:
    image = np.repeat(np.arange(1, 101, dtype=np.uint8).reshape(1, 10, 10, 1), 6, axis=0)
    got = np.asarray(augment(image, np.arange(6, dtype=np.int32), jax.random.key(0), pad=4, flip=True))
    assert got[:, 5, 5, 0].tolist() == [73, 49, 53, 56, 33, 80]
    assert got[:, 5, 4, 0].tolist() == [74, 50, 52, 55, 32, 79]


@pytest.mark.parametrize("config", [AugmentConfig(), OFF])
def test_with_crop_and_mirror_alone_pixels_are_cropped_exactly_and_normalised(config: AugmentConfig) -> None:
    images, indices, key = pictures(), np.array([4, 0, 4, 49], np.int32), jax.random.key(7)
    got = whole_chain(config, images, indices, key, MEAN, STD)
    cropped = augment(images, indices, key, pad=config.pad, flip=config.flip)
    pixels = (np.asarray(got) * np.asarray(STD, np.float32) + np.asarray(MEAN, np.float32)) * 255
    assert np.array_equal(np.round(pixels), cropped)
    # The float arithmetic may be fused differently with the crop.
    assert np.abs(got - compiled(normalise, static_argnums=(1, 2))(cropped, MEAN, STD)).max() < 1e-6


@pytest.mark.slow
def test_every_part_leaves_an_example_the_same_in_every_batch() -> None:
    """All batches are of three images, which share one compiled chain."""
    images, key = pictures(6), jax.random.key(3)

    def shown(*batch: int) -> np.ndarray:
        return np.asarray(whole_chain(EVERYTHING, images, np.array(batch, np.int32), key, MEAN, STD))

    whole = np.concatenate([shown(0, 1, 2), shown(3, 4, 5)])
    for batch in ((5, 3, 1), (4, 4, 4)):
        assert np.array_equal(shown(*batch), whole[[*batch]])


def test_every_part_draws_from_a_key_of_its_own() -> None:
    key = jax.random.key(0)
    parts = (module.RAND_AUGMENT, module.JITTER, module.LIGHTING, module.ERASING)
    keys = [*jax.random.split(key), *(jax.random.fold_in(key, part) for part in parts)]
    assert len({tuple(np.asarray(jax.random.key_data(each))) for each in keys}) == 6


@pytest.mark.slow
def test_equal_images_are_lit_and_erased_differently() -> None:
    images, indices = np.repeat(pictures(1), 12, axis=0), np.arange(12, dtype=np.int32)
    for config in (AugmentConfig(pad=0, flip=False, lighting=0.1), AugmentConfig(pad=0, flip=False, erasing=1.0)):
        got = np.asarray(whole_chain(config, images, indices, jax.random.key(0), MEAN, STD))
        assert len({image.tobytes() for image in got}) > 8


@pytest.mark.parametrize(
    ("config", "channels", "named"),
    [
        (AugmentConfig(jitter=(0, 0, 0.1, 0)), 1, "saturation must be 0"),
        (AugmentConfig(jitter=(0, 0, 0, 0.1)), 1, "hue must be 0"),
        (AugmentConfig(lighting=0.1), 1, "1 channel.*lighting must be 0"),
        (AugmentConfig(rand_augment=(1, 9)), 4, "4 channels"),
    ],
)
def test_colour_in_images_without_is_refused_before_compiling(config: AugmentConfig, channels: int, named: str) -> None:
    images = jax.ShapeDtypeStruct((3, 6, 6, channels), jnp.uint8)
    indices, key = jax.ShapeDtypeStruct((2,), jnp.int32), jax.random.key(0)
    with pytest.raises(UsageError, match=named):
        jax.eval_shape(
            lambda images, indices: module.augment(config, images, indices, key, (0.5,), (0.2,)), images, indices
        )


def test_grey_images_take_brightness_contrast_and_rand_augment() -> None:
    config = AugmentConfig(jitter=(0.4, 0.4, 0, 0), rand_augment=(1, 9))
    images = jnp.asarray(pictures(3)[..., :1])
    out = jax.eval_shape(lambda x: module.augment(config, x, jnp.arange(3), jax.random.key(0), (0.5,), (0.2,)), images)
    assert out.shape == (3, 6, 6, 1)


def test_reflected_crops_are_those_of_numpys_padding() -> None:
    images, indices, pad = pictures(30), np.arange(30, dtype=np.int32), 13  # beyond the image, and back again
    got = np.asarray(augment(images, indices, jax.random.key(0), pad=pad, flip=False, pad_mode="reflect"))
    spots = set()

    def offset(index: jax.Array) -> jax.Array:
        return module.draw_crop(pad, jax.random.fold_in(jax.random.key(0), index)).offset

    offsets = np.asarray(compiled(jax.vmap(offset))(indices)) + pad
    for index, pixels, (top, left) in zip(indices, got, offsets, strict=True):
        padded = np.pad(images[index], ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        assert np.array_equal(pixels, padded[top : top + SIDE, left : left + SIDE])
        spots.add((int(top), int(left)))
    assert len(spots) > 10


def test_a_row_of_pixels_reflects_without_repeating_its_edge() -> None:
    row = compiled(module._reflect, static_argnums=1)(np.arange(-4, 8, dtype=np.int32), 4)
    assert row.tolist() == [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_are_pillows(channels: int) -> None:
    image = np.random.default_rng(0).integers(30, 220, (40, 50, channels), dtype=np.uint8)
    pil = Image.fromarray(image[..., 0] if channels == 1 else image)
    # Magnitude 10 of 30: factors 1 +- .3, threshold 255 - 85, 8 - 1.33 bits, 150 / 331 * 50 / 3 pixels.
    expected = {
        "identity": pil,
        "translate_x": Image.fromarray(np.roll(np.where(np.arange(50)[:, None] < 43, image, 0), 7, 1).squeeze()),
        "rotate": pil.rotate(10),
        "brightness": ImageEnhance.Brightness(pil).enhance(1.3),
        "colour": ImageEnhance.Color(pil).enhance(1.3),
        "contrast": ImageEnhance.Contrast(pil).enhance(1.3),
        "sharpness": ImageEnhance.Sharpness(pil).enhance(1.3),
        "posterize": ImageOps.posterize(pil, 7),
        "solarize": ImageOps.solarize(pil, 170),
        "autocontrast": ImageOps.autocontrast(pil),
        "equalize": ImageOps.equalize(pil),
    }
    kinds = np.array([[OPERATIONS.index(name)] for name in expected], np.int32)
    drawn = Operations(jnp.asarray(kinds), jnp.zeros(kinds.shape, bool))
    got = compiled(jax.vmap(lambda drawn: apply_rand_augment(10, jnp.asarray(image), drawn)))(drawn)
    for name, pixels in zip(expected, np.asarray(got), strict=True):
        assert np.array_equal(pixels.squeeze(), np.asarray(expected[name])), name


BATCH = np.arange(3 * 4 * 4, dtype=np.float32).reshape(3, 4, 4, 1)
TARGETS = np.eye(3, dtype=np.float32)


def test_without_mixup_and_cutmix_a_batch_stays_as_it_is() -> None:
    images, targets = mix(AugmentConfig(), BATCH, TARGETS, jax.random.key(0))
    assert np.array_equal(images, BATCH)
    assert np.array_equal(targets, TARGETS)


def test_mixup_averages_each_example_with_the_one_before() -> None:
    images, targets = compiled(module.apply_mixup)(BATCH, TARGETS, np.float32(0.75))
    assert images[:, 0, 1, 0].tolist() == [9, 13, 29]  # of 1, 17, 33, whose predecessors are 33, 1, 17
    assert targets.tolist() == [[0.75, 0, 0.25], [0.25, 0.75, 0], [0, 0.25, 0.75]]


def test_cutmix_weighs_targets_by_the_area_that_was_pasted() -> None:
    drawn = compiled(module.cutmix_rectangle, static_argnums=(3, 4))(np.float32(0), np.int32(0), np.int32(2), 4, 4)
    assert [int(end) for end in drawn] == [0, 2, 0, 4]  # half of the 4 x 4 around (0, 2) lies above the image
    images, targets = compiled(module.apply_cutmix)(BATCH, TARGETS, drawn)
    assert images[1, :, 0, 0].tolist() == [0, 4, 24, 28]
    assert targets.tolist() == [[0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0.5, 0.5]]


@pytest.mark.slow
def test_beside_each_other_mixup_and_cutmix_take_half_of_the_batches() -> None:
    config = AugmentConfig(mixup=1.0, cutmix=1.0)
    keys = jax.random.split(jax.random.key(0), 400)
    mixed = functools.partial(module.mix, config, jnp.asarray(BATCH), jnp.asarray(TARGETS))
    images, targets = compiled(functools.partial(jax.lax.map, mixed))(keys)
    pixels = np.asarray(images)
    pasted = ((pixels == BATCH) | (pixels == np.roll(BATCH, 1, 0))).all((1, 2, 3, 4))
    assert abs(pasted.sum() - 200) < 45  # 4.5 deviations
    assert np.allclose(np.asarray(targets).sum(-1), 1, atol=1e-6)
    own = np.asarray(targets)[:, 0, 0]
    # Of the first pixel 0 and its predecessor's 32, and of the target, mixup takes one share.
    assert np.abs(32 * (1 - own) - pixels[:, 0, 0, 0, 0])[~pasted].max() < 1e-4


@pytest.mark.parametrize(
    ("test", "size", "count", "side"),
    [("none", 16, 1, 16), ("flip", 16, 2, 16), ("five_crop", 16, 5, 14), ("ten_crop", 15, 10, 13)],
)
def test_views_by_default_are_seven_eighths_of_the_image(test: str, size: int, count: int, side: int) -> None:
    config, images = AugmentConfig(test=test), jnp.asarray(pictures(2, size, size))  # type: ignore[arg-type]
    got = np.asarray(module.views(config, images))
    assert got.shape == (count, 2, side, side, 3)
    assert got.dtype == np.uint8
    if test == "flip":
        assert np.array_equal(got[1], np.asarray(images)[:, :, ::-1])


def test_crops_start_in_the_corners_and_the_centre_of_the_image_and_of_its_mirror() -> None:
    image = jnp.arange(64, dtype=jnp.uint8).reshape(1, 8, 8, 1)
    got = module.views(AugmentConfig(test="ten_crop", test_crop=5), image)
    assert got[:, 0, 0, 0, 0].tolist() == [0, 3, 24, 27, 18, 7, 4, 31, 28, 21]


def test_crops_larger_than_the_image_are_refused() -> None:
    with pytest.raises(UsageError, match=r"test_crop is 7, but the images are 6 x 9"):
        module.views(AugmentConfig(test="five_crop", test_crop=7), jnp.asarray(pictures(2, 6, 9)))
