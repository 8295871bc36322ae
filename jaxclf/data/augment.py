"""Augmentation of a batch inside the compiled step: a pure function of the epoch's key and the examples' indices.

Each random part is a `draw_*`, which returns random numbers, and an `apply_*`, which takes them. The numbers are
distributed as in torchvision 0.28, and the image for given numbers is torchvision's.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxclf.config import AugmentConfig
from jaxclf.data.colour import apply_jitter, draw_jitter
from jaxclf.data.rand_augment import apply_rand_augment, draw_rand_augment
from jaxclf.errors import UsageError

RAND_AUGMENT, JITTER, LIGHTING, ERASING = range(2, 6)
"""Folded into an example's key; 0 and 1 are the keys that split() makes for crop and mirror."""

SHIFTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
) * np.array([0.2175, 0.0188, 0.0045], np.float32)
"""ImageNet's principal colour axes as columns (rows R, G, B), times their eigenvalues: eladhoffer/convNet.pytorch,
`preprocess.py`, after Krizhevsky et al. 2012, section 4.1."""


def augment(
    config: AugmentConfig,
    images: UInt8[Array, "m h w c"],
    indices: Int[Array, " n"] | None,
    key: jax.Array,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    examples: Int[Array, " n"] | None = None,
) -> Float[Array, "n h w c"]:
    """Pick `indices`, crop, mirror, RandAugment, jitter, normalise, light and erase them, as far as they are on.

    Without indices the images are the batch, in its order, and `examples` must be given. Each example draws from
    fold_in(key, its number in the data set), so batch size and order change no example's pixels: `examples`, or
    `indices` where the images are the whole set. `key` is the epoch's; `mean` and `std` are on the 0..1 scale.

    Raises:
        UsageError: for grey images with saturation, hue or lighting, or other than 1 or 3 channels in colour.
    """
    _check_channels(config, images.shape[-1])
    examples = indices if examples is None else examples
    crop = {"pad": config.pad, "flip": config.flip, "pad_mode": config.pad_mode}
    pixels = crop_flip(images, indices, key, examples=examples, **crop)

    def own_keys(part: int) -> jax.Array:
        return jax.vmap(lambda example: jax.random.fold_in(jax.random.fold_in(key, example), part))(examples)

    if config.rand_augment[0]:
        drawn = jax.vmap(partial(draw_rand_augment, config.rand_augment[0]))(own_keys(RAND_AUGMENT))
        pixels = jax.vmap(partial(apply_rand_augment, config.rand_augment[1]))(pixels, drawn)
    if any(config.jitter):
        drawn = jax.vmap(partial(draw_jitter, config.jitter))(own_keys(JITTER))
        pixels = jax.vmap(partial(apply_jitter, config.jitter))(pixels, drawn)
    batch = normalise(pixels, mean, std)
    if config.lighting:
        drawn = jax.vmap(partial(draw_lighting, config.lighting))(own_keys(LIGHTING))
        batch = apply_lighting(batch, drawn, std)
    if config.erasing:
        drawn = jax.vmap(lambda key: draw_erasing(config.erasing, key, *images.shape[1:3]))(own_keys(ERASING))
        batch = jax.vmap(apply_erasing)(batch, drawn)
    return batch


def _check_channels(config: AugmentConfig, channels: int) -> None:
    coloured = [name for name, on in zip(("saturation", "hue"), config.jitter[2:], strict=True) if on]
    coloured = [f"augment.jitter's {name}" for name in coloured] + ["augment.lighting"] * (config.lighting > 0)
    if coloured and channels != 3:
        raise UsageError(f"the images have {channels} channel(s), but {', '.join(coloured)} must be 0 unless 3")
    if (config.rand_augment[0] or any(config.jitter)) and channels not in (1, 3):
        raise UsageError(f"the images have {channels} channels, but rand_augment and jitter must be off unless 1 or 3")


class Crop(NamedTuple):
    """Random numbers of RandomCrop and RandomHorizontalFlip for one image."""

    offset: Int[Array, "2"]
    """Rows and columns that the crop lies below and right of the image, from -pad to pad."""
    mirrored: Bool[Array, ""]


def draw_crop(pad: int, key: jax.Array) -> Crop:
    """Draw every crop of the padded image with equal probability, and its mirror with 1/2; `key` is the example's."""
    crop_key, flip_key = jax.random.split(key)
    return Crop(jax.random.randint(crop_key, (2,), -pad, pad + 1), jax.random.bernoulli(flip_key))


def crop_flip(
    images: UInt8[Array, "m h w c"],
    indices: Int[Array, " n"] | None,
    key: jax.Array,
    *,
    pad: int,
    flip: bool,
    pad_mode: str = "zero",
    examples: Int[Array, " n"] | None = None,
) -> UInt8[Array, "n h w c"]:
    """Pick `indices`, pad with `pad` pixels on each side, crop back at random, mirror half of them.

    The distribution of torchvision's RandomCrop(size, padding=pad) and RandomHorizontalFlip(). Each example draws
    from fold_in(key, its number in the data set), as in `augment`. One gather.
    `pad_mode` zero or reflect: as numpy's, which mirrors again where the padding is longer than the image.
    """
    height, width = images.shape[1:3]

    def pick(image: jax.Array | None, index: jax.Array | None, example: Int[Array, ""]) -> UInt8[Array, "h w c"]:
        (top, left), mirrored = draw_crop(pad, jax.random.fold_in(key, example))
        rows = jnp.arange(height) + top
        columns = jnp.arange(width)
        if flip:
            columns = jnp.where(mirrored, columns[::-1], columns)
        columns = columns + left

        def take(rows: jax.Array, columns: jax.Array) -> jax.Array:
            places = rows[:, None], columns[None, :]
            return images[index, *places] if image is None else image[places]

        if pad_mode == "reflect":
            return take(_reflect(rows, height), _reflect(columns, width))
        inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]
        pixels = take(rows.clip(0, height - 1), columns.clip(0, width - 1))
        return jnp.where(inside[..., None], pixels, jnp.uint8(0))

    if not (pad or flip):
        return images if indices is None else images[indices]
    if indices is None:  # each device crops the images that it holds
        return jax.vmap(lambda image, example: pick(image, None, example))(images, examples)
    return jax.vmap(partial(pick, None))(indices, indices if examples is None else examples)


def _reflect(places: Int[Array, " s"], size: int) -> Int[Array, " s"]:
    """Fold places outside 0..size - 1 back at the edge pixels, which are not repeated."""
    period = max(2 * (size - 1), 1)
    places = places % period
    return jnp.minimum(places, period - places) if size > 1 else places


def normalise(
    images: UInt8[Array, "n h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "n h w c"]:
    """Return (images / 255 - mean) / std per channel, float32 (torchvision's ToTensor and Normalize)."""
    centre, spread = (jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1) for values in (mean, std))
    return (images.astype(jnp.float32) / 255 - centre) / spread


def draw_lighting(deviation: float, key: jax.Array) -> Float[Array, "3"]:
    """Draw one image's shifts along the three colour axes: independent N(0, deviation^2)."""
    return deviation * jax.random.normal(key, (3,))


def apply_lighting(
    batch: Float[Array, "n h w 3"], alphas: Float[Array, "n 3"], std: tuple[float, ...]
) -> Float[Array, "n h w 3"]:
    """Add sum_j axis_j eigenvalue_j alpha_j to every pixel, on the 0..1 scale: on the normalised one, that over std.

    Nothing is clipped, as in the reference: pixels may leave the range of bytes.
    """
    shifts = jnp.matmul(alphas, jnp.asarray(SHIFTS.T), precision="highest") / jnp.asarray(std, jnp.float32)[None]
    return batch + shifts[:, None, None, :]


class Rectangle(NamedTuple):
    """Part of an image in pixels: top <= row < bottom and left <= column < right; may be empty."""

    top: Int[Array, ""]
    bottom: Int[Array, ""]
    left: Int[Array, ""]
    right: Int[Array, ""]

    def mask(self, height: int, width: int) -> Bool[Array, "h w"]:
        """Return where the rectangle lies in an image."""
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
        return (rows >= self.top) & (rows < self.bottom) & (columns >= self.left) & (columns < self.right)


def draw_erasing(probability: float, key: jax.Array, height: int, width: int) -> Rectangle:
    """Draw RandomErasing's rectangle, empty where nothing is erased.

    Its share of the image is uniform in .02...33 and the logarithm of height / width in log .3..log 3.3; the first of
    ten tries that is smaller than the image both ways is placed uniformly; if there is none, nothing is erased.
    """
    tries = 10
    keys = jax.random.split(key, 5)
    area = height * width * jax.random.uniform(keys[0], (tries,), minval=0.02, maxval=0.33)
    ratio = jnp.exp(jax.random.uniform(keys[1], (tries,), minval=math.log(0.3), maxval=math.log(3.3)))
    sizes = jnp.round(jnp.sqrt(jnp.stack([area * ratio, area / ratio]))).astype(jnp.int32)
    fits = (sizes[0] < height) & (sizes[1] < width)
    erased = fits.any() & jax.random.bernoulli(keys[2], probability)
    rows, columns = jnp.where(erased, sizes[:, jnp.argmax(fits)], 0)
    top = jax.random.randint(keys[3], (), 0, jnp.maximum(height - rows, 0) + 1)
    left = jax.random.randint(keys[4], (), 0, jnp.maximum(width - columns, 0) + 1)
    return Rectangle(top, top + rows, left, left + columns)


def apply_erasing(image: Float[Array, "h w c"], drawn: Rectangle) -> Float[Array, "h w c"]:
    """Set the rectangle to 0, which after normalisation is the mean colour (RandomErasing's value=0)."""
    return jnp.where(drawn.mask(*image.shape[:2])[..., None], 0.0, image)


def mix(
    config: AugmentConfig, batch: Float[Array, "n h w c"], targets: Float[Array, "n k"], key: jax.Array
) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
    """Mix each example with the one before it in the batch, the first with the last (v2.MixUp, v2.CutMix).

    Mixup averages pixels and targets by one share per batch; cutmix pastes one rectangle and weighs targets by area.
    With both on, a batch takes either with probability 1/2; with none, nothing changes.
    """
    mixup_key, cutmix_key, choice_key = jax.random.split(key, 3)

    def mixup() -> tuple[Array, Array]:
        return apply_mixup(batch, targets, draw_mixup(config.mixup, mixup_key))

    def cutmix() -> tuple[Array, Array]:
        return apply_cutmix(batch, targets, draw_cutmix(config.cutmix, cutmix_key, *batch.shape[1:3]))

    if config.mixup and config.cutmix:
        return jax.lax.cond(jax.random.bernoulli(choice_key), mixup, cutmix)
    return mixup() if config.mixup else cutmix() if config.cutmix else (batch, targets)


def draw_mixup(alpha: float, key: jax.Array) -> Float[Array, ""]:
    """Draw the share of each example itself from Beta(alpha, alpha)."""
    return jax.random.beta(key, alpha, alpha)


def apply_mixup(
    batch: Float[Array, "n h w c"], targets: Float[Array, "n k"], share: Float[Array, ""]
) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
    """Return share * example + (1 - share) * the one before it, of images and of targets."""
    return _average(batch, share), _average(targets, share)


def _average(values: Float[Array, "n ..."], share: Float[Array, ""]) -> Float[Array, "n ..."]:
    return share * values + (1 - share) * jnp.roll(values, 1, axis=0)


def draw_cutmix(alpha: float, key: jax.Array, height: int, width: int) -> Rectangle:
    """Draw cutmix's rectangle: a share from Beta(alpha, alpha) around a centre that is uniform over the pixels."""
    share_key, row_key, column_key = jax.random.split(key, 3)
    share = jax.random.beta(share_key, alpha, alpha)
    row, column = jax.random.randint(row_key, (), 0, height), jax.random.randint(column_key, (), 0, width)
    return cutmix_rectangle(share, row, column, height, width)


def cutmix_rectangle(
    share: Float[Array, ""], row: Int[Array, ""], column: Int[Array, ""], height: int, width: int
) -> Rectangle:
    """Return the rectangle of sides sqrt(1 - share) of the image's around a pixel, cut off at the edges."""
    half = 0.5 * jnp.sqrt(1 - share)
    rows, columns = (half * height).astype(jnp.int32), (half * width).astype(jnp.int32)
    vertical = jnp.maximum(row - rows, 0), jnp.minimum(row + rows, height)
    return Rectangle(*vertical, jnp.maximum(column - columns, 0), jnp.minimum(column + columns, width))


def apply_cutmix(
    batch: Float[Array, "n h w c"], targets: Float[Array, "n k"], drawn: Rectangle
) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
    """Paste the rectangle of the example before each into it; targets by the area that is left after clipping."""
    height, width = batch.shape[1:3]
    pasted = jnp.where(drawn.mask(height, width)[None, ..., None], jnp.roll(batch, 1, axis=0), batch)
    area = (drawn.bottom - drawn.top) * (drawn.right - drawn.left)
    return pasted, _average(targets, 1 - area.astype(jnp.float32) / (height * width))


def views(config: AugmentConfig, images: UInt8[Array, "n h w c"]) -> UInt8[Array, "v n i j c"]:
    """Return the views of test images: themselves; also mirrored; or their crops, in the order of Five- and TenCrop.

    Crops are square: top left, top right, bottom left, bottom right, centre, then those of the mirrored image. Without
    `test_crop` their side is 7/8 of the shorter side, rounded down.

    Raises:
        UsageError: where `test_crop` is larger than the image.
    """
    mirrored = images[:, :, ::-1]
    if config.test == "none":
        return images[None]
    if config.test == "flip":
        return jnp.stack([images, mirrored])
    height, width = images.shape[1:3]
    side = config.test_crop or max(min(height, width) * 7 // 8, 1)
    if side > min(height, width):
        raise UsageError(
            f"augment.test_crop is {side}, but the images are {height} x {width}: at most their shorter side"
        )
    bottom, right = height - side, width - side
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
    shown = [images, mirrored] if config.test == "ten_crop" else [images]
    return jnp.stack([whole[:, top : top + side, left : left + side] for whole in shown for top, left in corners])
