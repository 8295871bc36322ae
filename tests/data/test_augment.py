"""Crop, mirror and normalise, against slow numpy and torchvision's formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclf.data.augment import crop_flip, normalise

SIDE, PAD = 6, 2
OFFSETS = (2 * PAD + 1) ** 2
augment = jax.jit(crop_flip, static_argnames=("pad", "flip"))


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


@pytest.mark.parametrize(
    ("pad", "flip", "height", "width"), [(2, True, 6, 6), (1, False, 6, 9), (0, True, 5, 4), (7, True, 6, 6)]
)
def test_pixels_are_one_of_the_crops_of_the_zero_padded_image(pad: int, flip: bool, height: int, width: int) -> None:
    images = pictures(20, height, width)
    got = np.asarray(augment(images, np.arange(20, dtype=np.int32), jax.random.key(0), pad=pad, flip=flip))
    assert got.dtype == np.uint8
    for image, pixels in zip(images, got, strict=True):
        assert (candidates(image, pad, flip) == pixels).all((1, 2, 3)).any()


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
    got = jax.jit(normalise, static_argnums=(1, 2))(jnp.asarray(levels), mean, std)
    assert got.dtype == jnp.float32
    assert np.abs(np.asarray(got) - (levels / 255 - np.array(mean)) / np.array(std)).max() < 1e-6
