"""RandAugment on one uint8 image, bit for bit torchvision's on a PIL image (nearest pixels, filled with 0).

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2019.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxclf.data.colour import black, enhance, grey, mean_grey, smooth

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "colour", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
"""torchvision's order: those that move pixels, those that blend, those that look each channel's values up."""
ENHANCE, LOOK_UP = OPERATIONS.index("brightness"), OPERATIONS.index("posterize")
BINS = 31
"""Magnitudes run from 0 to 30."""


class Operations(NamedTuple):
    """Random numbers of RandAugment for one image."""

    kinds: Int[Array, " k"]
    """Indices into OPERATIONS, first one first."""
    negative: Bool[Array, " k"]
    """Whether the magnitude is negated, for the operations that have a direction."""


def draw_rand_augment(count: int, key: jax.Array) -> Operations:
    """Draw `count` operations and their signs, uniformly and with replacement."""
    kind_key, sign_key = jax.random.split(key)
    kinds = jax.random.randint(kind_key, (count,), 0, len(OPERATIONS))
    return Operations(kinds, jax.random.bernoulli(sign_key, shape=(count,)))


def apply_rand_augment(magnitude: int, image: UInt8[Array, "h w c"], drawn: Operations) -> UInt8[Array, "h w c"]:
    """Apply the drawn operations one after the other, each at this magnitude of 0 to 30.

    The kind differs by example, so under vmap every kind is computed and one selected. It costs three passes and not
    fourteen: kinds share one gather with their own matrix, one blend with their own backdrop, or one look-up.
    """
    for kind, negative in zip(drawn.kinds, drawn.negative, strict=True):
        moved = _move(image, _matrix(image, kind, negative, magnitude))
        backdrops = (black, grey, mean_grey, smooth)
        enhanced = enhance(image, kind - ENHANCE, _factor(negative, magnitude), backdrops)
        looked_up = _look_up(image, kind - LOOK_UP, magnitude)
        group = (kind >= ENHANCE).astype(jnp.int32) + (kind >= LOOK_UP).astype(jnp.int32)
        image = jax.lax.select_n(group, moved, enhanced, looked_up)
    return image


def _level(first: float, last: float, magnitude: int) -> float:
    """Return torch.linspace(first, last, 31)[magnitude], which is float32 and counts from the nearer end.

    Product and sum are rounded once, as torch does on chips with AVX2: the last bit decides whole rows of bytes.
    """
    start, end = np.float32(first), np.float32(last)
    step = float((end - start) / np.float32(BINS - 1))
    if magnitude < BINS // 2:
        return float(np.float32(float(start) + step * magnitude))
    return float(np.float32(float(end) - step * (BINS - 1 - magnitude)))


def _factor(negative: Bool[Array, ""], magnitude: int) -> Float[Array, ""]:
    level = _level(0, 0.9, magnitude)
    return jnp.where(negative, jnp.float32(1 - level), jnp.float32(1 + level))


def _matrix(
    image: UInt8[Array, "h w c"], kind: Int[Array, ""], negative: Bool[Array, ""], magnitude: int
) -> Int[Array, "6"]:
    """Return the kind's matrix in 16 bits of fraction; the identity for kinds that move nothing."""
    matrices = jnp.asarray(_matrices(*image.shape[:2], magnitude))
    return matrices[jnp.where(kind < ENHANCE, kind, 0), negative.astype(jnp.int32)]


@functools.cache
def _matrices(height: int, width: int, magnitude: int) -> np.ndarray:
    """Return, by kind and sign, the source x = a x + b y + c and y = d x + e y + f of a target pixel, times 2^16.

    torchvision shears about the corner and rotates about the centre; PIL samples at pixel centres, in this precision.
    """
    shear = math.tan(math.atan(_level(0, 0.3, magnitude)))
    across, down = (int(_level(0, 150 / 331 * size, magnitude)) for size in (width, height))
    angle = math.radians(_level(0, 30, magnitude))
    signed = [
        [
            *((1, 0, 0, 0, 1, 0), (1, sign * shear, 0, 0, 1, 0), (1, 0, 0, sign * shear, 1, 0)),
            *((1, 0, -sign * across, 0, 1, 0), (1, 0, 0, 0, 1, -sign * down)),
            _rotation(-sign * angle, height, width),
        ]
        for sign in (1, -1)
    ]
    return np.array([[_fixed(matrix) for matrix in pair] for pair in zip(*signed, strict=True)], np.int32)


def _rotation(angle: float, height: int, width: int) -> tuple[float, ...]:
    """Return PIL's matrix of a rotation about the centre; it rounds to 15 digits."""
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y


def _fixed(matrix: tuple[float, ...]) -> list[int]:
    a, b, c, d, e, f = matrix
    centred = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return [math.floor(number * 65536 + 0.5) for number in centred]


def _move(image: UInt8[Array, "h w c"], matrix: Int[Array, "6"]) -> UInt8[Array, "h w c"]:
    """Take every pixel from where the matrix points; what lies outside is 0. Sides below 32768, as in PIL."""
    height, width = image.shape[:2]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    a, b, c, d, e, f = matrix
    x, y = (a * columns + b * rows + c) >> 16, (d * columns + e * rows + f) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return jnp.where(inside[..., None], image[y.clip(0, height - 1), x.clip(0, width - 1)], jnp.uint8(0))


def _look_up(image: UInt8[Array, "h w c"], kind: Int[Array, ""], magnitude: int) -> UInt8[Array, "h w c"]:
    """Replace each channel's values by the kind's table."""
    tables = (
        functools.partial(_posterize, bits=8 - round(magnitude / ((BINS - 1) / 4))),
        functools.partial(_solarize, threshold=_level(255, 0, magnitude)),
        _autocontrast,
        _equalize,
    )
    # Fused into the gather, the tables would be computed again for every pixel.
    table = jax.lax.optimization_barrier(jax.lax.switch(kind, tables, image))
    return table[jnp.arange(image.shape[-1])[None, None], image.astype(jnp.int32)]


def _posterize(image: UInt8[Array, "h w c"], bits: int) -> UInt8[Array, "c 256"]:
    values = np.arange(256) & ~(2 ** (8 - bits) - 1)
    return jnp.broadcast_to(jnp.asarray(values, jnp.uint8)[None], (image.shape[-1], 256))


def _solarize(image: UInt8[Array, "h w c"], threshold: float) -> UInt8[Array, "c 256"]:
    values = np.arange(256)
    values = np.where(values < threshold, values, 255 - values)
    return jnp.broadcast_to(jnp.asarray(values, jnp.uint8)[None], (image.shape[-1], 256))


def _autocontrast(image: UInt8[Array, "h w c"]) -> UInt8[Array, "c 256"]:
    """Stretch each channel to 0..255: floor(255 (v - low) / (high - low)), in the float64 of PIL.

    PIL computes v s - low s with s = 255 / (high - low), three roundings; where the exact result is whole, they decide
    whether it falls below. `_residues` knows the error of each product in units of 2^-52; the difference survives
    its own rounding if it is more than half of the spacing of doubles below the result.
    """
    low, high = (end(image, axis=(0, 1)).astype(jnp.int32)[:, None] for end in (jnp.min, jnp.max))
    values = jnp.arange(256)[None]
    spread = jnp.maximum(high - low, 1)
    stretched = 255 * (values - low)
    result = jnp.clip(stretched // spread, 0, 255)
    residues = jnp.asarray(_residues())
    error = residues[spread, values] - residues[spread, low]
    power = jnp.asarray(_powers())[result]
    below = (stretched % spread == 0) & (result > 0) & (-4 * error > power)
    return jnp.where(high > low, result - below.astype(jnp.int32), values).astype(jnp.uint8)


@functools.cache
def _residues() -> np.ndarray:
    """Return by (spread, v) the product v * (255 / spread) in float64, in units of 2^-52: its low 32 bits.

    The true difference of two products is below 2^16 units from a whole number, so that 32 bits tell it.
    """
    spread = np.maximum(np.arange(256, dtype=np.float64), 1)[:, None]
    fraction, exponent = np.frexp(np.arange(256, dtype=np.float64)[None] * (255 / spread))
    bits = np.ldexp(fraction, 53).astype(np.uint64) << np.maximum(exponent - 1, 0).astype(np.uint64)
    return (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)


def _powers() -> np.ndarray:
    """Return the smallest power of two from v up, for v of 0 to 255; the spacing of doubles below v is 2^-53 of it."""
    return np.array([1 << max(value - 1, 0).bit_length() for value in range(256)], np.int32)


def _equalize(image: UInt8[Array, "h w c"]) -> UInt8[Array, "c 256"]:
    """Spread each channel's values evenly, by its cumulated histogram, in PIL's integers."""
    channels = jnp.arange(image.shape[-1])
    counts = jnp.zeros((image.shape[-1], 256), jnp.int32)
    counts = counts.at[channels[None, None], image.astype(jnp.int32)].add(1)
    last = counts[channels, image.max((0, 1)).astype(jnp.int32)][:, None]
    step = (counts.sum(1, keepdims=True) - last) // 255
    below = counts.cumsum(1) - counts
    result = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, result, jnp.arange(256)[None]).astype(jnp.uint8)
