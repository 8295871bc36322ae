"""Augmentation of a batch inside the compiled step: a pure function of the epoch's key and the examples' indices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8


def crop_flip(
    images: UInt8[Array, "m h w c"], indices: Int[Array, " n"], key: jax.Array, *, pad: int, flip: bool
) -> UInt8[Array, "n h w c"]:
    """Pick `indices`, pad with `pad` zero pixels on each side, crop back at random, mirror half of them.

    The distribution of torchvision's RandomCrop(size, padding=pad) and RandomHorizontalFlip(). Each example draws
    from fold_in(key, its index in the data set), so batch size and order change no example's pixels. One gather.
    """
    height, width = images.shape[1:3]

    def pick(index: Int[Array, ""]) -> UInt8[Array, "h w c"]:
        crop_key, flip_key = jax.random.split(jax.random.fold_in(key, index))
        top, left = jax.random.randint(crop_key, (2,), -pad, pad + 1)
        rows = jnp.arange(height) + top
        columns = jnp.arange(width)
        if flip:
            columns = jnp.where(jax.random.bernoulli(flip_key), columns[::-1], columns)
        columns = columns + left
        inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]
        pixels = images[index, rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)[None, :]]
        return jnp.where(inside[..., None], pixels, jnp.uint8(0))

    return jax.vmap(pick)(indices) if pad or flip else images[indices]


def normalise(
    images: UInt8[Array, "n h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "n h w c"]:
    """Return (images / 255 - mean) / std per channel, float32 (torchvision's ToTensor and Normalize)."""
    centre, spread = (jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1) for values in (mean, std))
    return (images.astype(jnp.float32) / 255 - centre) / spread
