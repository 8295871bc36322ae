"""Pillow's arithmetic on the colours of one uint8 image, bit for bit, inside jit; and ColorJitter from it.

torchvision's functions on PIL images, which the PyTorch recipes use, not those on tensors: those round elsewhere. The
numbers are Pillow's on x86-64; on chips where C compilers fuse multiply and add, Pillow itself differs by rounding.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""ColorJitter's operations, in the order of its arguments."""


class Jitter(NamedTuple):
    """Random numbers of ColorJitter for one image."""

    order: Int[Array, " k"]
    """The operations that are on, first one first."""
    factors: Float[Array, "4"]
    """By operation; hue's is a share of the colour circle, from -1/2 to 1/2."""


def draw_jitter(ranges: tuple[float, float, float, float], key: jax.Array) -> Jitter:
    """Draw as torchvision's ColorJitter: factors uniform in [max(0, 1 - r), 1 + r], hue in [-r, r], any order.

    An operation of range 0 is left out, not applied with a factor of 1: hue rounds even when it does not turn.
    """
    order_key, factor_key = jax.random.split(key)
    active = [operation for operation, reach in enumerate(ranges) if reach]
    low = [max(0.0, 1 - reach) for reach in ranges[:HUE]] + [-ranges[HUE]]
    high = [1 + reach for reach in ranges[:HUE]] + [ranges[HUE]]
    factors = jax.random.uniform(factor_key, (4,), minval=jnp.array(low), maxval=jnp.array(high))
    return Jitter(jax.random.permutation(order_key, jnp.array(active, jnp.int32)), factors)


def apply_jitter(
    ranges: tuple[float, float, float, float], image: UInt8[Array, "h w c"], drawn: Jitter
) -> UInt8[Array, "h w c"]:
    """Apply the drawn operations one after the other, each rounded to bytes, as ColorJitter does to a PIL image.

    Hue costs many times the others, so it is computed once, between those that precede it and those that follow.
    """
    places = jnp.arange(sum(reach > 0 for reach in ranges[:HUE]))
    turn = jnp.argmax(drawn.order == HUE) if ranges[HUE] else jnp.int32(len(places))
    kinds = drawn.order[places + (places >= turn).astype(jnp.int32)]

    def enhanced(image: UInt8[Array, "h w c"], wanted: Bool[Array, " p"]) -> UInt8[Array, "h w c"]:
        for kind, applies in zip(kinds, wanted, strict=True):
            changed = enhance(image, kind, drawn.factors[kind], (black, mean_grey, grey))
            image = jnp.where(applies, changed, image)
        return image

    image = enhanced(image, places < turn)
    return enhanced(shift_hue(image, drawn.factors[HUE]), places >= turn) if ranges[HUE] else image


def enhance(
    image: UInt8[Array, "h w c"],
    kind: Int[Array, ""],
    factor: Float[Array, ""],
    backdrops: Sequence[Callable[[Any], Any]],
) -> UInt8[Array, "h w c"]:
    """Blend the image with `backdrops[kind]` of it (PIL's ImageEnhance): 0 is the backdrop, 1 the image.

    Under vmap the switch computes all backdrops of every image and selects: cheap beside the memory traffic.
    """
    return blend(jax.lax.switch(kind, backdrops, image), image, factor)


def blend(
    backdrop: UInt8[Array, "h w c"], image: UInt8[Array, "h w c"], factor: Float[Array, ""]
) -> UInt8[Array, "h w c"]:
    """Return backdrop + factor * (image - backdrop), cut off to whole numbers and clipped (PIL's Image.blend).

    PIL rounds the product and the sum to float32. XLA may fuse them into one rounding, which moves values at the edge
    of an integer; so the factor is split into 12 + 12 bits, whose products with a difference of bytes are exact: their
    sum is rounded once, fused or not, as PIL's product is.
    """
    start = backdrop.astype(jnp.float32)
    difference = image.astype(jnp.float32) - start
    high, low = _split(factor)
    return (start + (high * difference + low * difference)).clip(0, 255).astype(jnp.uint8)


def _split(number: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    bits = jax.lax.bitcast_convert_type(number, jnp.uint32)
    high = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFFF000), jnp.float32)
    return high, number - high


def luma(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w 1"]:
    """Return (.299 r + .587 g + .114 b) in 16 bits of fraction, rounded (PIL's convert("L")); grey as it is."""
    if image.shape[-1] == 1:
        return image
    r, g, b = (image[..., channel : channel + 1].astype(jnp.int32) for channel in range(3))
    return ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16).astype(jnp.uint8)


def black(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Return zeros: the backdrop of brightness."""
    return jnp.zeros_like(image)


def grey(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Return the image without colour: the backdrop of saturation."""
    return jnp.broadcast_to(luma(image), image.shape)


def mean_grey(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Return one grey everywhere, the rounded mean of `luma`: the backdrop of contrast. Below 8 million pixels."""
    pixels = image.shape[0] * image.shape[1]
    total = luma(image).sum(dtype=jnp.uint32)
    return jnp.full_like(image, ((2 * total + pixels) // (2 * pixels)).astype(jnp.uint8))


def smooth(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Return PIL's SMOOTH filter, (3x3 sum + 4 * centre) / 13 rounded, edges as they are: sharpness's backdrop."""
    x = image.astype(jnp.int32)
    rows = x[:-2] + x[1:-1] + x[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * x[1:-1, 1:-1]
    # A thirteenth is never half: integers round as PIL's floats do.
    return image.at[1:-1, 1:-1].set(((2 * total + 13) // 26).astype(jnp.uint8))


def shift_hue(image: UInt8[Array, "h w 3"], factor: Float[Array, ""]) -> UInt8[Array, "h w 3"]:
    """Turn the hue by `factor` of the circle, in 8-bit HSV (torchvision's adjust_hue on a PIL image)."""
    # Fused into what follows, HSV would be computed again for every channel.
    hue, saturation, value = jax.lax.optimization_barrier(_to_hsv(image))
    return _to_rgb((hue + _hue_steps(factor)) & 255, saturation, value)


def _hue_steps(factor: Float[Array, ""]) -> Int[Array, ""]:
    """Return trunc(255 * factor) of the exact product, which float32 may round up to a whole number."""
    high, low = _split(jnp.abs(factor))
    whole = jnp.floor(255 * (high + low))
    below = (255 * high - whole) + 255 * low < 0
    return (jnp.sign(factor) * (whole - below.astype(jnp.float32))).astype(jnp.int32)


def _to_hsv(image: UInt8[Array, "h w 3"]) -> tuple[Int[Array, "h w"], Int[Array, "h w"], Int[Array, "h w"]]:
    """Return PIL's 8-bit hue, saturation and value."""
    r, g, b = (image[..., channel].astype(jnp.int32) for channel in range(3))
    value = jnp.maximum(r, jnp.maximum(g, b))
    spread = value - jnp.minimum(r, jnp.minimum(g, b))
    sector = jnp.where(r == value, 0, jnp.where(g == value, 1, 2))
    lead = jax.lax.select_n(sector, g - b, b - r, r - g)
    hues, saturations = _hsv_tables()
    hue = jnp.asarray(hues)[sector, spread, lead + 255]
    return hue.astype(jnp.int32), jnp.asarray(saturations)[value, spread].astype(jnp.int32), value


@functools.cache
def _hsv_tables() -> tuple[np.ndarray, np.ndarray]:
    """Return hue by (largest channel, max - min, difference of the others), saturation by (max, max - min).

    PIL cuts off where the exact value is often whole, so the roundings of its mix of float32 and float64 decide;
    they are repeated here on the host, for jitted code has no float64.
    """
    spread = np.arange(256, dtype=np.float32)[:, None]
    lead = np.arange(-255, 256, dtype=np.float32)[None]
    divisor = np.maximum(spread, 1)
    first, second = (
        (np.minimum(spread, spread + sign * lead).clip(0) / divisor).astype(np.float64) for sign in (1, -1)
    )
    sixths = (np.arange(0, 6, 2)[:, None, None] + first - second).astype(np.float32).astype(np.float64)
    circle = np.fmod(sixths / 6 + 1, 1).astype(np.float32).astype(np.float64)
    hues = np.where(spread > 0, circle * 255, 0).astype(np.uint8)
    share = np.minimum(spread.T / np.maximum(np.arange(256, dtype=np.float32), 1)[:, None], 1)
    return hues, (share.astype(np.float64) * 255).astype(np.uint8)


def _to_rgb(hue: Int[Array, "h w"], saturation: Int[Array, "h w"], value: Int[Array, "h w"]) -> UInt8[Array, "h w 3"]:
    """Return colorsys's hsv_to_rgb in integers: no product here is ever half, so they round as PIL's floats do."""
    sector, part = hue * 2 // 85, hue * 2 % 85  # hue * 6 / 255 and its remainder, in 85ths
    low = (2 * value * (255 - saturation) + 255) // 510
    falling, rising = (
        (2 * value * (255 * 85 - saturation * share) + 255 * 85) // (2 * 255 * 85) for share in (part, 85 - part)
    )
    sector = sector % 6
    r = jax.lax.select_n(sector, value, falling, low, low, rising, value)
    g = jax.lax.select_n(sector, rising, value, value, falling, low, low)
    b = jax.lax.select_n(sector, low, low, rising, value, value, falling)
    return jnp.stack([r, g, b], axis=-1).astype(jnp.uint8)
