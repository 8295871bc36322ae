"""W h without W: gathered features, and the fast Walsh-Hadamard transform."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.models.matrices import signed_rows

TRANSFORM = "walsh_hadamard"
"""Name of the transform in a jaxpr, by which its additions are counted."""


@jax.jit
def walsh_hadamard(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Return H x over the last axis, H Sylvester's matrix of entries +-1 in natural order, not scaled.

    d is a power of two; d log2 d additions, in float32 for narrower inputs. Sylvester's factors are taken two at a
    time, H_2 x H_2 = H_4, which was faster on a CPU than one or four at a time.
    """
    size, lead = x.shape[-1], x.shape[:-1]
    if size & (size - 1):
        raise ValueError(f"the transform takes a power of two; got {size}")
    found, done = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x, 1
    while done < size:
        factor = min(4, size // done)
        blocks = found.reshape(*lead, size // (factor * done), factor, done)
        parts = [blocks[..., part, :] for part in range(factor)]
        if factor == 4:
            a, b, c, d = parts
            low, high = (a + b, a - b), (c + d, c - d)
            parts = [low[0] + high[0], low[1] + high[1], low[0] - high[0], low[1] - high[1]]
        else:
            parts = [parts[0] + parts[1], parts[0] - parts[1]]
        found, done = jnp.stack(parts, axis=-2).reshape(*lead, size), done * factor
    return found.astype(x.dtype)


def fast_product(
    x: Float[Array, "n *ij d"], name: str, rows: int, applied: str, *, unit: bool = False
) -> Float[Array, "n *ij k"]:
    """Return x W' for the matrix `name` [k d] of matrices/, applied by `gather` or `transform`; `unit` scales its rows.

    Raises `UsageError` where that matrix cannot be applied so.
    """
    signed, width = signed_rows(name, applied, rows, x.shape[-1])
    x = x[..., :width]
    if applied == "transform":
        missing = signed.order(rows, width) - width
        x = walsh_hadamard(jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]))
        x = x * width**-0.5 if unit else x
    return signed.arrange(x)[..., :rows]
